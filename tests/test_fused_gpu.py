"""Fused models around real plans on a real GPU: proved, equal to the ensemble, and rows that lie on the GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient import grpc

from generator.gpu import load_driver, why_no_gpu
from generator.measure.perf.served import read_models
from generator.pipeline import BuildOptions, build_repository
from generator.plan.local import open_engine
from generator.runtime.device import call
from generator.runtime.gpu_array import to_host
from generator.runtime.rows import Rows
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from tests.test_engine_gpu import build
from tests.test_fused import ask, draw

WITHOUT = why_no_gpu() or ("" if importlib.util.find_spec("tensorrt") else "tensorrt is not installed")
pytestmark = pytest.mark.skipif(bool(WITHOUT), reason=f"needs a GPU and TensorRT: {WITHOUT}")


class OnGpu:
    """A copy of an array in the GPU's memory, written on the default stream."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.driver = load_driver()
        self.address = int(call(self.driver, "cuMemAlloc", array.nbytes))
        call(self.driver, "cuMemcpyHtoD", self.address, array.ctypes.data, array.nbytes)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": 1,
        }

    def free(self) -> None:
        call(self.driver, "cuMemFree", self.address)


@pytest.mark.parametrize("rows", [1, 8, 16, 37])
def test_rows_that_lie_on_the_gpu(tmp_path: Path, rows: int) -> None:
    """More than the profile takes run as several batches."""
    given = np.random.default_rng(rows).random((rows, 4), np.float32)
    with open_engine(build(tmp_path / "model.plan", profiles=((1, 4, 16),))) as engine:
        engine.open([0], [((16, 4),)])
        through = Rows(engine, most=16)
        array = OnGpu(given)
        try:
            for _ in range(2):
                (made,) = through.run([[array]])
                assert (made == given * 2).all()
            assert (to_host(engine.device, array) == given).all()
        finally:
            array.free()


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "demo-detector"])
def test_it_is_proved_and_answers_as_the_ensemble(tmp_path: Path, name: str) -> None:
    root = tmp_path / "model_repository"
    for layout, suffix in (("fused", "-fused"), ("ensemble", "")):
        (spec,) = make_spec([name], name=name + suffix, layout=layout, batch={"max": 8}, precision="fp32")
        report = build_repository(spec, root, BuildOptions(require_all=True)).report
        assert report is not None
        assert "plan" in [result.stage for result in report.results]
    with EmbeddedServer(root) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        files = draw(name, 8)
        for batch in (files[:1], files[:5], files):
            expected, answers = ask(client, name, batch), ask(client, f"{name}-fused", batch)
            assert answers.keys() == expected.keys()
            for output, values in expected.items():
                if values.dtype == np.float32:
                    np.testing.assert_allclose(answers[output], values, rtol=1e-4, atol=1e-3)
                else:
                    np.testing.assert_array_equal(answers[output], values)
        _, (only,) = read_models("grpc", server.grpc_url, f"{name}-fused")
        assert not only.on_cpu
