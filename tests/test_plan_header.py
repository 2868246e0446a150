"""Reading a plan's header: real RTX plans built here, and headers laid out as TensorRT's own tool reads them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from generator.errors import PlanError
from generator.plan.header import read_header
from generator.plan.library import TensorRTVersion


def plan_bytes(version: tuple[int, ...] = (10, 16, 1, 11), *, size: int = 4096, stated: int | None = None) -> bytes:
    """A file that begins as TensorRT's plans do."""
    head = b"ftrt" + bytes(12) + struct.pack("<Q", size if stated is None else stated) + bytes(version)
    return head + bytes(size - len(head))


def relu_model() -> onnx.ModelProto:
    shape: list[str | int | None] = ["n", 4]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def rtx_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real plan of TensorRT-RTX, which builds without a GPU."""
    trt = pytest.importorskip("tensorrt_rtx")
    from generator.plan.library import open_log

    logger = open_log("tensorrt_rtx").logger
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(relu_model().SerializeToString())
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (8, 4))
    config.add_optimization_profile(profile)
    path = tmp_path_factory.mktemp("rtx") / "model.plan"
    path.write_bytes(bytes(builder.build_serialized_network(network, config)))
    return path


def refused(path: Path) -> PlanError:
    with pytest.raises(PlanError) as caught:
        read_header(path)
    assert caught.value.hint
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("version", [(8, 6, 0, 12), (8, 6, 1, 6), (10, 16, 1, 11), (11, 4, 0, 106)])
def test_the_version_is_read(tmp_path: Path, version: tuple[int, ...]) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes(version))
    header = read_header(path)
    assert header.version == TensorRTVersion(*version)
    assert header.size_bytes == 4096


@pytest.mark.parametrize("major", [0, 1, 7, 31, 255])
def test_an_implausible_version_is_unknown_and_not_wrong(tmp_path: Path, major: int) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes((major, 6, 0, 1), stated=1 << 20))
    assert read_header(path).version is None


def test_another_serialization_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    data = bytearray(plan_bytes())
    data[4] = 1
    path.write_bytes(bytes(data))
    assert read_header(path).version is None


def test_a_size_elsewhere_refuses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes(stated=0))
    assert read_header(path).version == TensorRTVersion(10, 16, 1, 11)


def test_a_real_rtx_plan_is_refused(rtx_plan: Path) -> None:
    assert "was built by TensorRT-RTX" in refused(rtx_plan).message


@pytest.mark.parametrize("kept", [4, 27, 28, 4095])
def test_cut_off(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(plan_bytes()[:kept])
    assert "cut off" in refused(path).message


def test_the_plan_is_taken_out_of_an_ultralytics_file_as_the_hint_says(tmp_path: Path) -> None:
    metadata = json.dumps({"description": "Ultralytics YOLO", "imgsz": [640, 640], "names": "x" * 6000}).encode()
    path = tmp_path / "yolo best.engine"
    path.write_bytes(struct.pack("<I", len(metadata)) + metadata + plan_bytes((10, 3, 0, 26)))
    error = refused(path)
    assert "Ultralytics" in error.message
    assert error.hint is not None
    subprocess.run(["sh", "-c", error.hint.partition(": ")[2]], check=True)
    assert (tmp_path / "yolo best.plan").read_bytes() == plan_bytes((10, 3, 0, 26))


def test_onnx_given_by_mistake(tmp_path: Path) -> None:
    for name in ("model.plan", "my model.onnx"):
        path = tmp_path / name
        path.write_bytes(relu_model().SerializeToString())
        error = refused(path)
        assert "is an ONNX file" in error.message
        assert error.command == ("build-plan", str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, world\n", "is not a TensorRT plan"),
        (b"f", "is not a TensorRT plan"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"{}" * 50, "is not a TensorRT plan"),
        (struct.pack("<I", 10) + b"{" + bytes(20), "is not a TensorRT plan"),
    ],
)
def test_other_content(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    assert words in refused(path).message


def test_absent_and_a_folder(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "absent.plan").message
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.plan").touch()
    error = refused(tmp_path / "1")
    assert "is a folder" in error.message
    assert error.hint is not None
    assert str(tmp_path / "1" / "model.plan") in error.hint


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), magic=st.sampled_from([b"", b"ftrt", b"vtrt", b"\x05\0\0\0{", b"\x08\x08\x12"]))
def test_any_bytes_end_in_a_header_or_a_plan_error(tmp_path: Path, data: bytes, magic: bytes) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(magic + data)
    try:
        header = read_header(path)
    except PlanError as error:
        said = error.hint
    else:
        said = str(header)
        assert header.size_bytes == len(magic + data)
    assert said


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.integers(0, 63), st.integers(0, 255), min_size=1, max_size=4))
def test_a_changed_header_never_gives_an_implausible_version(tmp_path: Path, changes: dict[int, int]) -> None:
    path = tmp_path / "model.plan"
    data = bytearray(plan_bytes(size=256))
    for place, value in changes.items():
        data[place] = value
    path.write_bytes(bytes(data))
    try:
        version = read_header(path).version
    except PlanError as error:
        said = error.hint
    else:
        said = str(version)
        assert version is None or 8 <= version.major <= 30
    assert said
