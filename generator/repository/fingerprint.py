"""What a build follows from, as two hashes, without importing torch: the test for "nothing changed"."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator import __version__
from generator.errors import SourceError
from generator.files import hash_file
from generator.graph.model import external_data_files, load_proto
from generator.packages import EXPORT_PACKAGES, installed_packages
from generator.render import template_root
from generator.triton.fused import read_decoder_files, read_fused_files

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generator.spec.model import ModelSpec

# Raised when the exporter, the wrapping or the random weights change what comes out of the same inputs.
_EXPORT_FORMAT = 2
_ARTIFACT_FIELDS = (
    "source", "architecture", "raw", "seed", "classes", "labels", "image_size", "target", "precision", "activation",
    "output_tensor",
)  # fmt: skip
# Whose models have a name of their own besides the spec's.
_REGISTRIES = ("torchvision", "checkpoint", "timm")
# Whose code the network of a source is.
_SOURCE_PACKAGES = {"timm": ("timm",), "huggingface": ("transformers",)}


def fingerprint(spec: ModelSpec) -> dict[str, str]:
    """Return the hashes `artifact` (the graph follows from it) and `configuration` (everything else does).

    Raises:
        SourceError: A file that the spec names cannot be read.
    """
    # what is not set is left out: a field that a later trtgen has does not build anything anew
    data = _drop_none(spec.as_record())
    templates = {path.relative_to(template_root()).as_posix(): hash_file(path) for path in _template_files()}
    # nothing of others follows from these
    unused = ("fused/",) * (spec.layout != "fused") + ("preprocess_gpu/",) * (spec.decode != "gpu")
    templates = {path: digest for path, digest in templates.items() if not path.startswith(unused)}
    files = {field: _hash_input(path) for field, path in _input_files(spec)}
    packages = installed_packages()
    artifact = {
        "format": _EXPORT_FORMAT,
        "spec": {field: data[field] for field in _ARTIFACT_FIELDS if field in data and field not in files},
        # a file counts by its content, wherever it lies
        **({"hub": spec.huggingface} if spec.is_on_hub else {}),
        **({"function": spec.factory.rpartition(":")[2]} if spec.factory is not None else {}),
        "weights": None if "weights" in files else spec.weights,
        # an architecture left out follows from the name
        "architecture": spec.registry_name if spec.source in _REGISTRIES else spec.source,
        "recipe": data["recipe"],
        "files": files,
        "packages": {name: packages[name] for name in (*EXPORT_PACKAGES, *_SOURCE_PACKAGES.get(spec.source, ()))},
        "preprocess": templates["preprocess/1/model.py"],
    }
    if spec.detection is not None:
        reading = ("layout", "boxes", "units", "background", "candidates")
        artifact["detection"] = {field: data["detection"].get(field) for field in reading}
        artifact["postprocess"] = templates["postprocess/1/model.py"]
    if spec.layout == "fused":
        code = read_fused_files("tensorrt" if spec.is_tensorrt else "onnxruntime")
        artifact["fused"] = {name: hashlib.sha256(content).hexdigest() for name, content in code.items()}
    elif spec.decode == "gpu":
        code = read_decoder_files()
        artifact["decode"] = {name: hashlib.sha256(content).hexdigest() for name, content in code.items()}
    if spec.is_tensorrt:
        artifact["plan"] = _plan_inputs(spec, data)
    configuration = {
        "trtgen": __version__,
        "spec": data,
        "files": files,
        "templates": templates,
        "pillow": packages["pillow"],
        "instances": list(spec.instance_counts().values()),
    }
    return {"artifact": _hash_json(artifact), "configuration": _hash_json(configuration)}


def _drop_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _drop_none(one) for name, one in value.items() if one is not None}


def _plan_inputs(spec: ModelSpec, data: dict[str, Any]) -> dict[str, Any]:
    """What a plan follows from besides its graph: it runs on the GPU and with the TensorRT that built it."""
    from generator.gpu import find_gpu, why_no_gpu
    from generator.plan.library import installed_version

    gpu = None if why_no_gpu() else find_gpu()
    return {
        "options": {key: value for key, value in data["plan"].items() if key not in ("timing_cache", "cuda_graphs")},
        "profiles": [profile.model_dump() for profile in spec.profile_batches()],
        "keep": data["keep"],
        "tensorrt": str(installed_version()),
        "gpu": [gpu.name, gpu.compute_capability] if gpu else None,
    }


def _template_files() -> Iterable[Path]:
    files = (path for path in template_root().rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sorted(path for path in files if path.parent.name != "reports")  # no part of a repository


def _input_files(spec: ModelSpec) -> Iterable[tuple[str, Path]]:
    if spec.onnx is not None:
        yield "onnx", spec.onnx
        model = load_proto(spec.onnx, weights=False)
        yield from ((f"onnx:{name}", spec.onnx.parent / name) for name in external_data_files(model))
    if spec.weights_file is not None:
        yield "weights", spec.weights_file
    if spec.factory is not None:
        from generator.sources.factory import find_file

        yield "factory", find_file(spec.factory)
    if spec.huggingface is not None and not spec.is_on_hub:
        from generator.sources.huggingface import read_files

        yield from ((f"huggingface:{path.name}", path) for path in read_files(Path(spec.huggingface)))
    if spec.pt2 is not None:
        yield "pt2", spec.pt2
    if spec.source == "export" and spec.onnx is not None:
        yield "export", spec.onnx.with_name("export.json")
    if isinstance(spec.labels, Path):
        yield "labels", spec.labels
    if spec.calibration is not None:
        paths = sorted(path for path in spec.calibration.rglob("*") if path.is_file())
        yield from ((f"calibration:{path.relative_to(spec.calibration).as_posix()}", path) for path in paths)


def _hash_input(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise SourceError(
            msg, hint="give the path of an existing file; in models.yaml it is relative to that file"
        ) from error


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
