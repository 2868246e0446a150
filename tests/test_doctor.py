"""`trtgen doctor`: every rule finds what is broken, on its line, and nothing in what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from generator.doctor.examine import examine
from generator.doctor.finding import Finding
from generator.doctor.repository import read_repository
from generator.plan.library import TensorRTVersion
from generator.rules import RULES
from tests.doctor_cases import CASES, Case, Files, find_line, write_files


def find(files: Files, root: Path, case: Case, name: str = "net") -> list[Finding]:
    write_files(files, root, name)
    options: dict[str, Any] = dict(case.options)
    if "tensorrt" in options:
        options["tensorrt"] = TensorRTVersion.parse(options["tensorrt"])
    return examine(read_repository(root), case.release, **options)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_found_on_its_line_and_what_is_right_is_not(case: Case, tmp_path: Path) -> None:
    broken = find(case.broken, tmp_path / "broken", case)
    found = [finding for finding in broken if finding.rule.id == case.rule]
    assert found, [(one.rule.id, one.cause) for one in broken]
    place = (tmp_path / "broken" / case.at.replace("@", "net"), find_line(case))
    if place[1] is None and case.at.endswith("config.pbtxt"):
        assert [one.path for one in found] == [place[0]] * len(found)
    else:
        assert place in [(one.path, one.line) for one in found], found
    assert not any("{" in one.cause + one.fix for one in found)
    right = find(case.right, tmp_path / "right", case)
    assert [(one.rule.id, one.cause) for one in right if one.severity == "error" or one.rule.id == case.rule] == []


def test_every_rule_that_files_show_has_a_case() -> None:
    shown = {rule.id for rule in RULES if {"files", "onnx", "plan", "python"} & {*rule.seen_in}}
    elsewhere = {"layout-unreadable", "python-newer-than-ours"}
    assert {case.rule for case in CASES} == shown - elsewhere
