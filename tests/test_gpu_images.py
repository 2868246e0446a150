"""Decoding on the GPU, as far as it shows without one: which files go there, and that all come back in order.

The libraries are stand-ins (tests/gpu_images_standin.py). The real ones are in tests/test_gpu_images_gpu.py.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.gpu_images import mutate
from generator.images.served_pixels import load_step
from generator.render import read_static
from generator.runtime import gpu_images, jpeg
from generator.runtime.cpu_images import CpuImages
from generator.runtime.device import Device, EngineError
from generator.runtime.gpu_chain import split_tasks
from generator.runtime.gpu_images import GpuImages, why_on_cpu
from generator.runtime.jpeg import Jpeg, _read_known, read_jpeg
from generator.spec.recipe import IMAGENET, RECIPES, Recipe
from tests.gpu_images_standin import LEFT_OPEN, Libraries, read_memory
from tests.tensorrt_standin import Driver

PHOTO = Image.open("generator/assets/flower.jpg").convert("RGB")
SMALL = PHOTO.resize((96, 64))


def save(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def segment(data: bytes, kind: int, content: bytes, *, without_jfif: bool = False) -> bytes:
    """Return the JPEG with one more segment in front."""
    rest = data[20:] if without_jfif else data[2:]
    return data[:2] + bytes((0xFF, kind)) + (len(content) + 2).to_bytes(2, "big") + content + rest


def set_byte(data: bytes, marker: bytes, offset: int, value: int) -> bytes:
    place = data.index(marker) + offset
    return data[:place] + bytes((value,)) + data[place + 1 :]


PLAIN = save(SMALL, quality=90)
RESTARTS = save(SMALL, quality=90, restart_marker_blocks=3)
ORIENTATION = Image.Exif()
ORIENTATION[0x0112] = 6
RESOLUTION = Image.Exif()
RESOLUTION[0x011A] = 72.0
ADOBE = b"Adobe\0\x64\0\0\0\0"
PHOTOSHOP = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x04abcd"
# A table of five codes, whose last symbols are no marker; four bytes further on, where a size would be, the next begins
LIKE_A_FRAME = bytes([0x10, 0, 0, 5, *[0] * 13]) + b"\xff\xc0\x00\x01\x01"
ONE_CODE = bytes([*[0] * 7, 1, *[0] * 8, 0])
FRAME = PLAIN[PLAIN.index(b"\xff\xc0") :][:19]
TAKEN = {
    "4:2:0": PLAIN,
    "4:4:4": save(SMALL, subsampling=0),
    "4:2:2": save(SMALL, subsampling=1),
    "grey": save(SMALL.convert("L")),
    "odd": save(PHOTO.resize((333, 251))),
    "restarts": RESTARTS,
    "optimised": save(SMALL, optimize=True),
    "EXIF": save(SMALL, exif=ORIENTATION.tobytes()),
    "EXIF with a resolution": save(SMALL, exif=RESOLUTION.tobytes()),
    "profile": save(SMALL, icc_profile=b"x" * 70_000),
    "comment": save(SMALL, comment=b"\xff\xd9"),
    "junk behind": PLAIN + b"\0" * 1000,
    "Adobe YCbCr": segment(PLAIN, 0xEE, ADOBE + b"\x01", without_jfif=True),
    "Photoshop": segment(PLAIN, 0xED, PHOTOSHOP),
    "what looks like the frame in a table": segment(PLAIN, 0xC4, LIKE_A_FRAME + b"\x00" + ONE_CODE),
    "what looks like markers among the tables": PLAIN.replace(
        b"\xff\xc0", b"\xff\xfe\x00\x0f\xff\xc0\x00\x11\x08123\xff\xda\x00\x0c\x03\xff\xc0", 1
    ),
}
LEFT = {
    "empty": b"",
    "no image": b"no image at all" * 20,
    "PNG": save(SMALL, "PNG"),
    "progressive": save(SMALL, progressive=True),
    "RGB": save(SMALL, keep_rgb=True),
    "Adobe RGB": segment(PLAIN, 0xEE, ADOBE + b"\0"),
    "Adobe grey": segment(TAKEN["grey"], 0xEE, ADOBE + b"\x01"),
    "CMYK": save(SMALL.convert("CMYK")),
    "EXIF with an odd resolution": set_byte(
        save(SMALL, exif=RESOLUTION.tobytes()), b"Exif", RESOLUTION.tobytes().index(b"\x01\x1a") + 3, 4
    ),
    "EXIF that is none": segment(PLAIN, 0xE1, b"Exif\0\0none"),
    "EXIF that is cut": segment(PLAIN, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01"),
    "several pictures": segment(PLAIN, 0xE2, b"MPF\0" + bytes(30)),
    "a profile too short": segment(PLAIN, 0xE2, b"ICC_PROFILE\0"),
    "Photoshop, cut": segment(PLAIN, 0xED, PHOTOSHOP + b"8BIM\x04\x04"),
    "arithmetic": set_byte(PLAIN, b"\xff\xc0", 1, 0xC9),
    "extended": set_byte(PLAIN, b"\xff\xc0", 1, 0xC1),
    "12 bit": set_byte(PLAIN, b"\xff\xc0", 4, 12),
    "no height": set_byte(set_byte(PLAIN, b"\xff\xc0", 5, 0), b"\xff\xc0", 6, 0),
    "4:1:1": set_byte(PLAIN, b"\xff\xc0", 11, 0x41),
    "a table of 0": set_byte(PLAIN, b"\xff\xdb", 9, 0),
    "what looks like the frame before a wrong number": segment(PLAIN, 0xC4, LIKE_A_FRAME + b"\x0f" + ONE_CODE),
    "two frames": PLAIN.replace(FRAME, FRAME + FRAME),
    "no such table": set_byte(PLAIN, b"\xff\xc0", 12, 3),
    "too many codes": set_byte(PLAIN, b"\xff\xc4", 5, 3),
    "another component": set_byte(PLAIN, b"\xff\xda", 5, 9),
    "part of the spectrum": set_byte(PLAIN, b"\xff\xda", 12, 5),
    "no end": PLAIN[:-2],
    "cut": PLAIN[: len(PLAIN) * 2 // 3],
    "cut in the header": PLAIN[:200],
    "another marker before the end": PLAIN[:-2] + b"\xff\xc4\0\x05abc\xff\xd9",
    "a restart too few": RESTARTS.replace(b"\xff\xd3", b"", 1),
    "restarts out of turn": RESTARTS.replace(b"\xff\xd3", b"\xff\xd5", 1),
    "restarts unannounced": RESTARTS.replace(b"\xff\xdd\0\x04\0\x03", b"\xff\xdd\0\x04\0\0", 1),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_gpu_gets(kind: str) -> None:
    found = read_jpeg(TAKEN[kind])
    assert found is not None
    assert (found.width, found.height) == Image.open(io.BytesIO(TAKEN[kind])).size


@pytest.mark.parametrize("kind", LEFT)
def test_the_cpu_keeps(kind: str) -> None:
    assert read_jpeg(LEFT[kind]) is None


def test_what_follows_the_end_is_left_out() -> None:
    assert read_jpeg(TAKEN["junk behind"]) == Jpeg(96, 64, len(PLAIN))


@pytest.mark.parametrize("first", ["4:2:0", "grey", "restarts"])
def test_what_was_read_before_changes_no_answer(first: str) -> None:
    for data in (*TAKEN.values(), *LEFT.values()):
        _read_known.cache_clear()
        alone = read_jpeg(data)
        _read_known.cache_clear()
        read_jpeg(TAKEN[first])
        assert read_jpeg(data) == read_jpeg(data) == alone


def resize(size: bytes) -> bytes:
    """Return the file with other bytes for height and width."""
    return PLAIN.replace(FRAME, FRAME[:5] + size + FRAME[9:])


INTERVAL = b"\xff\xdd\0\x04\0\x03"
SCAN = PLAIN[PLAIN.index(b"\xff\xda") :][:14]
# What a search for the markers may take for others than they are.
MISLEADING = (
    *map(
        resize, (b"\xff\xc0\0\x11", b"\xff\xda\0\x0c", b"\0\xff\xda\0", b"\xff\xda\0\xff", b"\1\xff\xc0\0", b"\xff" * 4)
    ),
    resize(b"\xff\xda\0\0"),
    resize(b"\1\1\1\xff"),
    segment(PLAIN, 0xDB, b"\x03" + FRAME + SCAN + b"\x01" * (64 - len(FRAME + SCAN))),
    segment(PLAIN, 0xDB, b"\x03" + b"\x01" * 61 + b"\xff\xc0\x01"),
    segment(PLAIN, 0xC4, LIKE_A_FRAME + b"\x00" + ONE_CODE),
    PLAIN.replace(FRAME, b"\xff\xfe\0\x23" + FRAME + SCAN + FRAME),  # in a comment, the second one again a frame
    PLAIN.replace(FRAME, FRAME + b"\xff\xfe\0\x10" + SCAN),
    PLAIN.replace(FRAME, FRAME + b"\xff\xfe\0\x0f" + SCAN),
    PLAIN.replace(FRAME, FRAME + b"\xff\xee\0\x0e" + ADOBE + b"\1"),
    PLAIN.replace(FRAME, FRAME + b"\xff\xee\0\x0e" + ADOBE + b"\0"),
    PLAIN.replace(FRAME, FRAME[:5] + b"\0\x08\0\x08" + FRAME[9:] + FRAME),
    PLAIN.replace(FRAME, FRAME + resize(b"\0\x08\0\x08")[PLAIN.index(FRAME) :][:19]),
    PLAIN.replace(FRAME, SCAN + FRAME),
    PLAIN.replace(SCAN, SCAN + SCAN),
    PLAIN.replace(SCAN, SCAN + INTERVAL),
    PLAIN.replace(SCAN, INTERVAL + SCAN),
    RESTARTS.replace(INTERVAL, b"", 1).replace(SCAN, SCAN + INTERVAL),
    RESTARTS.replace(INTERVAL, b"", 1).replace(SCAN, INTERVAL + SCAN),
    PLAIN.replace(SCAN, b"\xff\xfe\x04\0" + bytes(1022) + SCAN),
    *(PLAIN[: PLAIN.index(SCAN) + cut] for cut in range(16)),
    PLAIN[: PLAIN.index(FRAME) + 5],
    segment(TAKEN["grey"], 0xEE, ADOBE + b"\1"),
)


def test_a_header_that_is_searched_is_read_as_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, kinds = random.Random(8), [data for data in (*TAKEN.values(), *LEFT.values()) if len(data) < 10_000]
    files = [*MISLEADING, *kinds]
    sources = [data[:700] for data in files if len(data) > 700]
    files += [mutate(chance.choice(sources), chance) + PLAIN[700:] for _ in range(2000)]
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_recall_scan", lambda *_: None)
        expected = [read_jpeg(data) for data in files]
    assert sum(map(bool, expected[: len(MISLEADING)])) > 10
    assert sum(map(bool, expected)) > 100
    _read_known.cache_clear()
    for _ in range(2):  # the second time they are remembered
        assert [read_jpeg(data) for data in files] == expected


def test_a_header_is_remembered_whatever_the_size() -> None:
    _read_known.cache_clear()
    for size in ((96, 64), (333, 251)):
        for exif in (b"", ORIENTATION.tobytes()):
            found = read_jpeg(save(PHOTO.resize(size), quality=90, exif=exif))
            assert found is not None
            assert found[:2] == size
    assert _read_known.cache_info().misses == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of EXIF
def test_no_mutated_file_goes_to_the_gpu_that_pillow_refuses() -> None:
    step, chance, taken = load_step("preprocess"), random.Random(16), 0
    recipe = open_recipe()
    kinds = [data for data in (*TAKEN.values(), LEFT["progressive"], LEFT["CMYK"], LEFT["RGB"]) if len(data) < 10_000]
    for number in range(5000):
        data = mutate(chance.choice(kinds), chance)
        found = read_jpeg(data)
        if found is not None:
            taken += 1
            image = step.open_image(data, recipe)  # raises where it refuses
            assert image.size == (found.width, found.height), number
    assert taken > 1000


def open_recipe(recipe: Recipe = IMAGENET, **limits: int) -> Any:
    parameters = recipe.parameters() | {name: str(value) for name, value in limits.items()}
    return load_step("preprocess").Recipe({name: {"string_value": value} for name, value in parameters.items()})


class Bench:
    """A decoder on stand-ins, and the CPU's for the same recipe."""

    def __init__(self, recipe: Any, *, to_host: bool = True, memory_bytes: int = 1 << 31) -> None:
        self.gpu = Driver(memory_bytes=memory_bytes)
        self.libraries = Libraries(self.gpu)
        self.device = Device(self.gpu)  # of who takes the pixels
        self.warnings: list[str] = []
        self.on_cpu = CpuImages(load_step("preprocess"), recipe, threads=2)
        self.images = GpuImages(
            recipe,
            self.on_cpu,
            self.gpu,
            0,
            warn=self.warnings.append,
            to_host=to_host,
            libraries=self.libraries.both,
        )

    def close(self) -> None:
        """Close everything and look at what is left."""
        self.images.close()
        self.device.close()
        assert not self.gpu.on_gpu
        assert not self.gpu.memory
        assert self.gpu.open == LEFT_OPEN

    def check(self, files: list[bytes], *, on_gpu: int) -> None:
        """Decode the files and compare everything with what the CPU makes of them."""
        found = self.images.decode(files)
        wanted = self.on_cpu.decode(files)
        pixels = found.pixels
        if not isinstance(pixels, np.ndarray):
            interface = pixels.__cuda_array_interface__
            self.device.follow(interface["stream"])
            self.device.wait()
            pixels = read_memory(self.gpu, interface["data"][0], interface["shape"])
        assert np.array_equal(pixels, wanted.pixels)
        assert list(found.geometry) == list(wanted.geometry)
        assert found.errors == wanted.errors
        assert self.images.on_gpu == on_gpu


