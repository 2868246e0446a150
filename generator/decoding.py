"""Where images are decoded: `decode: auto` in a spec becomes cpu or gpu on this host, with the reason.

Run as a program it is the probe: it decodes a photograph on the GPU in two sizes and compares it with Pillow's
pixels. A process of its own, since these libraries may end the one that they are in.
"""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, MissingDependencyError, SpecError, TrtgenError
from generator.runtime.gpu_chain import PACKAGES
from generator.runtime.gpu_images import open_gpu_images, why_on_cpu
from generator.target import settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from generator.repository import Record
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe

_TIMEOUT_S = 120.0
_USE_CPU: dict[str, Any] = {"hint": "decode on the CPU", "fields": {"decode": "cpu"}}


def choose_decode(
    spec: ModelSpec, find_recipe: Callable[[ModelSpec], Recipe], published: Record | None
) -> tuple[ModelSpec, str]:
    """Return the spec with `decode` settled, and with the layout that follows, and why; no reason where none is needed.

    Args:
        spec: With its target settled.
        find_recipe: Called only where a GPU might decode.
        published: What the model is published as, whose layout stays.

    Raises:
        TrtgenError: The spec says gpu, and that cannot be.
    """
    on_cpu = spec.model_copy(update={"decode": "cpu"})
    if spec.decode == "cpu" or (spec.decode == "auto" and not spec.is_tensorrt):
        return on_cpu, ""
    try:
        _check(spec, find_recipe)
    except TrtgenError as error:
        if spec.decode == "gpu" or not isinstance(error, (DeviceError, MissingDependencyError, SpecError)):
            raise
        install = f" ({error.hint})" if isinstance(error, MissingDependencyError) else ""
        return on_cpu, f"cpu: {error.message}{install}"
    layout = spec.layout or _choose_layout(spec, published)
    settled = settle(spec, {"decode": "gpu", "layout": layout})
    return settled, f"gpu, {layout}: nvImageCodec and CV-CUDA are here, and make Pillow's pixels"


def _check(spec: ModelSpec, find_recipe: Callable[[ModelSpec], Recipe]) -> None:
    """Refuse what cannot be decoded on the GPU, the cheap reasons first.

    Raises:
        MissingDependencyError: A package is not installed.
        DeviceError: No GPU, or one that does not do it.
        SpecError: The recipe is one for Pillow.
    """
    from generator.gpu import find_gpu

    for package in PACKAGES:
        if not _is_installed(package):
            why = "it decodes or resizes images on the GPU, and needs NVIDIA's driver 580 or later"
            raise MissingDependencyError(package, extra="gpu-decode", why=why, fields={"decode": "cpu"})
    find_gpu()
    if reason := why_on_cpu(find_recipe(spec)):
        raise SpecError(f"{spec.name}: images cannot be decoded on the GPU: {reason}", **_USE_CPU)
    if reason := _probe():
        raise DeviceError(f"images cannot be decoded on this GPU: {reason}", **_USE_CPU)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _choose_layout(spec: ModelSpec, published: Record | None) -> str:
    """One process for decoding and the network is the faster way, where nothing says otherwise."""
    from generator.task import find_task

    stated = [*spec.instances.model_dump().values(), *spec.config.model_dump().values()]
    was_ensemble = published is not None and published.spec.get("layout") != "fused"
    can_be_fused = spec.is_tensorrt and find_task(spec.task).fused is not None and not spec.response_cache
    return "fused" if can_be_fused and not was_ensemble and stated.count(None) == len(stated) else "ensemble"


def _probe() -> str:
    """Return why the GPU does not decode as Pillow does; empty where it does."""
    command = [sys.executable, "-m", "generator.decoding"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"a photograph was not decoded within {_TIMEOUT_S:.0f} s"
    if done.returncode == 0:
        return done.stdout.strip()
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return f"the process that tried it ended with {done.returncode}: {last}"


def probe_gpu() -> str:
    """Decode a photograph with the usual recipe in this process; return what is wrong, empty if nothing is.

    It is decoded once more as a 4:2:0 file that need not be resized, which would hide some of what it is off.
    nvJPEG 12.4 of CUDA 12 was up to 3 levels off, 13.3 of CUDA 13 at most 1 (H100, driver 580, 2026-11-26).
    """
    import numpy as np

    from generator.images.served_pixels import are_alike, load_step
    from generator.runtime.device import EngineError
    from generator.spec.recipe import IMAGENET

    step, said = load_step("preprocess"), list[str]()
    recipe = step.Recipe({name: {"string_value": value} for name, value in IMAGENET.parameters().items()})
    photograph = Path(__file__).with_name("assets").joinpath("flower.jpg").read_bytes()
    files = [photograph, _make_small(step.open_image(photograph, recipe), recipe)]
    try:
        images = open_gpu_images(step, recipe, ordinal=0, threads=1, warn=said.append)
    except EngineError as error:
        return str(error)
    pixels = images.decode(files).pixels
    if images.on_gpu < len(files):
        return "; ".join(said) or "its JPEG engine did not take a photograph"
    wanted = np.array([step.decode(data, recipe) for data in files])
    if are_alike(pixels, wanted, on_gpu=True).all():
        return ""
    levels = np.abs(pixels.astype(int) - wanted).max()
    return (
        f"a photograph is up to {levels} levels off Pillow's pixels, as with nvJPEG of CUDA 12: install the extra "
        "gpu-decode in place of it, which is for CUDA 13 and needs NVIDIA's driver 580 or later"
    )


def _make_small(image: Any, recipe: Any) -> bytes:
    """Return the image as a 4:2:0 JPEG of the size that the recipe resizes it to."""
    stream = io.BytesIO()
    image.resize(recipe.resized(*image.size)).save(stream, "JPEG", quality=90, subsampling=2)
    return stream.getvalue()


if __name__ == "__main__":
    sys.stdout.write(f"{probe_gpu()}\n")
