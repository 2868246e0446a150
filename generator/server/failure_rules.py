r"""What tritonserver's words mean: a table of (pattern, cause, hint).

The first rule whose pattern is found in the words of a failure decides. Named groups of the pattern, and `model`,
`words` can be used in the cause and the hint; `{rebuild}` and `{rewrite}` in a hint say that the model is to be built
again, the latter without what was edited.

Sources: logs of tritonserver 2.51 on repositories that are broken on purpose (tests/test_server_failures.py), and, for
the TensorRT backend and later releases, the texts in Triton's sources (core, backend, tensorrt_backend).
"""

from __future__ import annotations

import re

_REBUILD = "{rebuild}"
_EDIT = "correct {model}/config.pbtxt, or {rewrite}"
_FEWER_INSTANCES = "end what else uses the GPU (nvidia-smi shows it), or give it fewer instances and {rebuild}"
# What a hint says of building the model again, and the fields for it.
BUILDS: dict[str, tuple[str, dict[str, object]]] = {
    "rebuild": ("build it again", {}),
    "rewrite": ("build it again and discard the edits", {"discard_edits": True}),
}

# Packages whose import name differs from the name that pip installs.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}

# What Triton says of a config.pbtxt that is not that of the graph or plan.
_DISAGREEMENT = (
    r"unexpected datatype TYPE_\w+ for inference|"
    r"unexpected inference (input|output) '|expected configuration for (input|output)|"
    r"configuration expects \d+ (input|output)s|is missing from the configuration|"
    r"the (model|graph) (expects|has) \d+ dimensions|the graph has shape|"
    r"model configuration specified invalid shape|"
    r"invalid profile -?\d+|failed to find any Optimization Profile|whether batching is supported|"
    r"engine only supports max-batch"
)
# What it says of one that breaks a rule, those of ensembles first.
_BROKEN_RULE = (
    r"is not mapped to any ensemble tensors|for ensemble .* is not (used|written)|is unused in ensemble|"
    r"can appear in an output map only once|must specify '\w+' (for|in step)|"
    r"(should not|can not) be specified for ensemble|allows maximum batch size|inconsistent (data type|shape)|"
    r"is mapping to non-existing|is outside model directory|TensorRT backend supports only GPU device|"
    r"dynamic batching preferred size must be|default priority level must be|Only one priority level is allowed|"
    r"must specify 'dims'|require 3 dims|specifies profile field|unexpected 'platform' and 'backend' pair|"
    r"graph (lower bound )?spec expects|Response Cache does not|Supported values are|does not specify|"
    r"Invalid stub name|Incorrect value for FORCE_CPU_ONLY"
)

