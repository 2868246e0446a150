"""ONNX files and plans."""

from generator.rules.rule import Rule

RULES = (
    Rule(
        id="onnx-external-data",
        says=r"(External data path .*does not exist: \"?|cannot load .*No such file or directory \[)"
        r"(?P<path>[^\"\]\n]+)",
        cause="the weights beside its ONNX file are missing: {path}",
        fix="copy them there",
        build="rebuild",
        seen_in=("onnx", "log"),
    ),
    Rule(
        id="onnx-damaged",
        says=r"cannot load '(?P<path>[^']+)'.*"
        r"(INVALID_PROTOBUF|No graph was found in the protobuf|does not have a graph)",
        cause="its ONNX file is damaged: {path}",
        fix="copy it again",
        build="rebuild",
        seen_in=("onnx", "log"),
    ),
    Rule(
        id="onnx-newer",
        says=r"(?P<runtime>onnxruntime \S+) cannot load.*(Unsupported model IR version|is under development)",
        cause="its ONNX file is of a newer ONNX version than {runtime} reads",
        fix="pip install --upgrade onnxruntime, or export it with an older opset",
        build="rebuild",
    ),
    Rule(
        id="onnx-ir-newer",
        says=r"Unsupported model IR version: (?P<made>\d+), max supported IR version: (?P<known>\d+)",
        cause="its ONNX file has the IR version {made}, the server reads up to {known}",
        fix="export it with an older onnx, or serve it with a newer release",
        build="rebuild",
        seen_in=("onnx", "log"),
    ),
    Rule(
        id="onnx-opset-newer",
        says=r"Opset (?P<made>\d+) is under development and support for this is limited.*?till opset (?P<known>\d+)",
        cause="its ONNX file has opset {made}, the server knows up to {known}",
        fix="export it with an older opset, or serve it with a newer release",
        build="rebuild",
        seen_in=("onnx", "log"),
    ),
    Rule(
        id="plan-version",
        says=r"engine plan file is not compatible with this version of TensorRT, expecting library version "
        r"(?P<runs>[\d.]+) got (?P<made>[\d.]+)",
        cause="its plan was built with TensorRT {made}, the server has {runs}: a plan runs on what built it",
        fix="build the plan again with the TensorRT of the serving image",
        build="rebuild",
        seen_in=("plan", "log"),
    ),
    Rule(
        id="plan-gpu",
        says=r"generated on an incompatible device|expecting compute (?P<runs>[\d.]+) got compute (?P<made>[\d.]+)",
        cause="its plan was built on a GPU of another compute capability ({made}) than that of the server ({runs})",
        fix="build the plan again on the GPU that serves it",
        build="rebuild",
        seen_in=("plan", "log"),
    ),
    Rule(
        id="plan-capability-key",
        cause="{key!r} in cc_model_filenames is not a compute capability: Triton looks for 9.0, major and minor, and "
        "takes the default file without a word",
        fix="write it as nvidia-smi --query-gpu=compute_cap --format=csv says it, in {model}/config.pbtxt",
        build="rewrite",
        seen_in=("files",),
    ),
    Rule(
        id="plan-capability-missing",
        cause="the plan for compute capability {capability} is missing: {path}",
        fix="copy it there, or remove it from cc_model_filenames in {model}/config.pbtxt",
        seen_in=("files",),
    ),
    Rule(
        id="plan-capability-other",
        cause="{path} is the plan for compute capability {capability}, and was built on a GPU of {made}",
        fix="name it under its own in cc_model_filenames of {model}/config.pbtxt, or build it on the other GPU",
        seen_in=("plan",),
    ),
    Rule(
        id="plan-capability-default",
        severity="warning",
        cause="a GPU of another compute capability than {capabilities} takes {path} without a word, and nothing says "
        "that this plan runs on others",
        fix="move it away, or build it with hardware_compatibility ampere-plus",
        seen_in=("plan",),
    ),
    Rule(
        id="plan-capability-differs",
        cause="{other} has other {what} than {one}, and one config.pbtxt is for both",
        fix="build both from the same graph with the same profiles",
        seen_in=("plan",),
    ),
    Rule(
        id="plan-damaged",
        cause="its plan cannot be loaded: {detail}",
        fix="{advice}",
        seen_in=("plan",),
    ),
    Rule(
        id="plan-version-unknown",
        severity="note",
        cause="its plan was built with TensorRT {made}; which TensorRT release {release} has is not known",
        fix="docker run --rm IMAGE sh -c 'echo $TRT_VERSION' tells an image's: compare them",
        seen_in=("plan",),
    ),
    Rule(
        id="plan-incompatible",
        says=r"unable to (create TensorRT engine|load plan file to auto complete config): (?P<detail>.*)",
        cause="its plan cannot be loaded: it is damaged, or of another TensorRT version or GPU ({detail})",
        fix="build the plan where it is served, with the TensorRT of the serving image",
        build="rebuild",
    ),
)
