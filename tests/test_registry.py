"""Models of torchvision's registry, each built and proved by a process of its own as benchmarks/registry.py does it.

Of five families one each: ResNet and EfficientNet are built in tests/test_readme.py, the others here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import registry

GIB = 2**30


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "regnet_y_400mf", "vit_b_32"])
def test_one_model_of_a_family_is_built_and_proved(tmp_path: Path, name: str) -> None:
    registry.write_images(tmp_path / "images", drawn=2)
    entry = registry.build(name, tmp_path, images=tmp_path / "images", limit_s=300, limit_bytes=8 * GIB)
    assert entry["result"] == "passes", entry.get("why")
    assert entry["worst_cosine"] > 0.999
    assert entry["nodes"] > 50
    assert entry["onnx_bytes"] > 4 * entry["parameters"] * 0.9


def test_a_model_that_fails_and_one_that_takes_too_long(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = registry.build("resnet18", tmp_path, images=tmp_path / "empty", limit_s=60, limit_bytes=8 * GIB)
    assert (refused["result"], refused["why"]) == ("refused", f"{tmp_path / 'empty'} holds no image")
    for limits in ({"limit_s": 0.0, "limit_bytes": 8 * GIB}, {"limit_s": 60.0, "limit_bytes": 1}):
        stopped = registry.build("resnet18", tmp_path, images=tmp_path / "empty", **limits)  # type: ignore[arg-type]
        assert stopped["result"] == "not possible here"
        assert stopped["why"].startswith("more than ")


def test_results_are_kept_and_the_last_one_of_a_model_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "registry.jsonl"
    first = {"model": "alexnet", "parameters": 61_100_840, "image_size": [224], "peak_bytes": GIB}
    again = {**first, "result": "passes", "nodes": 23, "onnx_bytes": 244_000_000}
    lines = [{**first, "result": "refused", "why": "once"}, again]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["registry", "--results", str(file), "--only", "alexnet", "--resume"])
    assert registry.main() == 0
    assert "| alexnet | 61.1 | 224 | passes | 23 | 244 | 1.0 |" in capsys.readouterr().out
