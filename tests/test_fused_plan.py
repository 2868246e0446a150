"""A fused model around a plan, on stand-ins for TensorRT and the GPU; tests/test_fused_gpu.py has the real ones."""

from __future__ import annotations

import ctypes
import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from generator.demo.draw import draw_set
from generator.images.served_pixels import prepare_without_torch
from generator.runtime.decoded import Decoded
from generator.runtime.device import EngineError
from generator.runtime.gpu_array import read_gpu_array
from generator.spec.model import usable_cores
from generator.spec.recipe import Recipe
from generator.triton.fused import read_fused_files
from tests.gpu_images_standin import LEFT_OPEN, Libraries
from tests.tensorrt_standin import Driver, load_backend, make_plan, make_tensorrt
from tests.test_tensorrt_backend import make_pb_utils

RECIPE = Recipe(resize=20, crop=(16, 16), interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
ROW = [16, 16, 3]
# The network doubles its input, takes four images at once with the second profile, and fails for three.
PROFILES = [{"X": ([1, *ROW], [1, *ROW], [most, *ROW])} for most in (1, 4)]
PLAN = make_plan({"X": ("UINT8", [-1, *ROW])}, profiles=PROFILES, fail_rows=3)
FILES = [image.jpeg for image in draw_set(9, seed=4)]
BAD = b"\xff\xd8\xff garbage"
Load = Callable[..., Any]


class GpuPixels:
    """An array on the stand-in's GPU."""

    def __init__(self, driver: Driver, array: NDArray[Any], **more: Any) -> None:
        _, address = driver.cuMemAlloc(array.nbytes)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, **more}


class GpuImages:
    """A decoder that leaves on the GPU what the CPU's decodes."""

    def __init__(self, on_cpu: Any, driver: Driver) -> None:
        self.on_cpu, self.driver = on_cpu, driver

    def decode(self, files: list[bytes]) -> Decoded:
        found = self.on_cpu.decode(files)
        pixels = GpuPixels(self.driver, found.pixels, stream=5, strides=None)
        return Decoded(pixels=pixels, geometry=found.geometry, errors=found.errors)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write the version directory, return an instance on stand-ins."""
    for name, content in {**read_fused_files("tensorrt"), "model.plan": PLAN}.items():
        path = tmp_path / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    pb_utils = make_pb_utils()
    pb_utils.__dict__["get_input_tensor_by_name"] = lambda request, _: request.image
    module = load_backend(tmp_path / "1" / "model.py", pb_utils)
    # what the module imports only when it needs it
    monkeypatch.syspath_prepend(str(tmp_path / "1"))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb_utils)
    limit = Image.MAX_IMAGE_PIXELS

    def make(
        *, on_gpu: bool, plans: dict[str, str] | None = None, has_libraries: bool = True, **parameters: str
    ) -> Any:
        gpu = Driver()
        trt, libraries = make_tensorrt(gpu), Libraries(gpu)
        if has_libraries:
            monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", libraries.codec)
            monkeypatch.setitem(sys.modules, "cvcuda", libraries.cvcuda)
        backend = module.importlib.import_module("trtgen_tensorrt")
        monkeypatch.setattr(backend, "import_driver", lambda _model: gpu)
        monkeypatch.setattr(backend, "import_tensorrt", lambda: trt)
        told = {
            **RECIPE.parameters(),
            "network_backend": "tensorrt",
            "network_input": "X",
            "profile": "1",
            **parameters,
        }
        config = {
            "max_batch_size": 4,
            "default_model_filename": "model.py",
            "cc_model_filenames": plans or {},
            "input": [{"name": "IMAGE", "data_type": "TYPE_STRING", "dims": ["1"]}],
            "output": [{"name": name, "data_type": "TYPE_UINT8", "dims": ROW} for name in ("Y", "PIXELS")],
            "instance_group": [{"name": "m_0", "count": 2, "gpus": [0]}],
            "parameters": {name: {"string_value": value} for name, value in told.items()},
        }
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_name": "m",
                "model_version": "1",
                "model_repository": str(tmp_path),
                "model_instance_name": "m_0_0",
                "model_instance_kind": "GPU",
                "model_instance_device_id": "0",
            }
        )
        if on_gpu:
            model.decoder = GpuImages(model.decoder, gpu)
        model.driver, model.runs, model.logged = gpu, trt.runs, pb_utils.__dict__["logged"]
        model.libraries = libraries
        return model

    with warnings.catch_warnings():
        yield make
    Image.MAX_IMAGE_PIXELS = limit
    for name in [name for name in sys.modules if name.startswith("trtgen_")]:
        del sys.modules[name]


def ask(model: Any, *requests: list[bytes], outputs: tuple[str, ...] = ("Y", "PIXELS")) -> list[Any]:
    """Send all in one execute; return what each is answered, copied as the stub does, or the error's words."""
    given = []
    for files in requests:
        images = np.array([*files, None], np.object_)[:-1].reshape(-1, 1)
        given.append(
            SimpleNamespace(
                image=SimpleNamespace(as_numpy=lambda images=images: images),
                requested_output_names=lambda: list(outputs),
            )
        )
    responses = model.execute(given)
    return [
        one.error.t if one.error else {tensor.name(): tensor.as_numpy().copy() for tensor in one.tensors}
        for one in responses
    ]


