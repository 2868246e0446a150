"""Passports: written and read, and compared with where the plan shall run."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.errors import PlanError
from generator.files import hash_file
from generator.gpu import Gpu
from generator.plan.compatibility import Host, find_misfits, local_host
from generator.plan.containers import read_image_version
from generator.plan.passport import Passport, passport_path, read_passport, write_plan
from generator.spec.plan import PlanOptions
from generator.tensor import ShapeRange, Tensor, from_triton

H200 = Gpu(
    index=0,
    name="NVIDIA H200",
    compute_capability="9.0",
    multiprocessors=132,
    memory_bytes=150_000_000_000,
    driver="580.159.04",
    cuda="13.0",
)


def make(**changes: Any) -> Passport:
    values: dict[str, Any] = {
        "made_by": "trtgen 0.1.0",
        "tensorrt": "10.16.1.11",
        "gpu": {
            "name": "NVIDIA H200",
            "compute_capability": "9.0",
            "multiprocessors": 132,
            "memory_bytes": 150_000_000_000,
        },
        "driver": "580.159.04",
        "cuda": "13.0",
        "precision": "fp16",
        "profiles": ({"PIXELS": ShapeRange(min=(1, 8, 8, 3), opt=(4, 8, 8, 3), max=(8, 8, 8, 3))},),
        "inputs": (Tensor(name="PIXELS", data_type=from_triton("TYPE_UINT8"), shape=(-1, 8, 8, 3)),),
        "outputs": (Tensor(name="PROBABILITIES", data_type=from_triton("TYPE_FP32"), shape=(-1, 3)),),
        "flags": ("TF32",),
        "options": PlanOptions().model_dump(mode="json"),
        "onnx_sha256": "0" * 64,
        "plan_sha256": "1" * 64,
        "plan_bytes": 4,
        "build_seconds": 1.5,
        "timing_cache": "cold",
        "command": "trtgen build-plan model.onnx",
    }
    return Passport(**{**values, **changes})


def options(**changes: Any) -> dict[str, Any]:
    return {**PlanOptions().model_dump(mode="json"), **changes}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.plan"
    path.write_bytes(b"plan")
    return path


def write_passport(passport: Passport, plan: Path) -> Path:
    """Write what a build leaves beside its plan."""
    passport_path(plan).write_text(passport.to_json())
    return passport_path(plan)


class TestFile:
    def test_it_is_read_as_it_was_written(self, plan: Path) -> None:
        passport = make(plan_sha256=hash_file(plan))
        write_plan(b"plan", passport, plan)
        path = passport_path(plan)
        assert path == plan.with_name("model.plan.json")
        assert read_passport(plan, check_hash=True) == passport
        assert path.read_text() == passport.to_json()
        assert [entry.name for entry in sorted(plan.parent.iterdir())] == ["model.plan", "model.plan.json"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_the_file_is_the_one_that_earlier_versions_wrote(self) -> None:
        """Written by the commit before passports became pydantic models."""
        text = (Path(__file__).parent / "data/passport.json").read_text(encoding="utf-8")
        assert Passport.model_validate_json(text).to_json() == text

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(PlanError, match="cannot be written") as caught:
            write_plan(b"plan", make(), tmp_path / "absent" / "model.plan")
        assert caught.value.hint

    def test_absent(self, plan: Path) -> None:
        with pytest.raises(PlanError, match=r"has no passport: model\.plan\.json"):
            read_passport(plan)

    def test_another_plan_of_the_same_size(self, plan: Path) -> None:
        write_passport(make(plan_sha256=hash_file(plan)), plan)
        plan.write_bytes(b"nalp")
        read_passport(plan)
        with pytest.raises(PlanError, match="is not the plan of its passport"):
            read_passport(plan, check_hash=True)

    def test_a_cut_off_plan(self, plan: Path) -> None:
        write_passport(make(plan_sha256=hash_file(plan)), plan)
        plan.write_bytes(b"pla")
        with pytest.raises(PlanError, match="has 3 bytes, its passport says 4"):
            read_passport(plan, check_hash=True)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda data: data.pop("gpu"), "gpu: Field required"),
            (lambda data: data.update(colour=1), "colour: Extra inputs"),
            (lambda data: data.update(format=2), "format 2"),
            (lambda data: data.update(tensorrt=10), "tensorrt: Input should be a valid string"),
            (lambda data: data.update(tensorrt="banana"), "tensorrt: 'banana' is not a TensorRT version such as 10"),
            (lambda data: data.update(tensorrt=""), "tensorrt: '' is not a TensorRT version"),
            (lambda data: data["gpu"].update(compute_capability="9"), "gpu.compute_capability: '9' is not a compute"),
            (lambda data: data["gpu"].update(compute_capability="a.b"), "'a.b' is not a compute capability such as 9"),
            (lambda data: data["gpu"].pop("multiprocessors"), "gpu.multiprocessors: Field required"),
            (lambda data: data.update(plan_bytes=-1), "plan_bytes: .* greater than or equal to 0"),
            (lambda data: data.update(build_seconds="long"), "build_seconds: .* valid number"),
            (lambda data: data.update(timing_cache="hot"), "timing_cache: Input should be 'cold', 'warm' or 'off'"),
            (lambda data: data.update(flags=[13]), "flags.0: .* valid string"),
            (lambda data: data.update(options=None), "options: "),
            (lambda data: data["inputs"][0].pop("shape"), "inputs.0.shape: "),
            (lambda data: data["inputs"][0].update(data_type="FP32"), "inputs.0: data_type 'FP32' is not one of"),
            (lambda data: data["profiles"][0]["PIXELS"].pop("opt"), "profiles.0.PIXELS.opt: Field required"),
            (lambda data: data["profiles"][0]["PIXELS"].update(opt=[]), "profiles.0.PIXELS: min, opt and max need"),
        ],
    )
    def test_damaged(self, plan: Path, change: Callable[[Any], object], words: str) -> None:
        data = json.loads(make().to_json())
        change(data)
        passport_path(plan).write_text(json.dumps(data))
        with pytest.raises(PlanError, match=words) as caught:
            read_passport(plan)
        assert caught.value.hint

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
    def test_not_a_passport(self, plan: Path, text: str) -> None:
        passport_path(plan).write_bytes(text.encode("latin-1"))
        with pytest.raises(PlanError):
            read_passport(plan)

    @settings(max_examples=100, deadline=None)
    @given(
        field=st.sampled_from(sorted(json.loads(make().to_json()))),
        value=st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
            max_leaves=5,
        ),
    )
    def test_any_value_of_a_field_is_read_or_refused(
        self, tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
    ) -> None:
        plan = tmp_path_factory.mktemp("any") / "model.plan"
        passport_path(plan).write_text(json.dumps({**json.loads(make().to_json()), field: value}))
        try:
            passport = read_passport(plan)
        except PlanError as error:
            said = error.hint
        else:
            said = str(find_misfits(passport, Host(tensorrt="10.16.1.11", gpu=H200, source="this host")))
        assert said


def severities(passport: Passport, tensorrt: str | None = "10.16.1.11", gpu: Gpu | None = H200) -> list[str]:
    misfits = find_misfits(passport, Host(tensorrt=tensorrt, gpu=gpu, source="this host"))
    assert all(misfit.hint and misfit.found and misfit.expected for misfit in misfits)
    return [misfit.severity for misfit in misfits]


class TestFits:
    @pytest.mark.parametrize(
        ("built", "runs", "compatible", "expected"),
        [
            ("10.16.1.11", "10.16.1.11", False, []),
            ("10.16.1.11", "10.16.1.12", False, ["refuse"]),
            ("10.16.1.11", "10.16.2.11", False, ["refuse"]),
            ("10.16.1.11", "10.17.0.1", False, ["refuse"]),
            ("8.6.0", "8.6.0", False, []),
            ("8.6.0", "8.6.1", False, ["refuse"]),
            ("8.6.1", "8.6.1.6", False, ["warn"]),
            ("8.6.1.6", "8.6.1", False, ["warn"]),
            ("8.6.1.6", "8.6.1.2", False, ["refuse"]),
            ("10.12.0.36", "10.16.1.11", True, []),
            ("10.12.0.36", "11.4.0.106", True, []),
            ("8.6.1.6", "10.16.1.11", True, []),
            ("11.4.0.106", "10.16.1.11", True, ["refuse"]),
            ("10.16.1.11", "10.16.1.10", True, ["refuse"]),
            ("10.16.1.11", "ten", False, ["warn"]),
        ],
    )
    def test_version(self, built: str, runs: str, compatible: bool, expected: list[str]) -> None:
        passport = make(options=options(version_compatible=compatible), tensorrt=built)
        assert severities(passport, tensorrt=runs) == expected

    def test_the_flag_alone_makes_a_plan_version_compatible(self) -> None:
        assert severities(make(flags=("VERSION_COMPATIBLE",)), tensorrt="11.4.0.106") == []

    def test_what_is_unknown_is_said(self) -> None:
        misfits = find_misfits(make(), Host(tensorrt=None, gpu=None, source="the image x"))
        assert [misfit.severity for misfit in misfits] == ["warn", "warn"]
        assert all("the image x is unknown" in misfit.expected for misfit in misfits)

    @pytest.mark.parametrize(
        ("built", "runs", "level", "expected"),
        [
            ("9.0", "9.0", "none", []),
            ("9.0", "8.0", "none", ["refuse"]),
            ("8.6", "8.9", "none", ["refuse"]),
            ("8.0", "9.0", "ampere-plus", []),
            ("9.0", "8.0", "ampere-plus", []),
            ("8.0", "12.0", "ampere-plus", []),
            ("8.0", "7.5", "ampere-plus", ["refuse"]),
            ("9.0", "9.0", "same-compute-capability", []),
            ("9.0", "10.0", "same-compute-capability", ["refuse"]),
        ],
    )
    def test_compute_capability(self, built: str, runs: str, level: str, expected: list[str]) -> None:
        gpu = {**make().gpu, "compute_capability": built}
        passport = make(options=options(hardware_compatibility=level), gpu=gpu)
        assert severities(passport, gpu=replace(H200, compute_capability=runs)) == expected

    @pytest.mark.parametrize(
        ("tensorrt", "gpu", "level", "expected"),
        [
            ("10.16.1.11", {"name": "NVIDIA H100 80GB HBM3"}, "none", ["warn"]),
            ("10.16.1.11", {"name": "NVIDIA H100 80GB HBM3"}, "same-compute-capability", []),
            ("10.16.1.11", {"name": "NVIDIA H100 PCIe", "multiprocessors": 114}, "none", ["warn"]),
            ("11.4.0.106", {"name": "NVIDIA H100 PCIe", "multiprocessors": 114}, "none", ["refuse"]),
            ("11.4.0.106", {"name": "NVIDIA H200 MIG 1g.18gb", "multiprocessors": 16}, "none", ["refuse"]),
            ("11.4.0.106", {"multiprocessors": 16}, "ampere-plus", []),
            ("11.4.0.106", {"multiprocessors": 140}, "none", []),
        ],
    )
    def test_another_gpu_of_the_same_capability(
        self, tensorrt: str, gpu: dict[str, Any], level: str, expected: list[str]
    ) -> None:
        passport = make(options=options(hardware_compatibility=level), tensorrt=tensorrt)
        assert severities(passport, tensorrt=tensorrt, gpu=replace(H200, **gpu)) == expected

    def test_what_is_refused_comes_first(self) -> None:
        passport = make(tensorrt="8.6.0")
        assert severities(passport, gpu=replace(H200, name="NVIDIA GH200")) == ["refuse", "warn"]

    def test_the_sentence_names_both_sides(self) -> None:
        (misfit,) = find_misfits(make(), Host(tensorrt="8.6.0", gpu=H200, source="this host"))
        assert "10.16.1.11" in str(misfit)
        assert "this host has 8.6.0" in str(misfit)

    def test_this_host(self) -> None:
        host = local_host()
        assert host.source == "this host"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a `docker` on PATH that answers as told and writes down what it was asked."""

    def install(*, output: str = "", error: str = "", code: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "output").write_text(output)
        (folder / "error").write_text(error)
        script = folder / "docker"
        script.write_text(
            f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/output\ncat {folder}/error >&2\nexit {code}\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder

    return install


@pytest.fixture
def no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


class TestContainer:
    @pytest.mark.usefixtures("no_docker")
    def test_without_docker_nothing_is_guessed(self) -> None:
        image = "nvcr.io/nvidia/tritonserver:24.02-py3"
        assert read_image_version(image) == (None, "docker was not found on PATH")

    @pytest.mark.parametrize("stated", ["10.5.0.18", "10.5.0.18+cuda12.6.2.004"])
    def test_the_image_itself_is_asked(self, docker: Callable[..., Path], stated: str) -> None:
        folder = docker(output=json.dumps(["PATH=/usr/bin", f"TRT_VERSION={stated}", "EMPTY="]))
        assert read_image_version("x:1") == ("10.5.0.18", "")
        asked = (folder / "asked").read_text().split()
        assert asked[:2] == ["image", "inspect"]
        assert asked[-2:] == ["--", "x:1"]

    def test_an_image_that_is_not_here(self, docker: Callable[..., Path]) -> None:
        docker(error="Error response from daemon: No such image: x:1", code=1)
        assert read_image_version("x:1") == (None, "not on this machine; docker pull x:1")

    @pytest.mark.parametrize("output", ["", "null", "[]", "not json", "[1, 2]", '{"a": 1}', '["TRT_VERSION=new"]'])
    def test_an_answer_without_a_version(self, docker: Callable[..., Path], output: str) -> None:
        docker(output=output)
        version, reason = read_image_version("x:1")
        assert version is None
        assert reason

    def test_a_daemon_that_does_not_answer(self, docker: Callable[..., Path]) -> None:
        docker(error="Cannot connect to the Docker daemon", code=1)
        assert read_image_version("x:1") == (None, "docker says: Cannot connect to the Docker daemon")
