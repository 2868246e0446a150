"""Every kind of image file against a real tritonserver, over both protocols: the tables of docs/images.md.

A row of the page has its files here, under the same words; the page says what they are answered. Labels come from the
ensemble. What the preprocessing step saw is asked from the step itself and compared with training's own pixels of the
picture that the file shows.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import shutil
import struct
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from tritonclient.utils import InferenceServerException

from generator.demo.draw import LABELS, draw_image, draw_set
from generator.images.training_pixels import make_pixels
from generator.pipeline import BuildOptions, build_repository
from generator.repository import read_record
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from generator.spec.recipe import IMAGENET, Recipe
from tests.server_parts import find_processes
from tests.test_preprocess import read, step

__all__ = ["step"]  # a fixture

PAGE = Path(__file__).parents[1] / "docs" / "images.md"
STAR = LABELS.index("star")
STATUS = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}
# Lossy files differ from the picture by 3 levels in the mean; a rotation, an inversion or a clipped range by 20 to 100.
MOST_LEVELS = 5.0
# Of a preprocessing process after 300 bad requests (measured: 0.1); keeping one decoded picture each would take 50 MiB.
MOST_GROWTH_BYTES = 8 << 20
# What a file that declares gigabytes may take at its peak.
MOST_PEAK_BYTES = 64 << 20

both = pytest.mark.parametrize("protocol", ["grpc", "http"])
server_test = pytest.mark.server


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(samples: NDArray[Any], colour_type: int, *, more: bytes = b"", interlaced: bool = False) -> bytes:
    """Write what Pillow cannot: 16 bits per channel, Adam7, any chunk; `samples` is (H, W, channels)."""
    height, width, _ = samples.shape
    whole = [(0, 0, 1, 1)]
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in (adam7 if interlaced else whole)]
    big_endian = samples.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(big_endian).tobytes() for part in passes for row in part)
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.dtype.itemsize, colour_type, 0, 0, interlaced)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def patch(data: bytes, at: int, *values: int, form: str) -> bytes:
    """Replace numbers at a place of a file."""
    new = struct.pack(form, *values)
    return data[:at] + new + data[at + len(new) :]


def on_white(image: Image.Image) -> Image.Image:
    """The picture on white, worked out here."""
    values = np.asarray(image.convert("RGBA"), float)
    alpha = values[..., 3:] / 255
    return Image.fromarray(np.rint(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


PICTURE = draw_image(np.random.default_rng(3), STAR, width=300, height=240)
OTHER = draw_image(np.random.default_rng(9), LABELS.index("heart"), width=300, height=240)
LEVELS = np.asarray(PICTURE)
GREY = PICTURE.convert("L")
VEIL = Image.fromarray(np.where(np.add.outer(np.arange(240), np.arange(300)) < 130, 20, 255).astype(np.uint8))
VEILED = PICTURE.copy()
VEILED.putalpha(VEIL)
KEYED = PICTURE.copy()  # a corner in one colour that is nowhere else, for formats that have one transparent colour
KEYED.paste((1, 2, 3), (0, 0, 90, 90))
ON_WHITE = PICTURE.copy()
ON_WHITE.paste((255, 255, 255), (0, 0, 90, 90))
# With 255 colours and one more: the corner.
PALETTE = PICTURE.quantize(255)
PALETTE.putpalette([*(PALETTE.getpalette() or [])[: 255 * 3], 1, 2, 3])
PALETTE.paste(255, (0, 0, 90, 90))
DARK = (np.asarray(GREY, np.uint16) * 257)[..., None]
JPEG = encode(PICTURE, "JPEG", quality=92)
BASE = JPEG.index(b"\xff\xc0") + 4  # precision, height, width


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def store(orientation: int) -> Image.Image:
    """The picture as a camera stores it that writes this orientation: turned back by what turns it upright."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, inverse of EXIF's table
    return PICTURE if orientation == 1 else PICTURE.transpose(Image.Transpose(undo[orientation]))


class File(NamedTuple):
    """A file that is answered: the picture it shows, or None where any label will do, and the model that is asked."""

    data: bytes
    shows: Image.Image | None = PICTURE
    model: str = "demo"


