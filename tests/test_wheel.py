"""The wheel, installed (not editable) into a folder of its own, works from anywhere, with templates and weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", folder, ROOT], check=True, capture_output=True)
    (wheel,) = folder.glob("trtgen-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, capture_output=True)
    return folder / "site"


def test_what_is_in_the_wheel(installed: Path) -> None:
    (wheel,) = installed.parent.glob("trtgen-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "generator/templates/ensemble/config.pbtxt.j2",
        "generator/templates/_tensors.pbtxt.j2",
        "generator/templates/preprocess/1/model.py",
        "generator/templates/preprocess/warmup/sample.jpg",
        "generator/templates/backends/onnxruntime/model.py",
        "generator/templates/models.yaml",
        "generator/demo/weights.safetensors",
        "generator/demo/detector.safetensors",
        "generator/assets/china.jpg",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "clients/")) or "__pycache__" in name]
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist()) < 8_000_000


@pytest.mark.server
def test_the_demo_is_built_and_proved_from_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-m", "generator"]
    run = subprocess.run(
        [*command, "build-repo", "demo", "--require", "all"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "5 of 5 stages" in run.stderr
    where = subprocess.run(
        [*command[:-1], "site"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(installed) in where.stdout
