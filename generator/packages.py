"""Who made something, and with which packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from generator import __version__

# The ones that decide what an exported graph looks like.
EXPORT_PACKAGES = ("torch", "torchvision", "onnx", "onnxscript")
_PACKAGES = (
    *EXPORT_PACKAGES, "onnxruntime", "onnxconverter-common", "numpy", "pillow", "tritonclient", "nvidia-pytriton",
    "tensorrt", "cuda-python", "timm", "transformers",
)  # fmt: skip


def installed_packages() -> dict[str, str]:
    """Return the version of each package that matters, "absent" where it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def made_by() -> str:
    """Return who made a repository: name and version."""
    return f"trtgen {__version__}"