@pytest.fixture(params=[True, False], ids=["to host", "on the GPU"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    one = Bench(open_recipe(max_pixels=900_000), to_host=request.param)
    yield one
    one.close()


WIDE, TALL = save(PHOTO.resize((500, 375))), save(PHOTO.resize((375, 500)), subsampling=0)
MIXED = [
    PLAIN,  # would be enlarged
    WIDE,
    save(PHOTO.resize((500, 375)), progressive=True),
    TALL,
    WIDE[:9000],
    save(PHOTO.resize((400, 300)), "PNG"),
    save(PHOTO.resize((300, 700))),
    save(PHOTO.resize((9, 3000))),  # both
    save(PHOTO.resize((260, 3300))),  # a strip
    WIDE + bytes(1000),
    save(PHOTO.resize((1000, 1000))),  # too many pixels
    b"",
    save(PHOTO.resize((333, 256)).convert("L")),
]


def test_a_batch_of_all_kinds(bench: Bench) -> None:
    bench.check(MIXED, on_gpu=5)
    bench.check(MIXED[::-1], on_gpu=5)
    bench.check([WIDE] * 3, on_gpu=3)
    bench.check([TALL], on_gpu=1)
    bench.check([PLAIN, b""], on_gpu=0)
    bench.check([], on_gpu=0)
    bench.check([TALL, WIDE] * 5, on_gpu=10)
    assert bench.libraries.batches == [5, 5, 3, 1, 10]
    assert bench.libraries.reused == 14
    assert bench.warnings == []


@pytest.mark.parametrize("to_host", [True, False])
def test_decoders_take_turns_at_the_pieces(monkeypatch: pytest.MonkeyPatch, to_host: bool) -> None:
    monkeypatch.setattr(gpu_images, "_PIECE", 3)
    monkeypatch.setattr(gpu_images, "_CHAINS", 2)
    bench = Bench(open_recipe(max_pixels=900_000), to_host=to_host)
    photos = [save(PHOTO.resize((300 + 37 * number, 600 - 29 * number))) for number in range(11)]
    for files in (photos, photos[::-1], [*MIXED, *photos], photos[:4]):
        bench.libraries.streams.clear()
        bench.check(files, on_gpu=min(len(files), 16))
        one, other, *more = bench.libraries.streams
        assert one != other
        assert more == [one, other, one, other][: len(more)]
    bench.libraries.refused = {photos[2], photos[7]}
    bench.check(photos, on_gpu=9)
    bench.close()


def test_the_next_decoder_of_the_process_works_after_one_is_closed(bench: Bench) -> None:
    recipe = open_recipe()
    for _ in range(2):
        on_cpu = CpuImages(load_step("preprocess"), recipe, threads=1)
        images = GpuImages(recipe, on_cpu, bench.gpu, 0, warn=pytest.fail, libraries=bench.libraries.both)
        images.decode([WIDE])
        assert images.on_gpu == 1
        images.close()
    bench.gpu.open -= 2 * LEFT_OPEN


def test_the_network_is_not_started_behind_a_piece_that_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_images, "_PIECE", 2)
    bench, told = Bench(open_recipe(), to_host=False), []

    def begin(pixels: Any, first: int, total: int) -> bool:
        told.append((pixels.shape[0], first, total))
        return first != 2

    assert bench.images.decode([WIDE] * 6, begin).begun == 2
    assert told == [(2, 0, 6), (2, 2, 6)]


def test_parts_that_fit_into_its_memory(bench: Bench) -> None:
    bench.images._most_bytes = 3 * bench.images._route(WIDE).cost  # type: ignore[union-attr]
    bench.check([WIDE, TALL, TALL, WIDE] * 2, on_gpu=8)
    assert bench.libraries.batches == [2, 2, 2, 2]
    bench.images._most_bytes = 1_000_000
    bench.check([WIDE, TALL], on_gpu=0)


def test_what_the_engine_refuses_the_cpu_decodes(bench: Bench) -> None:
    bench.libraries.refused = {TALL}
    for _ in range(2):
        bench.check([WIDE, TALL, WIDE], on_gpu=2)
        bench.check([TALL], on_gpu=0)
    assert bench.warnings == ["the GPU did not take a JPEG of 375x500, the CPU decodes such images"]


def test_a_fault_is_told_once_and_the_cpu_goes_on(bench: Bench) -> None:
    bench.check([WIDE], on_gpu=1)
    bench.libraries.fault = "CUDA_ERROR_OUT_OF_MEMORY"
    for _ in range(2):
        bench.check(MIXED, on_gpu=0)
    bench.libraries.fault = ""
    bench.check(MIXED, on_gpu=5)
    assert bench.warnings == ["the GPU decodes no images, the CPU does instead: CUDA_ERROR_OUT_OF_MEMORY"]


def test_what_was_begun_before_a_fault_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_images, "_PIECE", 2)
    monkeypatch.setattr(gpu_images, "_CHAINS", 2)
    bench = Bench(open_recipe())
    bench.check([WIDE] * 4, on_gpu=4)
    bench.libraries.fault_at = 3
    bench.check([WIDE] * 8, on_gpu=0)
    assert not bench.gpu.is_busy
    bench.check([WIDE] * 20, on_gpu=20)


