"""JPEG files become crops on the GPU: nvImageCodec decodes, CV-CUDA resizes as Pillow does and crops, whole batches.

No torch: what the libraries pass each other says where it lies (`__cuda_array_interface__`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError
from .engine import Pinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from .device import Device

PACKAGES = ("nvidia.nvimgcodec", "cvcuda")
# CV-CUDA's own filter, by what Pillow calls its.
FILTERS = {"BILINEAR": "LINEAR", "BICUBIC": "CUBIC"}
# What a fault of these libraries, of the driver or of memory that is full looks like in Python.
ERRORS = (EngineError, RuntimeError, MemoryError, ValueError)
_FANCY = ":fancy_upsampling=1"  # chroma interpolated as libjpeg does it; else up to 21 levels off
_NO_FLIP = 2
_BOX_BYTES = 16
_REUSED_BYTES = 8 << 20  # a larger image's memory is given back
_NO_WAIT = -1  # to CV-CUDA: nothing writes there that it does not know of


class DeviceArray(NamedTuple):
    """Rows on the GPU as other libraries take them; `stream` is what still writes them, None for nothing."""

    address: int
    shape: tuple[int, ...]
    typestr: str = "|u1"
    stream: int | None = None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What it is, and where."""
        data = (self.address, False)
        return {"shape": self.shape, "typestr": self.typestr, "data": data, "strides": None, "version": 3} | (
            {} if self.stream is None else {"stream": self.stream}
        )


class Task(NamedTuple):
    """One image: its file, its size (width, height) after resizing, and its crop's (left, top), negative if padded."""

    data: bytes
    resized: tuple[int, int]
    corner: tuple[int, int]


