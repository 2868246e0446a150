"""Backends, devices, memory, processes and ports of the machine that serves."""

from generator.rules.rule import CORE, FILES, Rule

FEWER_INSTANCES = "end what else uses the GPU (nvidia-smi shows it), or give the models fewer instances"

DEVICES = (
    Rule(
        id="backend-unstated",
        says=r"Could not determine backend for model|must specify 'platform' or 'backend'",
        cause="neither backend nor platform is stated, and no file that it holds tells",
        fix='write backend: "onnxruntime", or what it is, in {model}/config.pbtxt, or give the file its usual name',
        build="rewrite",
        seen_in=CORE,
    ),
    Rule(
        id="backend-library",
        says=r"(unable to find backend library|backend library name) '(?P<name>[^']*)'( for model| escapes)",
        cause="runtime names the library {name}, which is not in the folder of its backend",
        fix="remove runtime from {model}/config.pbtxt",
        build="rewrite",
        seen_in=CORE,
    ),
    Rule(
        id="platform-unknown",
        says=r"unexpected (?:'platform' and 'backend' pair, got:|platform type ')(?P<platform>[^,']*)"
        r"(?:, (?P<backend>\S*))?",
        cause="platform {platform!r} does not exist, or is not that of the backend {backend!r}",
        fix="remove platform and write backend alone, in {model}/config.pbtxt",
        build="rewrite",
        seen_in=CORE,
    ),
    Rule(
        id="backend-removed",
        says=r"unable to find backend library for backend '(?P<backend>tensorflow)'",
        cause="the backend {backend} is no longer part of tritonserver: its last release was 25.02",
        fix='convert the model to ONNX and write backend: "onnxruntime", or serve it with 25.02',
        seen_in=FILES,
        first="25.03",
    ),
    Rule(
        id="backend-unknown",
        says=r"unable to find backend library for backend '(?P<backend>[^']+)'",
        cause="it needs the backend {backend}, which this tritonserver does not have",
        fix="serve it with the stock container, which has all of Triton's",
    ),
    Rule(
        id="gpu-absent",
        says=r"kind KIND_GPU but no GPUs are available",
        cause="its instance_group asks for a GPU (KIND_GPU), and none is available here",
        fix="serve where the GPU is, or set kind: KIND_CPU in {model}/config.pbtxt (target: onnxruntime, decode: cpu)",
        seen_in=("host", "log"),
    ),
    Rule(
        id="gpu-absent-for-plan",
        says=r"no GPU for model '[^']*' \((?P<detail>.*?)\): a TensorRT plan runs on an NVIDIA GPU only",
        cause="its plan needs a GPU, and there is none: {detail}",
        fix="serve it where the GPU is, or set target: onnxruntime",
        build="rebuild",
    ),
    Rule(
        id="tensorrt-python-absent",
        says=r"(?P<detail>[^:]* (has no working tensorrt|lacks cuda-python)\b( \(.*?\))?)",
        cause="{detail}",
        fix="install trtgen's extra tensorrt for that Python: pip install -e '.[tensorrt]' in trtgen's checkout",
    ),
    Rule(
        id="memory-shared",
        says=r"--shm-size|shared memory.*No space left on device",
        cause="there is too little shared memory in /dev/shm: each instance of a Python model takes 1 MB and more",
        fix="in a container give --shm-size=1g; elsewhere free space in /dev/shm (df -h /dev/shm)",
    ),
    Rule(
        id="memory-shared-small",
        severity="note",
        cause="the {count} instances of its Python models take {size} MB of shared memory or more; a container of "
        "Docker has 64 MB",
        fix="give the container --shm-size=1g (shm_size in compose.yaml)",
        seen_in=("files",),
    ),
    Rule(
        id="memory-gpu",
        says=r"out of memory on GPU (?P<gpu>\d+): (?P<detail>.*?)(: lower `count`|$)",
        cause="the memory of GPU {gpu} is exhausted: {detail}",
        fix=FEWER_INSTANCES,
        build="rebuild",
    ),
    # Triton opens a stream of its own for each instance on a GPU, before the backend does anything
    Rule(
        id="memory-gpu-stream",
        says=r"unable to create stream: out of memory|unable to get CUDA device properties for [^:]+: out of memory",
        cause="the memory of a GPU is exhausted: not even the CUDA context of tritonserver itself fits, or one stream "
        "more",
        fix=FEWER_INSTANCES,
        build="rebuild",
    ),
    Rule(
        id="memory-load",
        says=r"[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY|MemoryError|bad_alloc",
        cause="there is too little memory to load it",
        fix="lower `count` of instance_group in {model}/config.pbtxt, or free memory",
    ),
    Rule(
        id="stub-ended",
        says=r"Stub process '[^']*' is not healthy",
        cause="the Python process of the model ended while it loaded: it crashed, or the system had no memory left",
        fix="dmesg | tail",
    ),
    Rule(
        id="stub-library",
        says=r"error while loading shared libraries: (?P<library>(?P<package>\S+?)\.so\S*?):",
        cause="the Python process of the models cannot start: the library {library} was not found",
        fix="apt-get install {package}",
    ),
    Rule(
        id="tmp-noexec",
        says=r"unable to load shared library: (?P<folder>/\S*)/trtgen-\S+ failed to map segment",
        cause="the temporary directory {folder} does not allow programs to run (noexec)",
        fix="name another one: run it with TMPDIR=/var/tmp",
    ),
    Rule(
        id="gpu-fails",
        says=r"\bcu[A-Z]\w+ failed: CUDA_ERROR_|TensorRT does not start",
        cause="the GPU or its driver fails: {words}",
        fix="nvidia-smi shows whether both work, and what else uses the GPU",
    ),
)

# doctor --prove
DISAGREEMENTS = (
    Rule(
        id="server-refuses",
        cause="doctor found nothing that tritonserver {release} refuses, but it says: {words}",
        fix="correct {model}/config.pbtxt by its words, and report that doctor does not know them",
        seen_in=("server",),
    ),
    Rule(
        id="server-accepts",
        severity="warning",
        cause="doctor found {found}, but tritonserver {release} accepts the configuration",
        fix="report it: doctor is wrong, or that release is",
        seen_in=("server",),
    ),
)
PORTS = (
    Rule(
        id="port-taken",
        says=r"failed to start (?P<name>HTTP|GRPC|Metrics) service: .*Socket '(?P<socket>[^']+)' already in use",
        cause="the {name} port {socket} is in use by another program",
        fix="stop that program, or serve on another port",
    ),
)