def test_a_decoder_that_does_not_open_leaves_nothing_behind() -> None:
    gpu = Driver()
    libraries = Libraries(gpu)

    def fail(**_: Any) -> Any:
        raise RuntimeError("no engine")

    libraries.codec.Decoder = fail
    recipe = open_recipe()
    on_cpu = CpuImages(load_step("preprocess"), recipe, threads=1)
    with pytest.raises(EngineError, match="does not start on this GPU: no engine"):
        GpuImages(recipe, on_cpu, gpu, 0, warn=print, libraries=libraries.both)
    assert gpu.open == 0


def test_gpu_memory_that_is_full(bench: Bench) -> None:
    bench.gpu.memory_bytes = 0
    bench.check(MIXED, on_gpu=0)
    bench.gpu.memory_bytes = 1 << 30
    bench.check(MIXED, on_gpu=5)
    (warning,) = bench.warnings
    assert "cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY" in warning


def test_bicubic_and_both_edges() -> None:
    recipe = Recipe.model_validate(
        {**IMAGENET.model_dump(), "interpolation": "bicubic", "resize": (240, 300), "fit": "stretch"}
    )
    assert why_on_cpu(recipe) == ""
    bench = Bench(open_recipe(recipe))
    bench.check([WIDE, TALL, save(PHOTO.resize((299, 700))), save(PHOTO.resize((500, 239)))], on_gpu=2)
    assert bench.libraries.cache_bytes == gpu_images._CHAINS * (1 << 31) // 64


