"""What a run of `trtgen bench` says about itself, and how it measures."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from generator.measure.about import describe_run

if TYPE_CHECKING:
    from generator.graph.model import OnnxModel
    from generator.measure.bench.measure import Schedule

_METHOD = tuple(
    """\
Every runner is a process of its own; all stay alive, one works at a time.
For each batch they take turns in every round, each time with another one first.
An iteration goes from uint8 pixels to scores: cast, normalisation, network, softmax. `with copies` adds both copies.
On a GPU an iteration's time is that between two events on its stream; on the CPU it is taken by the host's clock.
Images per second: by the time from the first to the last of a stretch of iterations, pauses between them included.
Spread: how far the best round's images per second lie above the worst's.
Inputs are random images, several sets in turn, of one seed for all runners.
Warm-up and the first iterations of each turn are not counted.
Every runner's answer must be finite, and the same before and after.
Cosine: worst image, centred log-probabilities, against the first runner with the same weights.
Memory: on a GPU what the process has taken of the device, CUDA context included; else its peak resident memory.
Images per joule: the whole board's energy (NVML) during steady work, from one step of its counter to another.
""".splitlines()
)


def describe_bench(onnx: OnnxModel, schedule: Schedule, *, device: str, weights: str) -> dict[str, Any]:
    """Return date, command, versions, machine, GPU, model and schedule; the runners' versions come from themselves.

    Raises:
        DeviceError, MissingDependencyError: `device` is "cuda", and the GPU cannot be asked.
    """
    from generator.gpu import find_gpu

    return {
        **describe_run(python=platform.python_version()),
        "device": device,
        "gpu": asdict(find_gpu()) if device == "cuda" else None,
        "model": {"path": onnx.path.name, "sha256": onnx.sha256, "input": list(onnx.input.shape), "torch": weights},
        "schedule": asdict(schedule),
        "method": list(_METHOD),
    }