def import_libraries() -> tuple[Any, Any]:
    """Return the modules of nvImageCodec and CV-CUDA.

    Raises:
        EngineError: One is not installed, or is for another CUDA than the driver's.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it calls absent libraries for other formats errors
    found = []
    for name in PACKAGES:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError)
            msg = (
                f"decoding on the GPU needs {name}, which {'is not installed' if absent else f'does not load: {error}'}"
            )
            raise EngineError(
                f"{msg}; install trtgen's extra 'gpu-decode' (driver 580 or later), or rebuild with decode: cpu"
            ) from error
    codec, cvcuda = found
    return codec, cvcuda


class GpuChain:
    """The three steps. It belongs to the thread that made it; its work is done when the device's stream is.

    Args:
        device: The GPU.
        libraries: What `import_libraries` returned.
        crop: Height and width of the pixels.
        resample: Pillow's name of the filter, one of FILTERS.
        fill: The level of all channels where a crop reaches beyond its image.
        cache_bytes: How much memory CV-CUDA may keep for later.
        on_step: Called with the name of each step, to measure what it takes.

    Raises:
        EngineError: The libraries do not work here.
    """

    def __init__(
        self,
        device: Device,
        libraries: tuple[Any, Any],
        *,
        crop: tuple[int, int],
        resample: str,
        fill: int,
        cache_bytes: int,
        on_step: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.device, self._crop, self._fill, self._on_step = device, crop, fill, on_step
        self._codec, self._cvcuda = codec, cvcuda = libraries
        try:
            self._decoder = codec.Decoder(
                device_id=device.ordinal,
                max_num_cpu_threads=1,
                backends=[codec.Backend(codec.BackendKind.HW_GPU_ONLY)],
                options=_FANCY,
            )
            self._params = codec.DecodeParams(apply_exif_orientation=False, sample_format=codec.SampleFormat.I_RGB)
            cvcuda.set_cache_limit_inbytes(cache_bytes)
            self._stream = cvcuda.as_stream(device.stream_number)
        except ERRORS as error:
            raise EngineError(f"nvImageCodec or CV-CUDA does not start on this GPU: {error}") from error
        self._filter = getattr(cvcuda.Interp, FILTERS[resample])
        self._images: list[Any] = []  # whose memory is written again
        # for each image a box and whether to flip it, then what is subtracted from levels, and what they are times
        self._numbers, self._capacity = Pinned(device), 0
        self._address = 0  # of the same on the GPU

    def run(self, tasks: Sequence[Task], target: int, *, first: int = 0) -> list[int]:
        """Write the crops at the address `target`, one behind the other; return which of the images these are.

        The others the engine did not take. Nothing is waited for but the decoder's own work on the CPU.

        Args:
            tasks: The images.
            target: Where the first crop goes.
            first: Where the tasks' boxes lie, so that those of earlier tasks may still be read.

        Raises:
            One of ERRORS: Something failed, such as memory.
        """
        with self._on_step("decode"):
            streams = [self._codec.CodeStream(task.data) for task in tasks]
            images = self._decoder.decode(
                streams, images=self._reusable(len(tasks)), params=self._params, cuda_stream=self.device.stream_number
            )
        taken = [index for index, image in enumerate(images) if image is not None]
        self._keep(images)
        if not taken:
            return []
        with self._on_step("as_images"):
            batch = self._cvcuda.as_images([images[index] for index in taken], self._cvcuda.Format.RGB8)
        with self._on_step("resize"):
            sizes = [tasks[index].resized for index in taken]
            batch = self._cvcuda.pillowresize(batch, sizes, self._filter, stream=self._stream)
        with self._on_step("crop"):
            height, width = self._crop
            boxes = np.array([(*tasks[index].corner, width, height) for index in taken], np.int32)
            self._cvcuda.crop_flip_normalize_reformat_into(
                self._wrap(target, (len(taken), height, width, 3)),
                batch,
                rect=self._place(boxes, first),
                flip_code=self._wrap(self._address + self._capacity * _BOX_BYTES, (len(taken), 1), "<i4", "NC"),
                base=self._base,
                scale=self._scale,
                border=self._cvcuda.Border.CONSTANT,
                bvalue=self._fill,
                stream=self._stream,
            )
        return taken

    def _reusable(self, count: int) -> list[Any] | None:
        """Return an image or None for each file; None at first, when there is nothing to write again."""
        if not self._images:
            return None
        return [*self._images[:count], *[None] * (count - len(self._images))]

    def _keep(self, images: Sequence[Any]) -> None:
        """Remember images of usual sizes; where the decoder failed, what was given to it is still ours."""
        kept = [*self._images, *[None] * (len(images) - len(self._images))]
        for index, image in enumerate(images):
            if image is not None:
                kept[index] = image if image.height * image.width * 3 <= _REUSED_BYTES else None
        self._images = kept

    def _place(self, boxes: NDArray[np.int32], first: int) -> Any:
        """Return the boxes (left, top, width, height) on the GPU; they are copied where they differ from the last."""
        self.reserve(first + len(boxes))
        start = first * _BOX_BYTES
        held = self._numbers.array[start : start + boxes.nbytes].view(np.int32).reshape(boxes.shape)
        if not np.array_equal(held, boxes):
            held[...] = boxes
            self.device.copy_in(self._address + start, self._numbers.address + start, boxes.nbytes)
        return self._wrap(self._address + start, (len(boxes), 1, 1, 4), "<i4")

    def reserve(self, images: int) -> None:
        """Have memory for so many images; what is being done is waited for where it grows."""
        if images <= self._capacity:
            return
        capacity = max(images, 2 * self._capacity)
        self.device.wait()
        self.close()
        behind = capacity * (_BOX_BYTES + 4)
        numbers = self._numbers.reserve(behind + 8).view(np.int32)
        numbers[:-2], numbers[-2] = _NO_FLIP, 0
        numbers[-1:].view(np.float32)[:] = 1
        self._address = self.device.allocate(numbers.nbytes)
        self._capacity = capacity
        self.device.copy_in(self._address, self._numbers.address, numbers.nbytes)
        self.device.wait()
        self._base = self._wrap(self._address + behind, (1, 1, 1, 1), "<f4")
        self._scale = self._wrap(self._address + behind + 4, (1, 1, 1, 1), "<f4")

    def _wrap(self, address: int, shape: tuple[int, ...], typestr: str = "|u1", layout: str = "NHWC") -> Any:
        return self._cvcuda.as_tensor(DeviceArray(address, shape, typestr, _NO_WAIT), layout)

    def close(self) -> None:
        """Give the memory back."""
        self._numbers.close()
        if self._address:
            self.device.release("cuMemFree", self._address)
        self._address = self._capacity = 0


def split_tasks(costs: Sequence[int], most: int, count: int) -> Iterator[slice]:
    """Yield parts of at most `count` tasks that take at most `most` together, or of one task.

    In a part each takes what the largest does: CV-CUDA's memory in between is as high and wide as any of its images.
    """
    start, largest = 0, 0
    for index, cost in enumerate(costs):
        largest = max(largest, cost)
        if index > start and (largest * (index - start + 1) > most or index - start == count):
            yield slice(start, index)
            start, largest = index, cost
    if costs:
        yield slice(start, len(costs))
