"""What the user is told of a plan that was built."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from generator.artifact import Artifact
from generator.events import Doing, Done
from generator.exporting import add_plan
from generator.graph.model import read_onnx
from generator.plan import build
from generator.spec.file import make_spec
from generator.spec.recipe import IMAGENET
from generator.tasks.classification.activation import Head
from tests.tiny_onnx import write_tiny_onnx

HEAD = Head(output="logits", activation="softmax")
PASSPORT = SimpleNamespace(plan_bytes=1_000_000, tensorrt="10.12", precision="fp16", timing_cache="off")


@pytest.mark.parametrize(("largest", "notes"), [(8, ()), (16, ("a profile reaches 16 images",))])
def test_profiles_that_no_request_uses_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int, notes: tuple[str, ...]
) -> None:
    def build_plan(_request: Any, path: Path, *, on_progress: Any) -> build.Plan:
        on_progress("tactics", 0.5)
        return build.Plan(path=path, passport=PASSPORT)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "build_plan", build_plan)
    onnx = read_onnx(write_tiny_onnx(tmp_path / "own.onnx"))
    artifact = Artifact(onnx=onnx, head=HEAD, recipe=IMAGENET, labels=(), description="")
    plan = {"profiles": [{"min": 1, "opt": 8, "max": largest}]}
    spec = make_spec(["own"], target="tensorrt-10", batch={"max": 8}, plan=plan)[0]
    told: list[Doing | Done] = []
    made = add_plan(spec, artifact, tmp_path / "model.plan", command="", on_event=told.append)
    assert told[0] == Doing(step="building the plan of own", part="tactics", fraction=0.5)
    assert isinstance(told[1], Done)
    assert len(made.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(made.notes, notes, strict=True))
