"""Which TensorRT an image of tritonserver holds: only the image itself says so.

Images of TensorRT do not answer for those of Triton: 23.05 had 8.6.1.6 in one and 8.6.1.2 in the other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess

from generator.plan.library import TensorRTVersion

_TIMEOUT_S = 20.0


def read_image_version(image: str) -> tuple[str | None, str]:
    """Return the version of the TensorRT in an image; where it is not known, None and the reason."""
    environment, reason = _inspect(image)
    if environment is None:
        return None, reason
    # NVIDIA's images write `8.6.1.2+cuda12.0.1.011` as well
    text = environment.get("TRT_VERSION", "").partition("+")[0].partition("-")[0]
    try:
        return str(TensorRTVersion.parse(text)), ""
    except ValueError:
        return None, "it does not state TRT_VERSION"


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
