"""`decode`: what it becomes on this host, what is published then, and the step that decodes on the GPU.

The GPU and its libraries are stand-ins (tests/gpu_images_standin.py).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator import api, decoding
from generator.errors import DeviceError, MissingDependencyError, SpecError
from generator.images.served_pixels import are_alike, load_step
from generator.repository.fingerprint import fingerprint
from generator.runtime.cpu_images import CpuImages
from generator.spec.model import ModelSpec
from generator.spec.recipe import IMAGENET, Recipe
from generator.triton.check import parse_config
from generator.triton.fused import read_decoder_files
from tests.gpu_images_standin import Libraries
from tests.tensorrt_standin import Driver
from tests.test_fused_plan import FILES, Load, ask, double, load
from tests.test_gpu_images import LEFT, PHOTO, TALL, WIDE, open_recipe, save
from tests.tiny_repository import make_colour_classifier

__all__ = ["load"]  # a fixture
PLAN: dict[str, Any] = {"name": "resnet18", "weights": "random", "target": "tensorrt-10"}
LINEAR = Recipe.model_validate({**IMAGENET.model_dump(), "interpolation": "linear"})


def choose(spec: ModelSpec, recipe: Recipe = IMAGENET, published: Any = None) -> tuple[ModelSpec, str]:
    return decoding.choose_decode(spec, lambda _: recipe, published)


@pytest.fixture
def gpu_host(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A host that decodes on its GPU; what is put into the list is what the probe finds wrong."""
    wrong: list[str] = []
    monkeypatch.setattr(decoding, "_is_installed", lambda _: True)
    monkeypatch.setattr("generator.gpu.find_gpu", lambda: None)
    monkeypatch.setattr(decoding, "_probe", lambda: "".join(wrong))
    return wrong


def test_nothing_is_decided_without_a_plan() -> None:
    for spec in (ModelSpec(name="resnet18", target="onnxruntime"), ModelSpec(**PLAN, decode="cpu")):
        settled, reason = choose(spec)
        assert (settled.decode, settled.layout, reason) == ("cpu", None, "")


def test_the_packages_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_is_installed", lambda _: False)
    settled, reason = choose(ModelSpec(**PLAN))
    assert settled.decode == "cpu"
    assert reason.startswith("cpu: the package nvidia.nvimgcodec is not installed")
    assert "pip install -e '.[gpu-decode]'" in reason
    with pytest.raises(MissingDependencyError) as error:
        choose(ModelSpec(**PLAN, decode="gpu"))
    assert "[gpu-decode]" in error.value.hint


@pytest.mark.usefixtures("gpu_host")
def test_the_gpu_decodes_beside_a_plan() -> None:
    settled, reason = choose(ModelSpec(**PLAN))
    assert (settled.decode, settled.layout) == ("gpu", "fused")
    assert reason.startswith("gpu, fused: ")


@pytest.mark.usefixtures("gpu_host")
def test_what_is_an_ensemble_stays_one() -> None:
    ensemble, fused = (SimpleNamespace(spec={"layout": layout}) for layout in (None, "fused"))
    assert choose(ModelSpec(**PLAN), published=ensemble)[0].layout == "ensemble"
    assert choose(ModelSpec(**PLAN), published=fused)[0].layout == "fused"
    assert choose(ModelSpec(**PLAN, layout="ensemble"))[0].layout == "ensemble"
    assert choose(ModelSpec(**PLAN, instances={"preprocess": 2}))[0].layout == "ensemble"
    assert choose(ModelSpec(**PLAN, response_cache=True))[0].layout == "ensemble"  # the one that has a cache


@pytest.mark.usefixtures("gpu_host")
def test_a_recipe_of_pillow() -> None:
    settled, reason = choose(ModelSpec(**PLAN), LINEAR)
    assert settled.decode == "cpu"
    assert "interpolation linear is done by Pillow only" in reason
    with pytest.raises(SpecError, match="interpolation linear") as error:
        choose(ModelSpec(**PLAN, decode="gpu"), LINEAR)
    assert error.value.fields == {"decode": "cpu"}


def test_a_gpu_without_the_engine(gpu_host: list[str]) -> None:
    gpu_host.append("its JPEG engine did not take a photograph")
    settled, reason = choose(ModelSpec(**PLAN))
    assert settled.decode == "cpu"
    assert reason == "cpu: images cannot be decoded on this GPU: its JPEG engine did not take a photograph"
    with pytest.raises(DeviceError, match="did not take a photograph"):
        choose(ModelSpec(**PLAN, decode="gpu"))


