"""What a release of tritonserver's container holds, as far as it is known.

onnxruntime: server's build.py. IR and opset: models of one node in each of those onnxruntime wheels, 2026-11-25.
Python: Triton's compatibility matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

from generator.rules.rule import release_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A row: the versions are the same until the next row."""

    name: str
    onnxruntime: str
    ir_version: int
    opset: int
    python: str


RELEASES = (
    Release(name="23.12", onnxruntime="1.16.3", ir_version=9, opset=19, python="3.10"),
    Release(name="24.05", onnxruntime="1.18.0", ir_version=10, opset=21, python="3.10"),
    Release(name="24.10", onnxruntime="1.19.2", ir_version=10, opset=21, python="3.10"),
    Release(name="25.01", onnxruntime="1.20.1", ir_version=10, opset=21, python="3.12"),
    Release(name="25.07", onnxruntime="1.22.0", ir_version=10, opset=22, python="3.12"),
    Release(name="25.12", onnxruntime="1.23.2", ir_version=11, opset=23, python="3.12"),
    Release(name="26.04", onnxruntime="1.24.4", ir_version=13, opset=25, python="3.12"),
    Release(name="26.07", onnxruntime="1.27.0", ir_version=13, opset=26, python="3.12"),
    Release(name="26.08", onnxruntime="1.28.0", ir_version=13, opset=26, python="3.12"),
)

# The fields of ModelConfig that not every release knows, with the first that does (the branches of Triton's core).
FIELDS = {"model_metrics": "24.11", "max_inflight_requests": "25.11"}


def find_release(name: str) -> Release | None:
    """Return the row of a release, or the last one before it; None for one before the first row."""
    known = [release for release in RELEASES if release_key(release.name) <= release_key(name)]
    return known[-1] if known else None
