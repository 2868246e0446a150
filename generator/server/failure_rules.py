r"""What tritonserver's words mean: a table of (pattern, cause, hint).

The first rule whose pattern is found in the words of a failure decides. Named groups of the pattern, and `model`,
`words` and `rebuild` (the command that builds the model again) can be used in the cause and the hint.

Sources: logs of tritonserver 2.51 on repositories that are broken on purpose (tests/test_server_failures.py), and, for
the TensorRT backend and later releases, the texts in Triton's sources (core, backend, tensorrt_backend).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Explanation", "describe_rules", "explain_words", "name_rebuild"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a model failed and the next command or edit; neither is known for words that no rule matches."""

    cause: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: str
    cause: str
    hint: str


_REBUILD = "{rebuild}"
_EDIT = "correct {model}/config.pbtxt, or write it again: {rebuild} --discard-edits"
_CONTAINER = "serve it with --container"
_ON_TARGET = "build the plan where it is served, with the TensorRT of the serving image, then: {rebuild}"

# Packages whose import name differs from the name that pip installs.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml", "torch": "torch"}
_MEMBER_SUFFIXES = ("_preprocess", "_classifier")

_RULES = (
    # first, since its words repeat those of the member
    _Rule(
        r"depends on '(?P<member>[^']+)' which has no loaded version",
        "its member {member} did not load",
        "repair {member} first",
    ),
    # the shape of the repository
    _Rule(
        r"failed to open text file for read (?P<folder>.*/(?P<name>[^/]+))/config\.pbtxt",
        "the folder {name} in the repository's root is not a model: it has no config.pbtxt (a leftover?)",
        "remove it or move it elsewhere: {folder}",
    ),
    _Rule(
        r"failed to open text file for read (?P<path>.+/warmup/.+?)(: No such|$)",
        "the data for its warmup is missing: {path}",
        _REBUILD,
    ),
    _Rule(
        r"failed to open text file for read (?P<path>.+?): No such",
        "the label file that config.pbtxt names is missing: {path}",
        _REBUILD,
    ),
    _Rule(
        r"label file path '(?P<path>[^']*)' .*is outside",
        "the label file {path} lies outside the model's directory, which Triton refuses",
        "copy it into {model}/ and set label_filename to its bare name",
    ),
    _Rule(
        r"version (?P<version>\d+) is specified for model",
        "its version_policy names version {version}, but there is no directory {model}/{version}",
        "build that version, or change version_policy in {model}/config.pbtxt",
    ),
    _Rule(
        r"at least one version must be available",
        "it has no version directory: expected {model}/1 or another number that its version_policy takes",
        _REBUILD,
    ),
    _Rule(
        r"unexpected directory name '(?P<folder>[^']+)' for model '(?P<name>[^']+)'",
        "its directory is called {folder}, but config.pbtxt says the name is {name}",
        "rename the directory to {name}, or correct `name` in {folder}/config.pbtxt",
    ),
    _Rule(
        r"failed to read text proto from (?P<path>.+?/config\.pbtxt)(?: \((?P<detail>.*)\))?",
        "its config.pbtxt cannot be read: {detail}",
        "correct {path}, or write it again: {rebuild} --discard-edits",
    ),
    # backends and devices
    _Rule(
        r"unable to find backend library for backend 'tensorrt'",
        "it needs the TensorRT backend, which this tritonserver does not have",
        _CONTAINER,
    ),
    _Rule(
        r"unable to find backend library for backend '(?P<backend>[^']+)'",
        "it needs the backend {backend}, which this tritonserver does not have (it has python and onnxruntime)",
        _CONTAINER,
    ),
    _Rule(
        r"kind KIND_GPU but no GPUs are available",
        "its instance_group asks for a GPU (KIND_GPU), and none is available here",
        "serve on a machine with a GPU; for the CPU set kind: KIND_CPU in {model}/config.pbtxt, or, if it is a plan, "
        "build the model again with --target onnxruntime",
    ),
    _Rule(
        r"TensorRT backend supports only GPU device",
        "its instance_group asks for the CPU, but a TensorRT plan runs on a GPU only",
        "set kind: KIND_GPU in {model}/config.pbtxt",
    ),
    # memory and processes
    _Rule(
        r"--shm-size|shared memory.*No space left on device",
        "there is too little shared memory in /dev/shm: each instance of a Python model takes 1 MB and more",
        "in a container give --shm-size=1g; elsewhere free space in /dev/shm (df -h /dev/shm)",
    ),
    _Rule(
        r"out of memory on GPU (?P<gpu>\d+): an instance needs at least (?P<need>\d+ MiB), (?P<free>\d+ MiB) of "
        r"(?P<total>\d+ MiB) are free; at most (?P<most>\d+) of them fit",
        "the memory of GPU {gpu} is exhausted: an instance needs {need}, {free} of {total} are free",
        "lower instances.classifier (at most {most} fit when nothing else is there), or end what else uses the GPU: "
        "{rebuild}",
    ),
    _Rule(
        r"out of memory on GPU (?P<gpu>\d+): not even the CUDA context",
        "the memory of GPU {gpu} is exhausted: not even the CUDA context of another process fits",
        "lower instances.classifier, or end what else uses the GPU (nvidia-smi shows it): {rebuild}",
    ),
    # Triton opens a stream of its own for each instance on a GPU, before the backend does anything
    _Rule(
        r"unable to create stream: out of memory|unable to get CUDA device properties for [^:]+: out of memory",
        "the memory of a GPU is exhausted: not even the CUDA context of tritonserver itself fits, or one stream more",
        "lower instances.classifier, or end what else uses the GPU (nvidia-smi shows it): {rebuild}",
    ),
    _Rule(
        r"[Oo]ut of memory|CUDA_ERROR_OUT_OF_MEMORY|MemoryError|bad_alloc",
        "there is too little memory to load it",
        "lower `count` of instance_group in {model}/config.pbtxt, or free memory",
    ),
    _Rule(
        r"Stub process '[^']*' is not healthy",
        "the Python process of the model ended while it loaded: it crashed, or the system had no memory left",
        "dmesg | tail",
    ),
    _Rule(
        r"error while loading shared libraries: (?P<library>\S+?):",
        "the Python process of the models cannot start: the library {library} was not found",
        "apt-get install {package}",
    ),
    _Rule(
        r"unable to load shared library: (?P<folder>/\S*)/trtgen-\S+ failed to map segment",
        "the temporary directory {folder} does not allow programs to run (noexec)",
        "name another one: run it with TMPDIR=/var/tmp",
    ),
    # our TensorRT backend
    _Rule(
        r"no GPU for model '[^']*' \((?P<detail>.*?)\): a TensorRT plan runs on an NVIDIA GPU only",
        "its plan needs a GPU, and there is none: {detail}",
        "serve it where the GPU is, or build it for this host: {rebuild} after setting target: onnxruntime",
    ),
    _Rule(
        r"no working tensorrt \((?P<detail>.*)\): install",
        "the Python that serves plans has no working TensorRT: {detail}",
        "give trtgen's extra tensorrt to the Python that serves: in trtgen's checkout: pip install -e '.[tensorrt]'",
    ),
    _Rule(
        r"lacks cuda-python",
        "the Python that serves plans lacks cuda-python, through which they reach the GPU",
        "pip install cuda-python",
    ),
    _Rule(
        r"unable to read '(?P<path>.+?)': (?P<detail>.*)",
        "its file cannot be read ({detail}): {path}",
        "let the user that runs the server read {path}",
    ),
    _Rule(
        r"non-linear IO format, which is not supported|is a shape tensor, which|unsupported datatype \w+ of tensor|"
        r"depends on data, which",
        "its plan cannot be served here: {words}",
        _REBUILD,
    ),
    _Rule(
        r"\bcu[A-Z]\w+ failed: CUDA_ERROR_(?!OUT_OF_MEMORY)|TensorRT does not start",
        "the GPU or its driver fails: {words}",
        "nvidia-smi shows whether both work, and what else uses the GPU",
    ),
    # Python models
    _Rule(
        r"Python model file not found in '(?P<path>[^']+)'",
        "its Python code is missing: {path}",
        _REBUILD,
    ),
    _Rule(
        r"No module named '(?P<module>[^']+)'",
        "its Python code imports {module}, which is not installed for the Python that runs the server",
        "pip install {package}",
    ),
    _Rule(
        r"SyntaxError: (?P<detail>.*)",
        "its model.py is not valid Python: {detail}",
        "correct model.py, or write it again: {rebuild}",
    ),
    _Rule(
        r"has no attribute 'TritonPythonModel'",
        "its model.py does not define the class TritonPythonModel",
        "correct model.py, or write it again: {rebuild}",
    ),
    _Rule(
        r"failed to run warmup sample.*?: "
        r"(Failed to process the request\(s\) for model '[^']*', message: )?(?P<detail>.*)",
        "a request of its warmup was answered with an error: {detail}{place}",
        "correct the warmup in {model}/config.pbtxt, or write it again: {rebuild} --discard-edits",
    ),
    # ONNX graphs, through our onnxruntime backend
    _Rule(
        r"(External data path .*does not exist: \"?|cannot load .*No such file or directory \[)(?P<path>[^\"\]\n]+)",
        "the weights beside its ONNX file are missing: {path}",
        _REBUILD,
    ),
    _Rule(
        r"cannot load '(?P<path>[^']+)'.*(INVALID_PROTOBUF|No graph was found in the protobuf|does not have a graph)",
        "its ONNX file is damaged: {path}",
        _REBUILD,
    ),
    _Rule(
        r"(?P<runtime>onnxruntime \S+) cannot load.*(Unsupported model IR version|is under development)",
        "its ONNX file is of a newer ONNX version than {runtime} reads",
        "pip install --upgrade onnxruntime, or build it again here: {rebuild}",
    ),
    _Rule(
        r"(?P<runtime>onnxruntime \S+) cannot load '(?P<path>[^']+)' for model '[^']*': (?P<detail>.*)",
        "{runtime} cannot load {path}: {detail}",
        _REBUILD,
    ),
    _Rule(
        r"parameter '(?P<key>[^']+)' of model '[^']*' is (?P<detail>.*)",
        "the parameter {key} in its config.pbtxt is {detail}",
        "correct {model}/config.pbtxt",
    ),
    # files and plans
    _Rule(
        r"unable to find '(?P<path>[^']+)' for model",
        "its file is missing: {path}",
        _REBUILD,
    ),
    _Rule(
        r"unable to create TensorRT engine: (?P<detail>.*)",
        "its plan cannot be loaded: it is damaged, or of another TensorRT version or GPU ({detail})",
        _ON_TARGET,
    ),
    _Rule(
        r"unable to load plan file to auto complete config: (?P<path>.+)",
        "its plan cannot be loaded: it is damaged, or of another TensorRT version or GPU: {path}",
        _ON_TARGET,
    ),
    _Rule(
        r"specified max-batch (?P<wanted>\d+) but TensorRT engine only supports max-batch (?P<actual>\d+)",
        "config.pbtxt says max_batch_size {wanted}, but the plan's optimization profile ends at {actual}",
        "set max_batch_size: {actual} in {model}/config.pbtxt, or build a plan for {wanted}",
    ),
    _Rule(
        r"(the underlying engine doesn't support batching|first dimension must be dynamic)",
        "max_batch_size is above 0, but the batch of its graph is fixed",
        "export it with a dynamic batch ({rebuild}), or set max_batch_size: 0 and the full dims",
    ),
    _Rule(
        r"invalid profile (?P<profile>-?\d+)|failed to find any Optimization Profile|whether batching is supported",
        "its instance_group and the plan's optimization profiles do not fit: {words}",
        _EDIT,
    ),
    # config.pbtxt against graph or plan
    _Rule(
        r"unexpected datatype (?P<first>TYPE_\w+) for inference (?P<kind>\w+) '(?P<tensor>[^']+)'"
        r"(, expecting (?P<second>TYPE_\w+)| of model '[^']*', the graph has (?P<graph>TYPE_\w+))",
        "config.pbtxt and the model disagree on the data type of the {kind} {tensor}: {words}",
        _EDIT,
    ),
    _Rule(
        r"unexpected inference (?P<kind>input|output) '(?P<tensor>[^']+)'|expected configuration for (input|output)|"
        r"configuration expects \d+ (input|output)s|is missing from the configuration",
        "config.pbtxt and the model disagree on the names of inputs or outputs: {words}",
        _EDIT,
    ),
    _Rule(
        r"the (model|graph) (expects|has) \d+ dimensions|the graph has shape|"
        r"model configuration specified invalid shape|non-linear IO format",
        "config.pbtxt and the model disagree on dims: {words}",
        _EDIT,
    ),
    _Rule(
        r"unexpected shape for input '(?P<tensor>[^']+)' for model '[^']*'\. (?P<detail>Expected \S+, got [^.\s]+)",
        "a request of its warmup does not fit the input {tensor}: {detail}",
        _EDIT,
    ),
    # ensembles
    _Rule(
        r"allows maximum batch size (?P<own>\d+), but it contains model (?P<member>\S+) which only allows "
        r"maximum batch size to be (?P<limit>\d+)",
        "the ensemble's max_batch_size is {own}, but its member {member} takes {limit} at most",
        "set max_batch_size: {limit} in {model}/config.pbtxt",
    ),
    _Rule(
        r"contains models that are not available or ambiguous: (?P<members>.*)",
        "its members are not in the repository: {members}",
        _REBUILD,
    ),
    _Rule(
        r"inconsistent data type: (?P<detail>.*)",
        "two members of the ensemble disagree on a data type: {detail}",
        _EDIT,
    ),
    _Rule(
        r"inconsistent shape: (?P<detail>.*)",
        "two members of the ensemble disagree on a shape: {detail}",
        _EDIT,
    ),
    _Rule(
        r"is mapping to non-existing (?P<kind>input|output) (?P<tensor>\S+) in model (?P<member>\S+)",
        "the ensemble maps to the {kind} {tensor}, which its member {member} does not have",
        _EDIT,
    ),
    _Rule(
        r"is not mapped to any ensemble tensors|for ensemble .* is not (used|written)|is unused in ensemble|"
        r"can appear in an output map only once|must specify '\w+' (for|in step)|"
        r"(should not|can not) be specified for ensemble",
        "the ensemble's config.pbtxt breaks a rule of Triton: {words}",
        _EDIT,
    ),
    # rules of config.pbtxt
    _Rule(
        r"dynamic batching preferred size must be|default priority level must be|Only one priority level is allowed|"
        r"must specify 'dims'|require 3 dims|specifies profile field|unexpected 'platform' and 'backend' pair|"
        r"graph (lower bound )?spec expects|Response Cache does not|Supported values are|does not specify|"
        r"Invalid stub name|Incorrect value for FORCE_CPU_ONLY",
        "its config.pbtxt breaks a rule of Triton: {words}",
        _EDIT,
    ),
    # ports
    _Rule(
        r"failed to start (?P<name>HTTP|GRPC|Metrics) service: .*Socket '(?P<socket>[^']+)' already in use",
        "the {name} port {socket} is in use by another program",
        "stop that program or give other ports (--http-port, --grpc-port, --metrics-port)",
    ),
    # Python models that say themselves what is wrong
    _Rule(
        r"TritonModelException: (?P<detail>.*)",
        "{detail}",
        _EDIT,
    ),
    _Rule(
        r"^(?:Internal: )?(?P<error>\w+(?:Error|Exception)): (?P<detail>.*)",
        "its model.py raised {error}: {detail}{place}",
        "correct model.py, or write it again: {rebuild}",
    ),
)