def test_a_fused_model_decodes_where_its_plan_is() -> None:
    with pytest.raises(SpecError, match="decode: gpu with layout: fused needs a TensorRT target"):
        ModelSpec(name="resnet18", target="onnxruntime", decode="gpu", layout="fused")


def test_decided_as_cpu_is_as_if_there_were_no_choice() -> None:
    auto, cpu, gpu = (ModelSpec(name="resnet18", decode=decode) for decode in ("auto", "cpu", "gpu"))
    assert fingerprint(auto) == fingerprint(cpu)
    assert "decode" not in auto.as_record()
    assert "decode" not in cpu.as_record()
    assert gpu.as_record()["decode"] == "gpu"
    assert fingerprint(gpu)["artifact"] != fingerprint(cpu)["artifact"]
    assert fingerprint(gpu)["configuration"] != fingerprint(cpu)["configuration"]


@pytest.mark.usefixtures("gpu_host")
def test_what_is_published(tmp_path: Path) -> None:
    onnx = tmp_path / "colours.onnx"
    onnx.write_bytes(make_colour_classifier())
    root = tmp_path / "models"
    fields: dict[str, Any] = {"raw": True, "labels": "index", "recipe": {"base": "imagenet", "resize": 9, "crop": 8}}
    built = api.build(str(onnx), root, verify=False, target="onnxruntime", decode="gpu", **fields)
    again = api.build(str(onnx), root, verify=False, target="onnxruntime", decode="gpu", **fields)
    assert {change.word for change in built.changes} == {"create"}
    assert {change.word for change in again.changes} == {"identical"}
    record = json.loads((root / "colours" / "trtgen.json").read_text())
    assert record["spec"]["decode"] == "gpu"
    step = root / "colours_preprocess"
    assert {path.relative_to(step / "1").as_posix() for path in (step / "1").rglob("*.py")} == set(read_decoder_files())
    config = parse_config("colours_preprocess", (step / "config.pbtxt").read_text())
    (group,) = config.instance_group
    assert (group.Kind.Name(group.kind), group.count) == ("KIND_GPU", 4)
    assert config.HasField("dynamic_batching")
    back = api.build(str(onnx), root, verify=False, target="onnxruntime", decode="cpu", **fields)
    assert back.version == 2
    assert [path.name for path in (step / "2").iterdir()] == ["model.py"]
    assert "KIND_CPU" in (step / "config.pbtxt").read_text()


class RefusedError(Exception):
    """Triton's exception for a model that does not load."""


class Request:
    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def as_numpy(self) -> Any:
        return np.array([[data] for data in self.files], object)


