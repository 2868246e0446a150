"""Encoded images become pixels on the GPU where that gives Pillow's pixels, all others on the CPU."""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from .cpu_images import CpuImages
from .decoded import Decoded
from .device import Device, EngineError, call
from .engine import Pinned
from .gpu_chain import ERRORS, FILTERS, DeviceArray, GpuChain, Task, import_libraries, split_tasks
from .jpeg import read_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

# The preprocessing step resizes a strip in a way of its own: no more than so many times the crop's pixels.
_MOST_WASTE = 16
_LEAST_EDGE = 16  # pixels; a line of a few was 2 levels off in all of its values
# Of the GPU's memory a piece takes at most this share, and no more than 512 MiB; a larger image goes to the CPU.
_SHARE, _MOST_BYTES = 64, 1 << 29
_FLOAT_BYTES = 4  # CV-CUDA resizes rows first, into floats
# Images are decoded in pieces of so many, by so many decoders in turn, while the network runs on those that are ready.
_PIECE, _CHAINS = 32, 2


def why_on_cpu(recipe: Any) -> str:
    """Return why images of this recipe (`generator.spec.recipe.Recipe`) are not decoded on the GPU; empty if they are.

    What is covered was measured to be Pillow's pixels, as `generator.images.served_pixels.are_alike` says.
    """
    if recipe.interpolation.upper() not in FILTERS:
        return f"interpolation {recipe.interpolation} is done by Pillow only"
    if recipe.fit.startswith("letterbox") and len(set(recipe.fill)) > 1:
        return f"a letterbox filled with {tuple(recipe.fill)}, whose channels differ, is made by Pillow only"
    if recipe.channels == "grey":
        return "grey pixels are made by Pillow only"
    if recipe.exif == "apply":
        return "images are turned as EXIF says by Pillow only"
    return ""


def open_gpu_images(
    step: Any, recipe: Any, *, ordinal: int, threads: int, warn: Callable[[str], object], to_host: bool = True
) -> GpuImages:
    """Return the decoder on a GPU of its own, for the step's module and its `Recipe`; see GpuImages and CpuImages.

    Raises:
        EngineError: No GPU, or the packages are absent or do not work here.
    """
    libraries = import_libraries()
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
        call(driver, "cuInit", 0)
    except (ImportError, RuntimeError) as error:  # what cuda-python raises where it finds no libcuda
        raise EngineError(f"decoding on the GPU needs cuda-python and NVIDIA's driver: {error}") from error
    on_cpu = CpuImages(step, recipe, threads=threads)
    return GpuImages(recipe, on_cpu, driver, ordinal, warn=warn, to_host=to_host, libraries=libraries)


# Starts the network on pixels on the GPU, given the place of the first image and how many images there will be.
Begin: TypeAlias = "Callable[[DeviceArray, int, int], bool]"


class _Route(NamedTuple):
    """A file for the GPU, its size (width, height) and about how many bytes it takes there."""

    task: Task
    size: tuple[int, int]
    cost: int


class _Plan(NamedTuple):
    """What becomes of an image of some size: its size after resizing, its crop's (left, top), and a route's cost."""

    resized: tuple[int, int]
    corner: tuple[int, int]
    cost: int


def _make_plan(recipe: Any, width: int, height: int) -> _Plan | None:
    """Return the plan for images of this size; None where they are the CPU's."""
    if width * height > recipe.max_pixels or min(width, height) < _LEAST_EDGE:
        return None
    resized = recipe.resized(width, height)
    crop_height, crop_width = recipe.crop
    part = min(resized[0], crop_width) * min(resized[1], crop_height)
    is_strip = resized[0] * resized[1] > _MOST_WASTE * part
    if is_strip or resized[0] > width or resized[1] > height:
        return None
    cost = 3 * (width * height + resized[0] * (height * _FLOAT_BYTES + resized[1]))
    corner = recipe.corner(resized[0] - crop_width), recipe.corner(resized[1] - crop_height)
    return _Plan(resized, corner, cost)


