"""Which backend a model has, and which file it loads, by core's own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generator.doctor.repository import is_file, is_folder, is_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from generator.doctor.repository import ConfiguredModel

# platform -> backend, and the file that a version holds (core's constants.h and model_config_utils.cc)
PLATFORMS = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}
FILES = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "pytorch": "model.pt",
    "openvino": "model.xml",
    "python": "model.py",
    "dali": "model.dali",
}


def find_backend(model: ConfiguredModel) -> str:
    """Return the backend that a configuration states or that its files imply; empty where nothing does."""
    config = model.config
    if config.platform == "ensemble":
        return "ensemble"
    if config.backend or config.platform:
        return str(config.backend or PLATFORMS.get(config.platform, ""))
    if config.default_model_filename:
        return _imply(config.default_model_filename)
    # core looks into the folder whose name comes first, a version or not
    first = next((Path(entry.path) for entry in model.entries if is_folder(entry)), None)
    if first is not None:
        for backend, file in FILES.items():
            if not is_missing(first / file):
                return backend
    # a folder called NAME.BACKEND is of that backend
    return model.name.partition(".")[2]


def find_model_files(model: ConfiguredModel, backend: str) -> Iterator[Path]:
    """Yield the files of every version that is served, where they are there: the default, those for one GPU only."""
    default = model.config.default_model_filename or FILES.get(backend, "")
    for_capability = {} if backend == "python" else model.config.cc_model_filenames  # whose file is model.py always
    names = dict.fromkeys([default, *for_capability.values()])
    for version in model.served_versions:
        for name in names:
            path = model.path / str(version) / name
            if is_file(path):
                yield path


def _imply(name: str) -> str:
    return next((backend for backend, file in FILES.items() if file == name), "")
