"""Merged repositories served on a real GPU: of two plans, one of which is for another GPU, the right one is opened."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc

from generator.errors import PlanError
from generator.files import hash_file
from generator.gate.published import verify_published
from generator.gpu import find_gpu, why_no_gpu
from generator.pipeline import BuildOptions, build_repository
from generator.plan.passport import passport_path, read_passport
from generator.repository import Layout, read_record
from generator.repository.merge import merge_repositories
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from tests.test_fused import ask, draw

WITHOUT = why_no_gpu() or ("" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed")
pytestmark = [
    pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and TensorRT: {WITHOUT}"),
    pytest.mark.server,
    pytest.mark.slow,
]


def build(root: Path, name: str, layout: str, **plan: Any) -> Path:
    (spec,) = make_spec([name], layout=layout, batch={"max": 8}, precision="fp32", plan=plan)
    build_repository(spec, root, BuildOptions(verify=False))
    return root


def mark(root: Path, name: str, capability: str) -> None:
    """Make of a build one for another GPU: its passport says so, and its plan loads nowhere."""
    record = read_record(root, name)
    assert record is not None
    plan = root / Layout.of_record(record).plan
    head = plan.read_bytes()[:64]
    plan.write_bytes(head + bytes(plan.stat().st_size - len(head)))
    passport = read_passport(plan)
    passport = replace_passport(passport, compute_capability=capability, plan_sha256=hash_file(plan))
    passport_path(plan).write_text(passport.to_json())
    path = root / name / "trtgen.json"
    data = json.loads(path.read_text())
    for file in (plan, passport_path(plan)):
        data["files"][file.relative_to(root).as_posix()] = hash_file(file)
    path.write_text(json.dumps(data))


def replace_passport(passport: Any, *, compute_capability: str, plan_sha256: str) -> Any:
    gpu = {**passport.gpu, "compute_capability": compute_capability}
    return passport.model_copy(update={"gpu": gpu, "plan_sha256": plan_sha256})


def answer(root: Path, name: str) -> dict[str, Any]:
    with EmbeddedServer(root) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        return ask(client, name, draw(name, 5))


@pytest.mark.parametrize(("name", "layout"), [("demo", "ensemble"), ("demo", "fused"), ("demo-detector", "ensemble")])
def test_the_plan_for_this_gpu_is_served(tmp_path: Path, name: str, layout: str) -> None:
    here = find_gpu().compute_capability
    build(tmp_path / "here", name, layout)
    for capability in ("8.0", "8.6", "8.9"):
        if capability != here:
            shutil.copytree(tmp_path / "here", tmp_path / capability)
            mark(tmp_path / capability, name, capability)
    others = [path for path in tmp_path.iterdir() if path.name != "here"]
    merge_repositories([*others, tmp_path / "here"], tmp_path / "merged")
    expected, answers = answer(tmp_path / "here", name), answer(tmp_path / "merged", name)
    assert answers.keys() == expected.keys()
    for output, values in expected.items():
        np.testing.assert_array_equal(answers[output], values)
    (report,) = verify_published(tmp_path / "merged", [])
    report.raise_for_status(require_all=True)
    merge_repositories(others, tmp_path / "elsewhere")
    with pytest.raises(PlanError, match=f"no plan for a GPU of compute capability {here}"):
        answer(tmp_path / "elsewhere", name)


def test_a_gpu_without_a_plan_of_its_own_takes_the_default(tmp_path: Path) -> None:
    here = find_gpu()
    if tuple(map(int, here.compute_capability.split("."))) < (8, 0):
        pytest.skip("plans for 8.0 and later")
    build(tmp_path / "any", "demo", "ensemble", hardware_compatibility="ampere-plus")
    build(tmp_path / "other", "demo", "ensemble")
    mark(tmp_path / "other", "demo", "7.5")
    merge_repositories([tmp_path / "other", tmp_path / "any"], tmp_path / "merged")
    (report,) = verify_published(tmp_path / "merged", [])
    report.raise_for_status(require_all=True)
