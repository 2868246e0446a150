"""Stand-ins for nvImageCodec and CV-CUDA on the stand-in of the driver: GPU memory is host memory.

As on a GPU nothing happens before somebody waits. As nvImageCodec does, the decoder makes pictures of files that end
too early; as with CV-CUDA, a stream that it was used on must stay. What the real libraries answer,
tests/test_gpu_images_gpu.py and benchmarks/gpu_images.py see.
"""

from __future__ import annotations

import ctypes
import functools
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import get_sampling

from tests.tensorrt_standin import Driver

LEFT_OPEN = 6  # after GpuImages.close: two streams, each with its event and its hold of the context


def read_memory(gpu: Driver, address: int, shape: tuple[int, ...], dtype: Any = np.uint8) -> Any:
    """Return an array on the GPU as it is now."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    gpu._check(address, size)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


class Picture:
    """An image of the decoder's, which it may write again: its size is known before its pixels are there."""

    def __init__(self) -> None:
        self.pixels = np.empty((0, 0, 3), np.uint8)
        self.height = self.width = 0

    def write(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels


class Libraries:
    """Both modules. `refused` are files that the decoder does not take; `fault` is raised by the next call.

    `colour_off` is how many levels 4:2:0 files are off.
    """

    def __init__(self, gpu: Driver) -> None:
        self.gpu, self.fault, self.refused = gpu, "", set[bytes]()
        self.colour_off = 0
        self.fault_at = 0  # raised by so many calls from now, once
        self.batches: list[int] = []
        self.streams: list[int] = []  # of each batch
        self.held: set[int] = set()  # streams that CV-CUDA remembers
        self.reused = self.stream = 0
        self.cache_bytes = 0
        self.codec = SimpleNamespace(
            Backend=lambda kind: kind,
            BackendKind=SimpleNamespace(HW_GPU_ONLY="hardware"),
            CodeStream=lambda data: data,
            DecodeParams=dict,
            SampleFormat=SimpleNamespace(I_RGB="RGB"),
            Decoder=self._open,
        )
        self.cvcuda = SimpleNamespace(
            Border=SimpleNamespace(CONSTANT="constant"),
            Format=SimpleNamespace(RGB8="RGB8"),
            Interp=SimpleNamespace(LINEAR=Image.Resampling.BILINEAR, CUBIC=Image.Resampling.BICUBIC),
            as_images=self._as_images,
            as_stream=lambda number: number,
            as_tensor=lambda array, layout: (array.__cuda_array_interface__, layout),
            set_cache_limit_inbytes=lambda size: setattr(self, "cache_bytes", size),
            pillowresize=self._resize,
            crop_flip_normalize_reformat_into=self._crop,
        )

    @property
    def both(self) -> tuple[Any, Any]:
        return self.codec, self.cvcuda

    def _open(self, *, device_id: int, backends: list[str], options: str, **_: int) -> Any:
        assert (device_id, backends, options) == (0, ["hardware"], ":fancy_upsampling=1")
        return SimpleNamespace(decode=self._decode)

    def _decode(self, files: list[bytes], *, images: Any, params: Any, **stream: int) -> list[Any]:
        self.stream = stream["cuda_stream"]
        self.streams.append(self.stream)
        assert params == {"apply_exif_orientation": False, "sample_format": "RGB"}
        self.fault_at -= 1
        if self.fault or self.fault_at == 0:
            raise RuntimeError(self.fault)
        self.batches.append(len(files))
        assert images is None or len(images) == len(files)
        found = []
        for data, image in zip(files, images or [None] * len(files), strict=True):
            assert data.endswith(b"\xff\xd9"), "more than a JPEG"
            self.reused += image is not None
            picture = image or Picture()
            found.append(None if data in self.refused else picture)
            ImageFile.LOAD_TRUNCATED_IMAGES = True
            try:
                jpeg = Image.open(io.BytesIO(data))
                off = self.colour_off if get_sampling(jpeg) == 2 else 0
                picture.width, picture.height = jpeg.size
                pixels = np.asarray(jpeg.convert("RGB")) ^ np.uint8(off)
                self.gpu._submit(functools.partial(picture.write, pixels), self.stream)
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
        return found

    def _as_images(self, images: list[Picture], form: str) -> list[Picture]:
        assert form == "RGB8"
        assert None not in images
        return images

    def _resize(self, batch: list[Picture], sizes: list[tuple[int, int]], kind: Any, **stream: int) -> list[Picture]:
        assert stream == {"stream": self.stream}
        self.held.add(self.stream)
        assert not self.held & self.gpu.destroyed, "the real one crashes: it waits for the stream that it was used on"
        made = [Picture() for _ in batch]

        def run() -> None:
            for one, source, size in zip(made, batch, sizes, strict=True):
                one.pixels = np.asarray(Image.fromarray(source.pixels).resize(size, kind))

        self.gpu._submit(run, self.stream)
        return made

    def _crop(self, dst: Any, batch: list[Picture], **given: Any) -> None:
        assert given.pop("stream") == self.stream
        assert given.pop("border") == "constant"
        fill = given.pop("bvalue")
        tensors = {name: (interface, layout) for name, (interface, layout) in {"dst": dst, **given}.items()}
        assert {name: layout for name, (_, layout) in tensors.items() if layout != "NHWC"} == {"flip_code": "NC"}

        def run() -> None:
            values = {
                name: read_memory(self.gpu, interface["data"][0], interface["shape"], np.dtype(interface["typestr"]))
                for name, (interface, _) in tensors.items()
            }
            assert set(values["flip_code"].reshape(-1)).isdisjoint((-1, 0, 1))
            assert values["base"].item() == 0
            assert values["scale"].item() == 1
            for row, picture, box in zip(values["dst"], batch, values["rect"].reshape(-1, 4), strict=True):
                left, top, width, height = box
                row[...] = fill
                inside = picture.pixels[max(top, 0) : top + height, max(left, 0) : left + width]
                start_y, start_x = max(-top, 0), max(-left, 0)
                row[start_y : start_y + inside.shape[0], start_x : start_x + inside.shape[1]] = inside

        self.gpu._submit(run, self.stream)