class GpuImages:
    """Decodes, resizes and crops whole batches. It belongs to the thread that made it.

    Args:
        recipe: The preprocessing step's `Recipe`.
        on_cpu: What decodes the other files: odd ones, enlarged ones, strips, what is broken or no JPEG.
        driver: The module `cuda.bindings.driver`, initialised.
        ordinal: Which GPU.
        warn: Called with a sentence when the GPU first fails, such as for lack of memory, and when it first does not
            take an image; the CPU does the work then.
        to_host: Bring the pixels into host memory.
        libraries: nvImageCodec and CV-CUDA.
        chain: More arguments of GpuChain.

    Raises:
        EngineError: The libraries are absent or do not work here.
    """

    def __init__(
        self,
        recipe: Any,
        on_cpu: CpuImages,
        driver: Any,
        ordinal: int,
        *,
        warn: Callable[[str], object],
        to_host: bool = True,
        libraries: tuple[Any, Any] | None = None,
        **chain: Any,
    ) -> None:
        self._recipe, self._on_cpu = recipe, on_cpu
        self._plan = functools.lru_cache(maxsize=1024)(functools.partial(_make_plan, recipe))
        self._warn, self._to_host = warn, to_host
        self._warned: set[str] = set()
        libraries = libraries or import_libraries()
        self._devices = [Device(driver, ordinal) for _ in range(_CHAINS)]
        self._device = self._devices[0]
        _, total = self._device.free_memory()
        self._most_bytes = min(total // _SHARE, _MOST_BYTES)
        try:
            self._chains = [
                GpuChain(
                    device,
                    libraries,
                    crop=recipe.crop,
                    resample=recipe.filter.name,
                    fill=recipe.fill[0],
                    cache_bytes=self._most_bytes * _CHAINS,
                    **chain,
                )
                for device in self._devices
            ]
        except EngineError:
            for device in self._devices:
                device.close()
            raise
        self._row_bytes = int(np.prod(recipe.shape))
        self._memory = {"made": (0, 0), "ordered": (0, 0)}  # address and bytes on the GPU
        self._staging = Pinned(self._device)
        self.on_gpu = 0  # how many images of the last call the GPU decoded

    def decode(self, files: Sequence[bytes], begin: Begin | None = None) -> Decoded:
        """Return the pixels of encoded images; one that is bad costs only its own.

        They lie in memory that the next call writes over. On the GPU they are there when their stream is done.

        Args:
            files: The images.
            begin: Starts the network on the first images while the next are decoded; called until it does not.
        """
        try:
            return self._decode(files, begin)
        except ERRORS as error:
            self._wait()  # for what was begun
            self._warn_once("failure", f"the GPU decodes no images, the CPU does instead: {error}")
        self.on_gpu = 0
        return self._on_cpu.decode(files)

    def _decode(self, files: Sequence[bytes], begin: Begin | None) -> Decoded:
        routes = {index: route for index, data in enumerate(files) if (route := self._route(data)) is not None}
        made, start, begun = self._run(routes, begin if len(routes) == len(files) else None)
        self.on_gpu = len(made)
        rest = sorted(set(range(len(files))) - set(made))
        if refused := sorted(set(routes) - set(made)):
            width, height = routes[refused[0]].size
            self._warn_once("refused", f"the GPU did not take a JPEG of {width}x{height}, the CPU decodes such images")
        found = self._on_cpu.decode([files[index] for index in rest])
        geometry: list[Sequence[float]] = [()] * len(files)
        errors: list[str | None] = [None] * len(files)
        for place, index in enumerate(rest):
            geometry[index], errors[index] = found.geometry[place], found.errors[place]
        for index in made:
            geometry[index] = self._recipe.geometry(*routes[index].size)
        pixels = self._join(made, start, rest, found.pixels)
        return Decoded(pixels=pixels, geometry=geometry, errors=errors, begun=begun)

    def _route(self, data: bytes) -> _Route | None:
        """Return what the GPU is to do with a file; None where it is the CPU's."""
        recipe = self._recipe
        if len(data) > recipe.max_bytes or (jpeg := read_jpeg(data)) is None:
            return None
        width, height, end = jpeg
        plan = self._plan(width, height)
        if plan is None or plan.cost > self._most_bytes:
            return None
        task = Task(data if end == len(data) else data[:end], plan.resized, plan.corner)
        return _Route(task, (width, height), plan.cost)

    def _run(self, routes: dict[int, _Route], begin: Begin | None) -> tuple[list[int], int, int]:
        """Return the images that the GPU made, the address of their rows in this order, and how many were begun.

        The network is started on a piece only where every image up to its end was made.
        """
        if not routes:
            return [], 0, 0
        indices, tasks = list(routes), [route.task for route in routes.values()]
        start = self._reserve("made", len(tasks))
        made: list[int] = []
        begun = 0
        for chain in self._chains:
            chain.reserve(len(tasks))
        chains = itertools.cycle(self._chains)
        for part in split_tasks([route.cost for route in routes.values()], self._most_bytes, _PIECE):
            chain, target = next(chains), start + len(made) * self._row_bytes
            made += [indices[part][place] for place in chain.run(tasks[part], target, first=part.start)]
            if begin is not None and begun == part.start and len(made) == part.stop:
                rows = self._on_gpu(target, part.stop - part.start, chain.device)
                begun = part.stop if begin(rows, part.start, len(tasks)) else begun
        for device in self._devices[1:]:
            self._device.follow(device.stream_number)
        return made, start, begun

    def _on_gpu(self, address: int, count: int, device: Device) -> DeviceArray:
        return DeviceArray(address, (count, *self._recipe.shape), stream=device.stream_number)

    def _join(self, made: list[int], start: int, rest: list[int], pixels: NDArray[np.uint8]) -> Any:
        """Return the pixels of all images in their order: the rows at `start`, and those that the CPU made."""
        if not made:
            return pixels
        count, size = len(made) + len(rest), self._row_bytes
        shape = (count, *self._recipe.shape)
        rows = self._staging.reserve(count * size).reshape(shape)
        if self._to_host:
            self._device.copy_out(self._staging.address, start, len(made) * size)
            self._device.wait()
            if not rest:
                return rows
            joined = np.empty(shape, np.uint8)
            joined[made], joined[rest] = rows[: len(made)], pixels
            return joined
        if not rest:
            return self._on_gpu(start, count, self._device)
        rows[rest] = pixels
        target = self._reserve("ordered", count)
        for row, index in enumerate(made):
            self._device.copy_within(target + index * size, start + row * size, size)
        for index in rest:
            self._device.copy_in(target + index * size, self._staging.address + index * size, size)
        self._device.wait()
        return self._on_gpu(target, count, self._device)

    def _reserve(self, name: str, rows: int) -> int:
        """Return the address of memory on the GPU for so many rows."""
        address, size_bytes = self._memory[name]
        wanted = rows * self._row_bytes
        if wanted > size_bytes:
            self._memory[name] = (0, 0)
            if address:
                self._wait()
                self._device.release("cuMemFree", address)
            self._memory[name] = (self._device.allocate(wanted), wanted)
        return self._memory[name][0]

    def _warn_once(self, kind: str, words: str) -> None:
        if kind not in self._warned:
            self._warn(words)
        self._warned.add(kind)

    def _wait(self) -> None:
        """Return when all that was begun is done, or has failed."""
        for device in self._devices:
            with contextlib.suppress(EngineError):
                device.wait()

    def close(self) -> None:
        """Give everything back but the streams, where nvImageCodec and CV-CUDA free later what they still hold."""
        self._wait()
        for chain in self._chains:
            chain.close()
        self._staging.close()
        for address, _ in self._memory.values():
            if address:
                self._device.release("cuMemFree", address)
        self._on_cpu.close()