def accept(kind: str, image: Image.Image = PICTURE, shows: Image.Image = PICTURE, **options: Any) -> list[File]:
    return [File(data=encode(image, kind, **options), shows=shows)]


FRAMES: dict[str, Any] = {"save_all": True, "append_images": [OTHER]}
ANSWERED: dict[str, list[File]] = {
    "JPEG, baseline": [File(data=JPEG)],
    "JPEG, progressive": accept("JPEG", progressive=True, quality=92),
    "JPEG, 4:4:4": accept("JPEG", subsampling=0, quality=92),
    "JPEG, grey": accept("JPEG", GREY, GREY, quality=92),
    "JPEG, CMYK": accept("JPEG", PICTURE.convert("CMYK"), quality=92),
    "JPEG with an EXIF orientation, `exif: ignore`": [
        File(data=encode(store(6), "JPEG", exif=exif(6), quality=92), shows=store(6))
    ],
    "JPEG with an EXIF orientation, `exif: apply`": [
        File(data=encode(store(turn), "JPEG", exif=exif(turn), quality=92), model="upright") for turn in range(1, 9)
    ],
    "JPEG or PNG whose EXIF is damaged, `exif: apply`": [
        # orientation 6 in a directory that claims a value of another type after it
        File(
            data=encode(
                store(6),
                "JPEG",
                quality=92,
                exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x32\x01\x01\0\x02\0\0\0\1\1\0\0",
            ),
            model="upright",
        ),
        File(data=encode(PICTURE, "JPEG", quality=92, exif=b"Exif\0\0nothing of the kind"), model="upright"),
        File(
            data=write_png(LEVELS, 2, more=chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nno hex")), model="upright"
        ),
    ],
    "JPEG with a colour profile": accept(
        "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(), quality=92
    ),
    "MPO (a camera's JPEG with several pictures)": accept("MPO", **FRAMES, quality=92),
    "JPEG with more bytes after its end": [File(data=JPEG + b"more" * 100)],
    "JPEG damaged inside, but with its end": [
        File(data=JPEG[: len(JPEG) // 2] + bytes(300) + JPEG[len(JPEG) // 2 + 300 :], shows=None),
        File(data=JPEG[: len(JPEG) // 2] + b"\xff\xd9", shows=None),
    ],
    "PNG, RGB": accept("PNG"),
    "PNG, interlaced": [File(data=write_png(LEVELS, 2, interlaced=True))],
    "PNG, grey": accept("PNG", GREY, GREY),
    "PNG, palette": accept("PNG", PICTURE.quantize(256)),
    "PNG, black and white": accept("PNG", GREY.convert("1"), GREY.convert("1")),
    "PNG, palette with transparency": accept("PNG", PALETTE, ON_WHITE, transparency=255),
    "PNG with alpha": accept("PNG", VEILED, on_white(VEILED)),
    "PNG, grey with alpha": accept("PNG", VEILED.convert("LA"), on_white(VEILED.convert("LA"))),
    "PNG, RGB with one transparent colour": accept("PNG", KEYED, ON_WHITE, transparency=(1, 2, 3)),
    "PNG, 16-bit grey": [
        File(data=write_png(DARK, 0), shows=GREY),
        File(data=write_png(DARK, 0, more=chunk(b"tRNS", struct.pack(">H", int(DARK[0, 0, 0])))), shows=GREY),
    ],
    "PNG, 16-bit RGB": [File(data=write_png(LEVELS.astype(np.uint16) * 257, 2))],
    "PNG, animated": accept("PNG", **FRAMES),
    "PNG without its last chunk": [File(data=encode(PICTURE, "PNG")[:-12]), File(data=encode(PICTURE, "PNG")[:-1])],
    "WebP, lossy": accept("WEBP", quality=92),
    "WebP, lossless": accept("WEBP", lossless=True),
    "WebP with alpha": accept("WEBP", VEILED, on_white(VEILED), lossless=True),
    "WebP, animated": accept("WEBP", **FRAMES, quality=92),
    "GIF": accept("GIF"),
    "GIF, animated": accept("GIF", **FRAMES),
    "GIF with transparency": accept("GIF", PALETTE, ON_WHITE, transparency=255),
    "BMP": accept("BMP"),
    "BMP, 32 bits": accept("BMP", VEILED),
    "1x1": [
        File(data=encode(Image.new("RGB", (1, 1), (9, 99, 199)), kind), shows=None)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    ],
    "any of these as base64 text, in one line or several": [
        *(File(data=base64.b64encode(encode(PICTURE, kind))) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")),
        File(data=b"\r\n" + base64.encodebytes(JPEG).replace(b"\n", b"\r\n")),
    ],
    "`data:image/jpeg;base64,` and such text": [File(data=b"data:image/jpeg;base64," + base64.b64encode(JPEG))],
}


def declare_gif_frame() -> bytes:
    """A GIF whose first frame is far larger than its canvas and is to be disposed of: Pillow makes room at once."""
    more = [PICTURE.quantize(8)]
    data = bytearray(encode(OTHER.quantize(8), "GIF", save_all=True, append_images=more, disposal=2))
    frame = data.index(b"!\xf9\4") + 8  # behind the extension that says how to dispose of it
    assert data[frame] == ord(",")
    data[frame + 1 : frame + 9] = struct.pack("<HHHH", 0, 0, 35000, 35000)
    return bytes(data)


def declare_webp(side: int) -> bytes:
    small = Image.new("RGB", (4, 4))
    data = encode(small, "WEBP", save_all=True, append_images=[Image.new("RGB", (4, 4), (9, 9, 9))])
    return patch(data, data.index(b"VP8X") + 12, *struct.pack("<I", side - 1)[:3] * 2, form="6B")


def cut(data: bytes, *missing: int) -> list[bytes]:
    return [data[:-count] for count in missing]


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8))
NOISY = encode(NOISE, "JPEG", quality=90)
PNG, GIF, BMP = (encode(NOISE, kind) for kind in ("PNG", "GIF", "BMP"))
TEXT_BOMB = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000), 9))
REFUSED: dict[str, list[bytes]] = {
    "no bytes": [b""],
    "random bytes": [np.random.default_rng(size).bytes(size) for size in (1, 7, 100, 5000)],
    "text": [b"hello, this is text", b"\n", "κείμενο".encode()],
    "SVG": [b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'],
    "PDF": [b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n"],
    "TIFF": [encode(NOISE, "TIFF"), b"II*\0\x08\0\0\0"],
    "AVIF": [b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miafMA1B" + bytes(100)],
    "JPEG with 12 bits": [patch(NOISY, NOISY.index(b"\xff\xc0") + 4, 12, form="B")],
    "JPEG, its first bytes": [NOISY[:size] for size in (1, 2, 3)],
    "JPEG, cut off in its header": [NOISY[:100], NOISY[:300]],
    "JPEG, cut off behind its header": cut(NOISY, 1, 2, 3, 10, 100, 1000, len(NOISY) // 4, len(NOISY) // 2),
    "JPEG, progressive, cut off": cut(encode(NOISE, "JPEG", progressive=True), 1, 2, 10, 1000, 4000),
    "PNG, cut off": cut(PNG, 40, 1000, len(PNG) // 2),
    "PNG, a wrong checksum in its header": [PNG.replace(b"IHDR\0\0\0\xa0", b"IHDR\0\0\0\xa1")],
    "PNG, damaged pixels": [PNG[: len(PNG) // 2] + bytes(300) + PNG[len(PNG) // 2 + 300 :]],
    "PNG whose text unfolds to 100 MB": [write_png(LEVELS[:4, :4], 2, more=TEXT_BOMB)],
    "WebP, cut off": cut(encode(NOISE, "WEBP"), 1, 100, 1000),
    "GIF, cut off": cut(GIF, 100, 1000, len(GIF) // 2),
    "BMP, cut off": cut(BMP, 1, 1000, len(BMP) // 2),
    "more pixels than `max_pixels`": [encode(Image.new("RGB", (1001, 1000)), "PNG")],
    "PNG of 1 kB that declares 60000x60000": [
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(900_000)))
        + chunk(b"IEND", b"")
    ],
    "JPEG that declares 60000x60000": [patch(JPEG, BASE + 1, 60000, 60000, form=">HH")],
    "WebP that declares 16000x16000": [declare_webp(16000)],
    "GIF that declares 60000x60000": [patch(GIF, 6, 60000, 60000, form="<HH")],
    "GIF with a frame far larger than its canvas": [declare_gif_frame()],
    "BMP that declares 60000x60000": [patch(BMP, 18, 60000, 60000, form="<ii")],
    "more bytes than `max_bytes`": [JPEG + bytes(32 << 20)],
    "base64 text, damaged": [base64.b64encode(NOISY)[:-400] + b"%" + base64.b64encode(NOISY)[-400:]],
    "base64 text, cut off": [base64.b64encode(NOISY)[:size] for size in (5, -1, -2, -401)],
    "base64 text of a file that is cut off": [base64.b64encode(NOISY[:-1000])],
    "base64 text of anything else": [base64.b64encode(encode(NOISE, "TIFF")), b"data:text/plain;base64,aGVsbG8="],
}
LIMITED, LARGE = "more pixels than `max_pixels`", "more bytes than `max_bytes`"  # the first has a model of its own
DECLARED = [kind for kind in REFUSED if "declares" in kind or "frame" in kind]


def read_table(heading: str) -> dict[str, str]:
    """Return the rows of the table below a heading of the page, second column by first."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (?!file \||---)(.+?) \| (.+) \|$", section, re.MULTILINE))


class Caller:
    """A client of either protocol."""

    def __init__(self, server: EmbeddedServer, protocol: str) -> None:
        self._triton = importlib.import_module(f"tritonclient.{protocol}")
        self._client = self._triton.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url)

    def ask(self, model: str, output: str, images: list[bytes], *, classes: int = 0) -> Any:
        tensor = self._triton.InferInput("IMAGE", [len(images), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(images, np.object_).reshape(-1, 1))
        wanted = self._triton.InferRequestedOutput(output, class_count=classes)
        return self._client.infer(model, [tensor], outputs=[wanted]).as_numpy(output)

    def label(self, images: list[bytes], model: str = "demo") -> list[str]:
        cells = self.ask(model, "PROBABILITIES", images, classes=1).reshape(-1)
        return [cell.decode().split(":", 2)[2] for cell in cells]

    def see(self, data: bytes, model: str = "demo") -> NDArray[np.float64]:
        return np.asarray(self.ask(f"{model}_preprocess", "PIXELS", [data])[0], np.float64)

    def refuse(self, images: list[bytes], model: str = "demo") -> tuple[str, str]:
        """Return status and message of a request that must fail."""
        with pytest.raises(InferenceServerException) as caught:
            self.label(images, model)
        return str(caught.value.status()), str(caught.value.message())

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def repository(built_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, and `upright`: the same with `exif: apply` and a lower limit of pixels."""
    root = Path(shutil.copytree(built_demo, tmp_path_factory.mktemp("images") / "model_repository"))
    recipe = {"exif": "apply", "max_pixels": 1_000_000}
    instances = {"preprocess": 1, "classifier": 1}
    spec = make_spec(["upright"], source="demo", recipe=recipe, batch={"max": 8}, instances=instances)[0]
    build_repository(spec, root, BuildOptions(verify=False))
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture
def call(server: EmbeddedServer) -> Iterator[Callable[[str], Caller]]:
    callers = []

    def connect(protocol: str) -> Caller:
        callers.append(Caller(server, protocol))
        return callers[-1]

    yield connect
    for caller in callers:
        caller.close()


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    record = read_record(repository, "demo")
    assert record is not None
    return Recipe.model_validate(record.recipe)


def stubs(server: EmbeddedServer) -> dict[int, psutil.Process]:
    found = find_processes(server.repository)
    return {process.pid: process for process in found if "triton_python_backend_stub" in process.cmdline()[0]}


def test_every_row_of_the_page_has_its_files() -> None:
    assert list(read_table("Answered with a label")) == list(ANSWERED)
    assert list(read_table("Refused")) == list(REFUSED)


@server_test
@both
@pytest.mark.parametrize("kind", ANSWERED)
def test_is_answered(call: Callable[[str], Caller], recipe: Recipe, protocol: str, kind: str) -> None:
    caller = call(protocol)
    for file in ANSWERED[kind]:
        (label,) = caller.label([file.data], file.model)
        if file.shows is None:
            assert label in LABELS
        else:
            difference = np.abs(caller.see(file.data, file.model) - make_pixels(recipe)(file.shows.convert("RGB")))
            assert difference.mean() < MOST_LEVELS
            assert label == "star"


@server_test
@both
@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused(call: Callable[[str], Caller], protocol: str, kind: str) -> None:
    words = read_table("Refused")[kind].strip("`")
    for data in REFUSED[kind]:
        status, message = call(protocol).refuse([data], "upright" if kind == LIMITED else "demo")
        assert status == STATUS[protocol]
        assert re.search(r"IMAGE\[0\] of 1: (\d+ )?" + re.escape(words), message), message


@server_test
def test_json_carries_base64_text(server: EmbeddedServer) -> None:
    """What clients send that can send text only: `/infer` without binary data, and `/generate`."""

    def post(verb: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        url = f"http://{server.http_url}/v2/models/demo/{verb}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def infer(*texts: str) -> tuple[int, dict[str, Any]]:
        image = {"name": "IMAGE", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}
        scores = {"name": "PROBABILITIES", "parameters": {"classification": 1}}
        return post("infer", {"inputs": [image], "outputs": [scores]})

    star, heart = (base64.b64encode(encode(image, "JPEG", quality=92)).decode() for image in (PICTURE, OTHER))
    status, answer = infer(star, heart)
    assert status == 200
    assert [cell.split(":")[2] for cell in answer["outputs"][0]["data"]] == ["star", "heart"]
    status, answer = post("generate", {"IMAGE": star})
    assert status == 200
    assert int(np.argmax(answer["PROBABILITIES"])) == STAR
    status, answer = infer(star, heart[:-1])
    assert status == 400
    assert f"IMAGE[1] of 2: base64 text of {len(heart) - 1} characters, a multiple of 4 was expected" in answer["error"]


@server_test
@both
def test_what_nvidias_image_clients_ask_for(server: EmbeddedServer, protocol: str) -> None:
    """What image_client.py and grpc_image_client.py check and send, and what ensemble_image_client.py sends.

    The scripts are in no package; docs/clients.md shows them run as they are.
    """
    triton = importlib.import_module(f"tritonclient.{protocol}")
    as_json = {"as_json": True} if protocol == "grpc" else {}
    drawn = draw_set(3, seed=8)
    names = [LABELS[image.label] for image in drawn]

    def ask(model: str, datatype: str, images: NDArray[Any]) -> list[str]:
        tensor = triton.InferInput(metadata["inputs"][0]["name"], list(images.shape), datatype)
        tensor.set_data_from_numpy(images)
        output = metadata["outputs"][0]["name"]
        wanted = triton.InferRequestedOutput(output, class_count=2)
        rows = client.infer(model, [tensor], outputs=[wanted]).as_numpy(output)
        assert rows.shape == (3, 2)
        return [row[0].decode().split(":")[2] for row in rows]

    with triton.InferenceServerClient(server.grpc_url if protocol == "grpc" else server.http_url) as client:
        metadata = client.get_model_metadata("demo_classifier", **as_json)
        config = client.get_model_config("demo_classifier", **as_json)
        config = config.get("config", config)
        assert (len(metadata["inputs"]), len(metadata["outputs"]), len(config["input"])) == (1, 1, 1)
        assert (metadata["outputs"][0]["datatype"], len(metadata["outputs"][0]["shape"])) == ("FP32", 2)
        assert config["max_batch_size"] > 0
        assert config["input"][0]["format"] == "FORMAT_NHWC"
        _, height, width, channels = map(int, metadata["inputs"][0]["shape"])
        assert channels == 3
        pictures = [Image.open(io.BytesIO(image.jpeg)).resize((width, height)) for image in drawn]
        pixels = np.stack([np.asarray(picture) for picture in pictures])
        assert ask("demo_classifier", metadata["inputs"][0]["datatype"], pixels) == names

        metadata = client.get_model_metadata("demo", **as_json)
        files = np.stack([np.array([image.jpeg], dtype=bytes) for image in drawn])
        assert ask("demo", "BYTES", files) == names


@server_test
@both
def test_a_bad_image_is_named_by_its_place(call: Callable[[str], Caller], protocol: str) -> None:
    images = [image.jpeg for image in draw_set(8, seed=5)]
    names = [LABELS[image.label] for image in draw_set(8, seed=5)]
    for place in (0, 5, 7):
        status, message = call(protocol).refuse([*images[:place], NOISY[:-1000], *images[place + 1 :]])
        assert status == STATUS[protocol]
        assert f"IMAGE[{place}] of 8: broken image" in message
        others = images[:place] + images[place + 1 :]
        assert call(protocol).label(others) == names[:place] + names[place + 1 :]


@server_test
def test_files_that_declare_gigabytes_cost_neither_time_nor_memory(
    server: EmbeddedServer, call: Callable[[str], Caller]
) -> None:
    caller = call("grpc")
    caller.label([JPEG])
    before = {pid: peak_bytes(pid) for pid in stubs(server)}
    for kind in DECLARED:
        start = time.monotonic()
        caller.refuse(REFUSED[kind])
        assert time.monotonic() - start < 1.0, kind
    for pid, peak in before.items():
        assert peak_bytes(pid) - peak < MOST_PEAK_BYTES


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@server_test
@both
def test_good_requests_are_answered_beside_bad_ones(
    server: EmbeddedServer, call: Callable[[str], Caller], protocol: str
) -> None:
    drawn = draw_set(10, seed=6)
    bad = [data for kind, files in REFUSED.items() for data in files if kind not in (LIMITED, LARGE)]
    stop = threading.Event()

    def send_bad(first: int) -> int:
        caller, sent = call(protocol), 0
        while not stop.is_set():
            assert caller.refuse([bad[(first + sent) % len(bad)]])[0] == STATUS[protocol]
            sent += 1
        return sent

    def send_good() -> None:
        caller = call(protocol)
        for _ in range(8):
            for image in drawn:
                assert caller.label([image.jpeg]) == [LABELS[image.label]]

    pids = stubs(server).keys()
    with ThreadPoolExecutor(4) as pool:
        senders = [pool.submit(send_bad, first) for first in (0, len(bad) // 2)]
        try:
            for good in [pool.submit(send_good) for _ in range(2)]:
                good.result()
        finally:
            stop.set()
        assert all(sender.result() > 0 for sender in senders)
    assert stubs(server).keys() == pids


@server_test
def test_memory_stays_flat_over_bad_requests(server: EmbeddedServer, call: Callable[[str], Caller]) -> None:
    """Not over good ones: `max_bytes` and `max_pixels` bound what each may take."""
    caller = call("grpc")
    bad = [data for kind, files in REFUSED.items() for data in files if kind not in (LIMITED, LARGE)]

    def send(count: int) -> None:
        for number in range(count):
            caller.refuse([bad[number % len(bad)]])

    send(2 * len(bad))
    before = {pid: process.memory_info().rss for pid, process in stubs(server).items()}
    send(300)
    after = {pid: process.memory_info().rss for pid, process in stubs(server).items()}
    assert after.keys() == before.keys()
    for pid, rss in before.items():
        assert after[pid] - rss < MOST_GROWTH_BYTES


def test_sixteen_bits_are_divided_within_sixteen_bits(step: Any) -> None:
    """All 65536 levels, and a small file with many pixels: in floating point each would take 24 bytes."""
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    seen = np.asarray(step.to_rgb(Image.fromarray(levels)))[..., 0]
    assert np.array_equal(seen, np.rint(levels / 257))
    large = Image.new("I;16", (2000, 1000), 999)
    tracemalloc.start()
    step.to_rgb(large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2000 * 1000


def test_exif_that_others_cannot_write_is_applied(step: Any) -> None:
    """An orientation beside a value of the wrong type, at which Pillow's exif_transpose raises."""
    (file, *_) = ANSWERED["JPEG or PNG whose EXIF is damaged, `exif: apply`"]
    apply = IMAGENET.model_copy(update={"exif": "apply"})
    assert step.decode(file.data, read(step, apply)).shape == (224, 224, 3)
