"""Contender: one program to be measured, and the list of those that this run can measure."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.errors import PerfError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from generator.graph.model import OnnxModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One program.

    `weights` names where its weights come from: only contenders with the same ones are expected to agree. `python` is
    its interpreter, None for this one. `settings` is what `<kind>_runner.py` takes.
    """

    label: str
    kind: str
    weights: str
    settings: dict[str, Any] = field(hash=False)
    python: Path | None = None


def make_contenders(
    onnx: OnnxModel,
    *,
    plans: Sequence[Path] = (),
    model: str | None = None,
    state_dict: Path | None = None,
    torch_python: Path | None = None,
    device: str = "cuda",
    seed: int = 0,
    skip: Sequence[str] = (),
) -> list[Contender]:
    """Return what can be measured here, in the order of the table; labels that begin with one of `skip` are left out.

    Args:
        onnx: The graph as `trtgen` exports it: uint8 pixels (batch, height, width, 3).
        plans: Plans built from it, each measured without and with a CUDA graph.
        model: torchvision's name of the same network; None leaves PyTorch out.
        state_dict: The graph's weights for PyTorch, whose answers then take part in the comparison.
        torch_python: An interpreter that has torch and torchvision; None for this one.
        device: "cuda" or "cpu".
        seed: Of PyTorch's random weights where there is no state dict.
        skip: Beginnings of labels.

    Raises:
        PerfError: The graph takes something else, plans without a GPU, an unknown `model`, a state dict without one,
            or `skip` leaves nothing or means nothing.
    """
    height, width = image_size(onnx)
    if state_dict is not None and model is None:
        msg = "the state dict holds weights for PyTorch, which is measured for a named network only"
        raise PerfError(msg, hint="name the network, or leave the state dict out", fields={"model": None})
    common = {"height": height, "width": width}
    found = []
    if model is not None and len(onnx.outputs) > 1:
        names = ", ".join(tensor.name for tensor in onnx.outputs)
        msg = f"PyTorch is measured for classifiers, and {onnx.path} answers {names}"
        raise PerfError(msg, hint="leave the network's name out", fields={"model": None})
    if model is not None:
        given = {**common, "model": model, "classes": onnx.output.shape[-1], "seed": seed}
        given["state_dict"] = None if state_dict is None else str(state_dict.absolute())
        given |= {"graph": onnx.path.name, "graph_weights": count_weights(onnx)}
        python = _find_torch(torch_python)
        if python is None:
            _check_name(model)
        found += _torch_contenders(given, "graph" if state_dict else "random", python, device)
    graph = {**common, "onnx": str(onnx.path.absolute()), "device": "cpu"}
    found.append(Contender(label="onnxruntime-cpu", kind="onnxruntime", weights="graph", settings=graph))
    if plans and device == "cpu":
        raise PerfError("plans do not run on the CPU", hint="leave the plans out, or run on a host with a GPU")
    found += _plan_contenders(plans, common)
    left = [one for one in found if not any(one.label.startswith(start) for start in skip)]
    labels = ", ".join(one.label for one in found)
    if idle := [start for start in skip if not any(one.label.startswith(start) for one in found)]:
        msg = f"skip: {idle[0]} matches none of {labels}"
        raise PerfError(msg, hint="give the beginning of one of these, or leave it out", fields={"skip": None})
    if not left:
        raise PerfError(f"skip leaves nothing of {labels}", hint="skip less")
    return left


def image_size(onnx: OnnxModel) -> tuple[int, int]:
    """Return height and width of the images that the graph takes.

    Raises:
        PerfError: It does not take uint8 pixels of a fixed size.
    """
    shape = onnx.input.shape
    if onnx.input.data_type.triton != "TYPE_UINT8" or len(shape) != 4 or shape[3] != 3 or -1 in shape[1:]:
        what = f"{onnx.path} takes {onnx.input.data_type.triton} {list(shape)}"
        hint = "export the model again: that puts cast and normalisation into the graph"
        raise PerfError(f"{what}: expected uint8 pixels (batch, height, width, 3) of a fixed size", hint=hint)
    return shape[1], shape[2]


def count_weights(onnx: OnnxModel) -> int:
    """Return how many numbers the graph holds, in initializers and `Constant` nodes; they are not loaded."""
    from generator.graph.model import load_proto

    graph = load_proto(onnx.path, weights=False).graph
    constants = [each.t for node in graph.node if node.op_type == "Constant" for each in node.attribute]
    return sum(math.prod(tensor.dims) for tensor in (*graph.initializer, *constants))


def _check_name(model: str) -> None:
    """Refuse a name that this Python's torchvision does not know; another Python's tells when its runner starts."""
    import torchvision

    from generator.errors import near

    known = torchvision.models.list_models(module=torchvision.models)
    if model.lower() not in known:  # torchvision itself takes any case
        similar = near(model, known)
        listed = f"did you mean {', '.join(similar)}?" if similar else f"known are {', '.join(known)}"
        msg = f"torchvision has no classification model {model!r}; {listed}"
        raise PerfError(msg, hint="give the name of the graph's network, or leave it out", fields={"model": None})


def _torch_contenders(given: dict[str, Any], weights: str, python: Path | None, device: str) -> list[Contender]:
    def make(label: str, precision: str, *, fast: bool) -> Contender:
        more = {"precision": precision, "channels_last": fast, "cuda_graph": fast, "device": device}
        return Contender(label=label, kind="torch", weights=weights, python=python, settings={**given, **more})

    if device == "cpu":
        return [make("torch-fp32", "fp32", fast=False)]
    return [make("torch-fp32", "fp32", fast=False), make("torch-fp16-graph", "fp16", fast=True)]


def _find_torch(python: Path | None) -> Path | None:
    if python is not None and not python.is_file():
        msg = f"{python} is not a Python interpreter"
        raise PerfError(msg, hint="give the path of a Python that has torch and torchvision")
    if python is None and importlib.util.find_spec("torchvision") is None:
        msg = "this Python has no torchvision, and the named network asks for PyTorch"
        raise PerfError(msg, hint="name a Python that has it, or no network", fields={"torch_python": None})
    return python


def _plan_contenders(plans: Sequence[Path], common: dict[str, Any]) -> list[Contender]:
    found = []
    names: list[str] = []
    for path in plans:
        names.append(f"plan-{_precision(path)}")
        number = names.count(names[-1])
        name = names[-1] if number == 1 else f"{names[-1]}#{number}"
        for graph in (False, True):
            settings = {**common, "plan": str(path.absolute()), "cuda_graph": graph, "device": "cuda"}
            label = f"{name}-graph" if graph else name
            found.append(Contender(label=label, kind="plan", weights="graph", settings=settings))
    return found


def _precision(plan: Path) -> str:
    """The passport's word for it; the file's name where there is no passport."""
    from generator.plan.passport import passport_path, read_passport

    return read_passport(plan).precision if passport_path(plan).is_file() else plan.stem