RULES = (
    # first, since its words repeat those of the member
    (
        r"depends on '(?P<member>[^']+)' which has no loaded version",
        "its member {member} did not load",
        "repair {member} first",
    ),
    # the shape of the repository
    (
        r"failed to open text file for read (?P<folder>.*/(?P<name>[^/]+))/config\.pbtxt",
        "the folder {name} in the repository's root is not a model: it has no config.pbtxt (a leftover?)",
        "remove it or move it elsewhere: {folder}",
    ),
    (
        r"failed to open text file for read (?P<path>.+?)(: No such|$)",
        "a file that config.pbtxt names is missing: {path}",
        _REBUILD,
    ),
    (
        r"version \d+ is specified for model|at least one version must be available",
        "it has no version directory that its version_policy takes: {words}",
        "change version_policy in {model}/config.pbtxt, or {rebuild}",
    ),
    (
        r"unexpected directory name '(?P<folder>[^']+)' for model '(?P<name>[^']+)'",
        "its directory is called {folder}, but config.pbtxt says the name is {name}",
        "rename the directory to {name}, or correct `name` in {folder}/config.pbtxt",
    ),
    (
        r"failed to read text proto from (?P<path>.+?/config\.pbtxt)(?: \((?P<detail>.*)\))?",
        "its config.pbtxt cannot be read: {detail}",
        _EDIT,
    ),
    (
        r"(Python model file not found in|unable to find) '(?P<path>.+?)'( for model|$)",
        "its file is missing: {path}",
        _REBUILD,
    ),
    (
        r"unable to read '(?P<path>.+?)': (?P<detail>.*)",
        "its file cannot be read ({detail}): {path}",
        "let the user that runs the server read {path}",
    ),
    # backends and devices
    (
        r"unable to find backend library for backend '(?P<backend>[^']+)'",
        "it needs the backend {backend}, which this tritonserver does not have",
        "serve it with the stock container, which has all of Triton's",
    ),
    (
        r"kind KIND_GPU but no GPUs are available",
        "its instance_group asks for a GPU (KIND_GPU), and none is available here",
        "serve where the GPU is, or set kind: KIND_CPU in {model}/config.pbtxt (or target: onnxruntime, decode: cpu)",
    ),
    (
        r"no GPU for model '[^']*' \((?P<detail>.*?)\): a TensorRT plan runs on an NVIDIA GPU only",
        "its plan needs a GPU, and there is none: {detail}",
        "serve it where the GPU is, or set target: onnxruntime and {rebuild}",
    ),
    (
        r"(?P<detail>[^:]* (has no working tensorrt|lacks cuda-python)\b( \(.*?\))?)",
        "{detail}",
        "install trtgen's extra tensorrt for that Python: pip install -e '.[tensorrt]' in trtgen's checkout",
    ),
    # memory and processes
    (
        r"--shm-size|shared memory.*No space left on device",
        "there is too little shared memory in /dev/shm: each instance of a Python model takes 1 MB and more",
        "in a container give --shm-size=1g; elsewhere free space in /dev/shm (df -h /dev/shm)",
    ),
    (
        r"out of memory on GPU (?P<gpu>\d+): (?P<detail>.*?)(: lower `count`|$)",
        "the memory of GPU {gpu} is exhausted: {detail}",
        _FEWER_INSTANCES,
    ),
    # Triton opens a stream of its own for each instance on a GPU, before the backend does anything
    (
        r"unable to create stream: out of memory|unable to get CUDA device properties for [^:]+: out of memory",
        "the memory of a GPU is exhausted: not even the CUDA context of tritonserver itself fits, or one stream more",
        _FEWER_INSTANCES,
    ),
    (
        r"[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY|MemoryError|bad_alloc",
        "there is too little memory to load it",
        "lower `count` of instance_group in {model}/config.pbtxt, or free memory",
    ),
    (
        r"Stub process '[^']*' is not healthy",
        "the Python process of the model ended while it loaded: it crashed, or the system had no memory left",
        "dmesg | tail",
    ),
    (
        r"error while loading shared libraries: (?P<library>(?P<package>\S+?)\.so\S*?):",
        "the Python process of the models cannot start: the library {library} was not found",
        "apt-get install {package}",
    ),
    (
        r"unable to load shared library: (?P<folder>/\S*)/trtgen-\S+ failed to map segment",
        "the temporary directory {folder} does not allow programs to run (noexec)",
        "name another one: run it with TMPDIR=/var/tmp",
    ),
    (
        r"\bcu[A-Z]\w+ failed: CUDA_ERROR_|TensorRT does not start",
        "the GPU or its driver fails: {words}",
        "nvidia-smi shows whether both work, and what else uses the GPU",
    ),
    # Python models
    (
        r"No module named '(?P<module>(?P<package>[^'.]+)[^']*)'",
        "its Python code imports {module}, which is not installed for the Python that runs the server",
        "pip install {package}",
    ),
    (
        r"failed to run warmup sample.*?: (Failed to process the request.*?, message: )?(?P<detail>.*)",
        "a request of its warmup was answered with an error: {detail}{place}",
        _EDIT,
    ),
    # ONNX graphs, through our onnxruntime backend
    (
        r"(External data path .*does not exist: \"?|cannot load .*No such file or directory \[)(?P<path>[^\"\]\n]+)",
        "the weights beside its ONNX file are missing: {path}",
        _REBUILD,
    ),
    (
        r"cannot load '(?P<path>[^']+)'.*(INVALID_PROTOBUF|No graph was found in the protobuf|does not have a graph)",
        "its ONNX file is damaged: {path}",
        _REBUILD,
    ),
    (
        r"(?P<runtime>onnxruntime \S+) cannot load.*(Unsupported model IR version|is under development)",
        "its ONNX file is of a newer ONNX version than {runtime} reads",
        "pip install --upgrade onnxruntime, or {rebuild} here",
    ),
    # plans
    (
        r"unable to (create TensorRT engine|load plan file to auto complete config): (?P<detail>.*)",
        "its plan cannot be loaded: it is damaged, or of another TensorRT version or GPU ({detail})",
        "where it is served, with the TensorRT of the serving image, {rebuild}",
    ),
    (
        r"(the underlying engine doesn't support batching|first dimension must be dynamic)",
        "max_batch_size is above 0, but the batch of its graph is fixed",
        "set max_batch_size: 0 and the full dims, or export it with a dynamic batch and {rebuild}",
    ),
    # config.pbtxt against graph or plan
    (
        _DISAGREEMENT,
        "config.pbtxt and the model disagree: {words}",
        _EDIT,
    ),
    (
        r"unexpected shape for input '(?P<tensor>[^']+)' for model '[^']*'\. (?P<detail>Expected \S+, got [^.\s]+)",
        "a request of its warmup does not fit the input {tensor}: {detail}",
        _EDIT,
    ),
    # ensembles
    (
        r"contains models that are not available or ambiguous: (?P<members>.*)",
        "its members are not in the repository: {members}",
        _REBUILD,
    ),
    # rules of config.pbtxt
    (
        _BROKEN_RULE,
        "its config.pbtxt breaks a rule of Triton: {words}",
        _EDIT,
    ),
    # ports
    (
        r"failed to start (?P<name>HTTP|GRPC|Metrics) service: .*Socket '(?P<socket>[^']+)' already in use",
        "the {name} port {socket} is in use by another program",
        "stop that program, or serve on another port",
    ),
    # Python models that say themselves what is wrong
    (r"TritonModelException: (?P<detail>.*)", "{detail}", "correct that, or {rebuild}"),
    (
        r"^(?:Internal: )?(?P<error>\w+(?:Error|Exception)): (?P<detail>.*)",
        "its model.py raised {error}: {detail}{place}",
        "correct model.py, or {rebuild}",
    ),
)