_COMPILED = [(re.compile(rule.pattern, re.DOTALL), rule) for rule in _RULES]
_TRACEBACK = re.compile(r"\n+At:\n\s*\S*?(?P<file>[^/\s]+)\((?P<line>\d+)\): .*", re.DOTALL)
_STATUS = re.compile(
    r"^((Internal|Invalid argument|Unavailable|Not found|Unknown|Unsupported|TritonModelException): )+"
)


def describe_rules() -> list[tuple[str, str, str]]:
    """Return (pattern, cause, hint) of every rule, for the documentation."""
    return [(rule.pattern, rule.cause, rule.hint) for rule in _RULES]


def name_rebuild(stem: str) -> str:
    """Return the command that builds the model of this public name again."""
    return f"trtgen build-repo {stem}"


def explain_words(words: str, *, model: str, rebuild: Callable[[str], str] = name_rebuild) -> Explanation | None:
    """Return cause and hint for tritonserver's words about one model, None when no rule knows them.

    `rebuild` gives the command that builds a model again, from its public name.
    """
    place = _TRACEBACK.search(words)
    plain = _TRACEBACK.sub("", words).strip().rstrip(";").strip()
    found = next(((match, rule) for pattern, rule in _COMPILED if (match := pattern.search(plain))), None)
    if found is None:
        return None
    match, rule = found
    values = {key: (value or "").strip() for key, value in match.groupdict().items()}
    stem = model
    for suffix in _MEMBER_SUFFIXES:
        stem = stem.removesuffix(suffix)
    values |= {"words": _STATUS.sub("", plain), "model": model, "rebuild": rebuild(stem)}
    values["place"] = f" ({place['file']} line {place['line']})" if place else ""
    if "module" in values:
        top = values["module"].split(".")[0]
        values["package"] = _PACKAGES.get(top, top)
    if "library" in values:
        values["package"] = values["library"].split(".so")[0]
    return Explanation(cause=rule.cause.format_map(values), hint=rule.hint.format_map(values))