def double(files: list[bytes]) -> NDArray[np.uint8]:
    pixels = prepare_without_torch(RECIPE, files)
    return pixels + pixels


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_requests_of_one_execute_are_decoded_and_run_together(load: Load, on_gpu: bool) -> None:
    model = load(on_gpu=on_gpu)
    for _ in range(2):
        model.runs.clear()
        model.driver.piece_bytes.clear()
        parts = [FILES[:1], FILES[1:6], FILES[6:8]]
        for part, answer in zip(parts, ask(model, *parts), strict=True):
            assert list(answer) == ["Y"]
            np.testing.assert_array_equal(answer["Y"], double(part))
        assert model.runs == [(1, {"X": (4, *ROW)})] * 2
        assert bool(model.driver.piece_bytes) != on_gpu  # nothing goes through host memory
    assert model.driver.awaited == ([5, 5] if on_gpu else [])
    threads = max(1, usable_cores() // 2)
    assert ("info", f"m_0_0: images are decoded in {threads} threads") in model.logged
    model.network.model.finalize()
    assert model.driver.open == 0


def test_the_network_runs_on_the_first_images_while_the_next_are_decoded(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(on_gpu=False, decode="gpu")
    monkeypatch.setattr(sys.modules[type(model.decoder).__module__], "_PIECE", 2)
    photos = [make_jpeg(number, (30 + 7 * number, 60 - 5 * number)) for number in range(8)]
    for files in (photos[:4], photos[4:], photos[2:6]):  # of sizes that differ, written over each other
        model.runs.clear()
        (answer,) = ask(model, files)
        np.testing.assert_array_equal(answer["Y"], double(files))
        assert model.runs == [(1, {"X": (2, *ROW)})] * 2
    assert model.libraries.batches == [2] * 6
    assert max(model.driver.piece_bytes) < np.prod(ROW)  # no pixels
    decoders, network = {*model.libraries.streams}, model.network.model.device.stream_number
    assert {*model.driver.awaited} == decoders
    assert network not in decoders

    def run(files: list[bytes]) -> list[int]:
        model.runs.clear()
        (answer,) = ask(model, files)
        np.testing.assert_array_equal(answer["Y"], double(files))
        return [rows for _, shapes in model.runs for rows, *_ in shapes.values()]

    assert run([*photos[:3], _encode(Image.new("RGB", (40, 40), "red"))]) == [
        4
    ]  # one that the decoder is not asked for
    model.libraries.refused = {photos[3]}
    assert run(photos[:4]) == [2, 2]  # the second half when the CPU has made its part
    model.libraries.refused = {photos[1]}
    assert run(photos[:4]) == [4]
    model.libraries.refused = set()
    assert run(photos[:1]) == [1]
    model.runs.clear()
    (answer,) = ask(model, photos[:4], outputs=("PIXELS",))
    np.testing.assert_array_equal(answer["PIXELS"], prepare_without_torch(RECIPE, photos[:4]))
    assert model.runs == []
    model.finalize()
    assert model.driver.open == LEFT_OPEN


def test_a_network_that_fails_on_the_first_images(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(on_gpu=False, decode="gpu")
    monkeypatch.setattr(sys.modules[type(model.decoder).__module__], "_PIECE", 3)
    photos = [make_jpeg(number, (40, 40)) for number in range(4)]
    (why,) = ask(model, photos[:3])  # one piece of three images, for which the network fails
    assert why.endswith("in a batch of 1 requests: unable to enqueue for inference m_0_0: the kernel is ill")
    (answer,) = ask(model, photos)
    np.testing.assert_array_equal(answer["Y"], double(photos))


def make_jpeg(seed: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG of noise that the GPU's decoder takes."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_pixels_are_copied_for_who_asks_for_them_alone(load: Load, on_gpu: bool) -> None:
    model = load(on_gpu=on_gpu)
    model.runs.clear()
    (answer,) = ask(model, FILES[:3], outputs=("PIXELS",))
    np.testing.assert_array_equal(answer["PIXELS"], prepare_without_torch(RECIPE, FILES[:3]))
    assert model.runs == []  # the network, which would fail, did not run


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_is_wrong_is_told_to_whom_it_concerns(load: Load, on_gpu: bool) -> None:
    model = load(on_gpu=on_gpu)
    good, bad = ask(model, FILES[:2], [FILES[2], BAD])
    np.testing.assert_array_equal(good["Y"], double(FILES[:2]))
    assert bad.startswith("IMAGE[1] of 2: not an image in one of the formats")
    first, bad, last = ask(model, FILES[:1], [BAD], FILES[1:2])  # three images: the network fails
    why = "unable to enqueue for inference m_0_0: the kernel is ill"
    assert first == last == f"the network of model 'm' failed in a batch of 3 requests: {why}"
    assert bad.startswith("IMAGE[0] of 1: not an image")
    (again,) = ask(model, FILES[:4])
    np.testing.assert_array_equal(again["Y"], double(FILES[:4]))
    model.runs.clear()
    ask(model, [BAD])
    assert model.runs == []


def test_pillows_limit_holds_for_all_threads_and_is_not_in_the_way_of_resizing(load: Load) -> None:
    model = load(on_gpu=False, decode_threads="3", max_pixels="100")
    said = [answer.partition(":")[2] for answer in ask(model, *([file] for file in FILES))]
    assert all("pixels, at most 100 are accepted" in words for words in said)
    small = _encode(Image.new("L", (10, 10)))  # enlarged to more than twice as many pixels as are accepted
    assert ask(model, [small])[0]["Y"].shape == (1, *ROW)
    assert Image.MAX_IMAGE_PIXELS == 16 * 16 * 16  # one image does not clear it for the next
    model = load(on_gpu=False, resize="16 16", fit="stretch")
    assert RECIPE.max_pixels == Image.MAX_IMAGE_PIXELS
    assert ask(model, [_encode(Image.new("L", (2, 40_000)))])[0]["Y"].shape == (1, *ROW)


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_a_wrong_number_of_threads_is_refused(load: Load) -> None:
    with pytest.raises(Exception, match="parameter 'decode_threads' of model 'm' is 'many'"):
        load(on_gpu=False, decode_threads="many")


def test_a_gpu_takes_the_plan_for_its_compute_capability(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    (folder / "model.plan").rename(folder / "model.sm90.plan")
    (folder / "model.sm89.plan").write_bytes(b"for another GPU")
    model = load(on_gpu=False, plans={"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"})
    (answer,) = ask(model, FILES[:4])
    np.testing.assert_array_equal(answer["Y"], double(FILES[:4]))
    with pytest.raises(Exception, match=r"GPU 0 has compute capability 9\.0, and cc_model_filenames has 8\.9, 10\.0"):
        load(on_gpu=False, plans={"8.9": "model.sm89.plan", "10.0": "model.sm90.plan"})
    (folder / "model.sm90.plan").rename(folder / "model.plan")
    assert load(on_gpu=False, plans={"8.9": "model.sm89.plan"}).network


def test_arrays_of_the_gpu_that_an_engine_cannot_take(load: Load) -> None:
    model = load(on_gpu=False)
    turned = GpuPixels(model.driver, np.zeros((2, *ROW), np.uint8), strides=(1, 48, 3, 1))
    with pytest.raises(EngineError, match="rows were expected"):
        read_gpu_array(turned)
    floats = GpuPixels(model.driver, np.zeros((2, *ROW), np.float32))
    with pytest.raises(model.network.errors, match="input 'X' of m_0_0 lies on the GPU as float32"):
        model.network.run(floats, 0)
    larger = GpuPixels(model.driver, np.zeros((2, 17, 16, 3), np.uint8), stream=None)
    with pytest.raises(model.network.errors, match="dimension 1 to be between 16 and 16 but received 17"):
        model.network.run(larger, 0)
