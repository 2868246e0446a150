"""Which plans a server would load: what the configuration's version policy says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.server.container import Container
from generator.server.plans import find_plans
from generator.server.ports import Ports
from generator.spec.file import make_spec
from tests.test_model_config import rendered, with_plan
from tests.test_passport import make as make_passport
from tests.test_passport import write_passport


def repository(
    root: Path, config: str, *, name: str = "net_classifier", versions: tuple[int, ...] = (1, 2, 10)
) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)
    for version in versions:
        (root / name / str(version)).mkdir()
        (root / name / str(version) / "model.plan").touch()
    return root


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 1 } }", [10]),
        ("version_policy: { latest: { num_versions: 2}}", [2, 10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy {\n  all {}\n}", [1, 2, 10]),
        ("version_policy { specific { versions: [ 1, 10 ] } }", [1, 10]),
        ("version_policy { specific { versions: 2 } }", [2]),
        ("version_policy { specific { versions: [ 7 ] } }", []),
        ("version_policy { specific { versions: 1 versions: 2 } }", [1, 2]),
        ("# version_policy { all { } }", [10]),
        ("version_policy { # all { }\n specific { # 10\n versions: 1 } }", [1]),
        (
            (
                'parameters { key: "#" value { string_value: "version_policy {all}" } } '
                "version_policy { latest { num_versions: 2 } }"
            ),
            [2, 10],
        ),
    ],
)
def test_the_version_policy_decides(tmp_path: Path, policy: str, served: list[int]) -> None:
    found = find_plans(repository(tmp_path, f'name: "net_classifier"\n{policy}\n'))
    assert [int(plan.parent.name) for plan in found] == served


@pytest.mark.parametrize(("versions", "served"), [(1, [10]), (2, [2, 10]), ("all", [1, 2, 10]), ([1, 2], [1, 2])])
def test_what_trtgen_writes_is_understood(tmp_path: Path, versions: object, served: list[int]) -> None:
    assert make_spec(["net"], versions=versions)
    config = rendered(with_plan((1, 8, 32)), target="tensorrt-10", versions=versions)["net_classifier"]
    assert [int(plan.parent.name) for plan in find_plans(repository(tmp_path, config))] == served


def test_only_the_models_that_are_loaded_count(tmp_path: Path) -> None:
    for name in ("one", "two"):
        repository(tmp_path, "", name=f"{name}_classifier")
        (tmp_path / name).mkdir()
        step = f'step {{ model_name: "{name}_classifier" model_version: -1 }}'
        (tmp_path / name / "config.pbtxt").write_text(f'platform: "ensemble" ensemble_scheduling {{ {step} }}')
    (tmp_path / "notes").mkdir()
    assert {plan.parts[-3] for plan in find_plans(tmp_path)} == {"one_classifier", "two_classifier"}
    assert {plan.parts[-3] for plan in find_plans(tmp_path, ["two"])} == {"two_classifier"}
    assert {plan.parts[-3] for plan in find_plans(tmp_path, ["one_classifier"])} == {"one_classifier"}
    assert find_plans(tmp_path, ["three"]) == []


@pytest.mark.parametrize("config", [b"version_policy {", b"\xff", b"colour: 3"])
def test_a_configuration_that_triton_refuses_is_left_to_triton(tmp_path: Path, config: bytes) -> None:
    repository(tmp_path, "")
    (tmp_path / "net_classifier" / "config.pbtxt").write_bytes(config)
    assert [int(plan.parent.name) for plan in find_plans(tmp_path)] == [10]


@pytest.mark.parametrize(("options", "flag"), [({"version_compatible": True}, True), ({}, False)])
def test_the_container_is_told_of_plans_that_carry_code(tmp_path: Path, options: dict[str, bool], flag: bool) -> None:
    root = repository(tmp_path / "models", "", versions=(1,))
    plan = root / "net_classifier" / "1" / "model.plan"
    write_passport(make_passport(options=options), plan)
    argv = Container(root, ports=Ports(http=1, grpc=2, metrics=3)).argv
    assert ("--backend-config=tensorrt,version-compatible=true" in argv) == flag