@pytest.fixture
def step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The served step's module, loaded from its files; `gpu` and `libraries` are those that it will find."""
    for name, content in read_decoder_files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    said: list[str] = []
    pb_utils: Any = ModuleType("triton_python_backend_utils")
    pb_utils.Logger = SimpleNamespace(log_warn=said.append, log_info=said.append)
    pb_utils.TritonModelException = RefusedError
    pb_utils.TritonError = type("TritonError", (str,), {"INVALID_ARG": 1, "__new__": lambda _, text, __: str(text)})
    pb_utils.Tensor = lambda name, values: (name, values)
    pb_utils.InferenceResponse = lambda answers=(), error=None: error or {name: v.copy() for name, v in answers}
    pb_utils.get_input_tensor_by_name = lambda request, _: request
    gpu = Driver()
    libraries = Libraries(gpu)
    modules = {
        "triton_python_backend_utils": pb_utils,
        "nvidia.nvimgcodec": libraries.codec,
        "cvcuda": libraries.cvcuda,
        "cuda.bindings.driver": gpu,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in [name for name in sys.modules if name.startswith("trtgen_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = importlib.util.spec_from_file_location("gpu_step", tmp_path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    limit = Image.MAX_IMAGE_PIXELS
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield SimpleNamespace(module=module, gpu=gpu, libraries=libraries, said=said)
    Image.MAX_IMAGE_PIXELS = limit
    for name in [name for name in sys.modules if name.startswith("trtgen_")]:
        del sys.modules[name]


def open_step(step: Any) -> Any:
    config = {
        "input": [{"name": "IMAGE"}],
        "output": [{"name": "PIXELS"}, {"name": "GEOMETRY"}],
        "instance_group": [{"count": 4}],
        "parameters": {name: {"string_value": value} for name, value in IMAGENET.parameters().items()},
    }
    model = step.module.TritonPythonModel()
    names = {"model_name": "x_preprocess", "model_instance_name": "x_preprocess_0", "model_instance_device_id": "0"}
    model.initialize({"model_config": json.dumps(config), **names})
    return model


def test_the_step_answers_each_request_for_itself(step: Any) -> None:
    model = open_step(step)
    requests = [[WIDE, TALL], [LEFT["PNG"]], [WIDE, b"no image"], [TALL]]
    answers = model.execute([Request(files) for files in requests])
    on_cpu = CpuImages(load_step("preprocess"), open_recipe(), threads=1)
    for files, answer in zip(requests, answers, strict=True):
        wanted = on_cpu.decode(files)
        if any(wanted.errors):
            assert answer == "IMAGE[1] of 2: not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP"
        else:
            assert np.array_equal(answer["PIXELS"], wanted.pixels)
            assert np.array_equal(answer["GEOMETRY"], np.array(wanted.geometry, np.float32))
    assert step.libraries.batches == [4]  # the images of all requests together
    model.finalize()
    assert step.said == []


def test_the_step_says_what_is_missing(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step.gpu.gpus = 0
    with pytest.raises(RefusedError, match="unable to load model 'x_preprocess': cuInit failed: CUDA_ERROR_NO_DEVICE"):
        open_step(step)
    monkeypatch.setitem(sys.modules, "cvcuda", None)
    with pytest.raises(RefusedError, match="decoding on the GPU needs cvcuda, which is not installed; install trtgen"):
        open_step(step)


def test_the_probe(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding.probe_gpu() == ""
    assert step.libraries.batches == [2]
    step.libraries.colour_off = 3
    assert decoding.probe_gpu().startswith("a photograph is up to 3 levels off Pillow's pixels, as with nvJPEG of CUDA")
    step.libraries.colour_off = 1
    assert decoding.probe_gpu() == ""
    monkeypatch.setattr(step.libraries.cvcuda.Interp, "LINEAR", Image.Resampling.BOX)
    assert "levels off Pillow's pixels" in decoding.probe_gpu()
    step.libraries.refused = {Path("generator/assets/flower.jpg").read_bytes()}
    assert decoding.probe_gpu() == "the GPU did not take a JPEG of 640x427, the CPU decodes such images"


def test_the_probe_is_a_process_of_its_own() -> None:
    reason = decoding._probe()  # the packages are not installed where this runs, or there is no GPU
    assert not reason or reason.startswith("decoding on the GPU needs") or "cuInit" in reason


def test_a_probe_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such symbol' >&2\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert decoding._probe() == "the process that tried it ended with -11: no such symbol"


def test_small_images_are_no_matter_of_the_gpu(step: Any) -> None:
    model = open_step(step)
    assert len(model.execute([Request([save(PHOTO.resize((30, 20)))])])) == 1
    assert step.libraries.batches == []


def test_a_fused_model_decodes_on_the_gpu_of_its_plan(load: Load) -> None:
    model = load(on_gpu=False, decode="gpu")
    gif = save(PHOTO.resize((60, 40)), "GIF")
    requests = [FILES[:2], [gif, FILES[2]], [b"no image"]]
    for _ in range(2):
        first, mixed, refused = ask(model, *requests)
        assert np.array_equal(first["Y"], double(requests[0]))
        assert np.array_equal(mixed["Y"], double(requests[1]))
        assert refused.startswith("IMAGE[0] of 1: not an image")
    assert model.libraries.batches == [3, 3]
    (answer,) = ask(model, requests[1], outputs=("PIXELS",))
    assert np.array_equal(answer["PIXELS"] * 2, double(requests[1]))


def test_a_fused_model_says_what_is_missing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvcuda", None)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", ModuleType("nvidia.nvimgcodec"))
    with pytest.raises(Exception, match="decoding on the GPU needs cvcuda, which is not installed; install trtgen"):
        load(on_gpu=False, decode="gpu", has_libraries=False)


@pytest.mark.parametrize(
    ("levels", "values", "on_cpu", "on_gpu"),
    [(0, 0, True, True), (1, 3000, True, True), (2, 3, False, True), (2, 4, False, False), (3, 1, False, False)],
)
def test_how_far_pixels_may_be_off(levels: int, values: int, on_cpu: bool, on_gpu: bool) -> None:
    """An image of 3,000 values, so many of which are so many levels lower, beside one that is equal."""
    expected = np.full((2, 10, 100, 3), 200, np.uint8)
    pixels = expected.copy()
    pixels[1].reshape(-1)[:values] -= levels
    assert list(are_alike(pixels, expected, on_gpu=False)) == [True, on_cpu]
    assert list(are_alike(pixels, expected, on_gpu=True)) == [True, on_gpu]