@pytest.mark.parametrize("fit", ["letterbox", "letterbox-corner"])
@pytest.mark.parametrize("resize", [(224, 200), (231, 224)])  # the crop, and more
def test_letterboxes(fit: str, resize: tuple[int, int]) -> None:
    recipe = Recipe.model_validate(
        {**IMAGENET.model_dump(), "fit": fit, "resize": resize, "crop": (224, 200), "fill": (114,) * 3}
    )
    assert why_on_cpu(recipe) == ""
    bench = Bench(open_recipe(recipe))
    sizes = [(500, 375), (375, 500), (333, 251), (251, 333), (900, 20), (20, 900), (260, 260), (100, 80), (100, 300)]
    files = [save(PHOTO.resize(size)) for size in sizes]
    bench.check(files, on_gpu=len(sizes) - 1)  # one would be enlarged
    assert bench.warnings == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": "linear"}, "interpolation linear"),
        ({"interpolation": "lanczos"}, "interpolation lanczos"),
        ({"interpolation": "box"}, "interpolation box"),
        ({"interpolation": "nearest"}, "interpolation nearest"),
        ({"exif": "apply"}, "EXIF"),
        ({"fit": "letterbox", "resize": (224, 224), "fill": (114, 114, 0)}, "filled with (114, 114, 0)"),
        ({"channels": "grey", "mean": (0.5,), "std": (0.5,)}, "grey"),
    ],
)
def test_recipes_of_the_cpu(changes: dict[str, Any], words: str) -> None:
    assert words in why_on_cpu(Recipe.model_validate({**IMAGENET.model_dump(), **changes}))


def test_recipes_of_the_gpu() -> None:
    assert {name for name, recipe in RECIPES.items() if not why_on_cpu(recipe)} == {"imagenet", "inception", "clip"}


def test_parts() -> None:
    assert list(split_tasks([5, 5, 5, 20, 1, 1], 10, 9)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    assert list(split_tasks([1] * 7, 9, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(split_tasks([1] * 33, 99, 32)) == [slice(0, 32), slice(32, 33)]
    assert list(split_tasks([], 10, 9)) == []


def test_the_warm_up_image_is_one_for_the_gpu() -> None:
    assert read_jpeg(read_static("preprocess/warmup/sample.jpg")) is not None