_TRACEBACK = re.compile(r"\n+At:\n\s*\S*?(?P<file>[^/\s]+)\((?P<line>\d+)\): .*", re.DOTALL)
_STATUS = re.compile(
    r"^((Internal|Invalid argument|Unavailable|Not found|Unknown|Unsupported|TritonModelException): )+"
)


def explain_words(words: str, *, model: str) -> tuple[str, str, dict[str, object] | None] | None:
    """Return cause and hint for tritonserver's words about one model, None when no rule knows them.

    The third are the fields with which the hint has the model built again, None where it does not.
    """
    place = _TRACEBACK.search(words)
    plain = _TRACEBACK.sub("", words).strip().rstrip(";").strip()
    for pattern, cause, hint in RULES:
        if match := re.search(pattern, plain, re.DOTALL):
            values = {key: (value or "").strip() for key, value in match.groupdict().items()}
            values |= {"words": _STATUS.sub("", plain), "model": model}
            values |= {key: text for key, (text, _) in BUILDS.items()}
            values["place"] = f" ({place['file']} line {place['line']})" if place else ""
            if package := values.get("package"):
                values["package"] = _PACKAGES.get(package, package)
            build = next((fields for key, (_, fields) in BUILDS.items() if f"{{{key}}}" in hint), None)
            return cause.format_map(values), hint.format_map(values), build
    return None
