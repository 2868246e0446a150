"""Which TensorRT a container of tritonserver holds: read from the image, else from a table of what was published.

NVIDIA's page for it, the Frameworks Support Matrix, is not part of Triton's own documentation. Images of TensorRT
itself do not answer for those of Triton: 23.05 had 8.6.1.6 in one and 8.6.1.2 in the other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass

from generator.plan.library import TensorRTVersion

__all__ = ["ContainerTensorRT", "container_tensorrt"]

_REPOSITORY = "nvcr.io/nvidia/tritonserver"
_TAG = re.compile(r"(?P<release>\d\d\.\d\d)(?P<flavour>-[a-z0-9-]+)?")
_IMAGE = re.compile(rf"(?:{re.escape(_REPOSITORY)}):(?P<tag>\S+)")
_TIMEOUT_S = 20.0

_ISSUE = "issue {} of triton-inference-server/server"
_MATRIX = "Triton Inference Server documentation, Release Compatibility Matrix, trtllm-python-py3"
# The plain image, tag YY.MM-py3: what users and maintainers found in it.
_PLAIN = {
    "23.04": ("8.6.1.2", _ISSUE.format(5812)),
    "23.05": ("8.6.1.2", _ISSUE.format(5975)),
    "24.02": ("8.6.3.1", _ISSUE.format(7221)),
    "24.03": ("8.6.3.1", _ISSUE.format(7221)),
    "24.04": ("8.6.3.1", _ISSUE.format(7221)),
}
# The image with TensorRT-LLM, tag YY.MM-trtllm-python-py3, which has another TensorRT than the plain one.
_WITH_LLM = {
    "24.04": ("9.3.0", _MATRIX),
    "24.07": ("10.1.0", _MATRIX),
    "24.08": ("10.3.0", _MATRIX),
    **dict.fromkeys(("24.09", "24.10"), ("10.4.0", _MATRIX)),
    "24.11": ("10.6.0", _MATRIX),
    "24.12": ("10.7.0", _MATRIX),
    **dict.fromkeys(("25.01", "25.02"), ("10.8.0.43", _MATRIX)),
    **dict.fromkeys(("25.03", "25.04", "25.05"), ("10.9.0.34", _MATRIX)),
    **dict.fromkeys(("25.06", "25.07"), ("10.10.0.31", _MATRIX)),
    **dict.fromkeys(("25.08", "25.09", "25.10"), ("10.11.0.33", _MATRIX)),
    **dict.fromkeys(("25.11", "25.12", "26.01", "26.02"), ("10.13.3.9", _MATRIX)),
    **dict.fromkeys(("26.03", "26.04", "26.05", "26.06", "26.07"), ("10.14.1.48", _MATRIX)),
}
_TABLES = {"-py3": _PLAIN, "-py3-min": {}, "-trtllm-python-py3": _WITH_LLM}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerTensorRT:
    """The version, or None where it is not known; `source` says how it is known, or why it is not."""

    image: str
    version: str | None
    source: str


def container_tensorrt(tag_or_image: str) -> ContainerTensorRT:
    """Return the TensorRT of an image.

    Args:
        tag_or_image: `26.10`, `26.10-py3`, `nvcr.io/nvidia/tritonserver:26.10-py3`, or an image of your own.
    """
    image = _full_name(tag_or_image)
    environment, reason = _inspect(image)
    if environment is not None:
        if version := _stated_version(environment):
            return ContainerTensorRT(image=image, version=version, source=f"TRT_VERSION in the image {image}")
        reason = "it does not state TRT_VERSION"
    release = _release(image, environment)
    if release is not None:
        table, month = release
        if month in table:
            version, source = table[month]
            return ContainerTensorRT(image=image, version=version, source=source)
    known = "" if release is None else f", and release {release[1]} is not in trtgen's table"
    return ContainerTensorRT(image=image, version=None, source=f"unknown: {image}: {reason}{known}")


def _full_name(tag_or_image: str) -> str:
    match = _TAG.fullmatch(tag_or_image)
    if match is None:
        return tag_or_image
    return f"{_REPOSITORY}:{match['release']}{match['flavour'] or '-py3'}"


def _release(image: str, environment: dict[str, str] | None) -> tuple[dict[str, tuple[str, str]], str] | None:
    """Return the table and the month of an image; an image of our own names the release that it was made from."""
    match = _IMAGE.fullmatch(image)
    tag = _TAG.fullmatch(match["tag"]) if match else None
    if tag is not None:
        return _TABLES.get(tag["flavour"] or "", {}), tag["release"]
    month = (environment or {}).get("NVIDIA_TRITON_SERVER_VERSION", "")
    return (_PLAIN, month) if re.fullmatch(r"\d\d\.\d\d", month) else None


def _inspect(image: str) -> tuple[dict[str, str] | None, str]:
    """Return the image's environment, or None and the reason. Nothing is pulled."""
    if shutil.which("docker") is None:
        return None, "docker was not found on PATH"
    argv = ["docker", "image", "inspect", "--format", "{{json .Config.Env}}", "--", image]
    try:
        result = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"docker does not answer ({type(error).__name__})"
    if result.returncode != 0:
        words = " ".join(result.stderr.split())
        missing = re.search(r"No such image", words, re.IGNORECASE)
        return None, f"not on this machine; docker pull {image}" if missing else f"docker says: {words[:200]}"
    try:
        pairs = json.loads(result.stdout) or []
        return dict(str(pair).partition("=")[::2] for pair in pairs), ""
    except (ValueError, TypeError):
        return None, "docker's answer is not understood"


def _stated_version(environment: dict[str, str]) -> str | None:
    """Return the four numbers of TRT_VERSION; NVIDIA's images write `8.6.1.2+cuda12.0.1.011` as well."""
    text = environment.get("TRT_VERSION", "").partition("+")[0].partition("-")[0]
    try:
        return str(TensorRTVersion.parse(text))
    except ValueError:
        return None
