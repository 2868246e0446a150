"""What a real TensorRT parser and builder say about a graph on a machine without a GPU: TensorRT-RTX.

The code is the one that builds plans; only the library below it is another. It proves that NVIDIA's current parser
reads the graph and that a builder accepts every layer of it with these profiles. It does not prove that the
TensorRT of the target does, nor anything about speed or accuracy: the engine is thrown away unrun.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from generator.plan.build import BuildRequest, compile_graph, refusal
from generator.plan.profiles import check_profiles
from generator.plan.progress import silent
from generator.spec.plan import PlanOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from generator.errors import PlanError
    from generator.graph.model import OnnxModel
    from generator.plan.versions import Fault
    from generator.tensor import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightReport:
    """What TensorRT-RTX makes of a graph. `built` is None where building was not asked for or not reached."""

    model: str
    library: str
    opset: int
    precision: str
    operators: Mapping[str, int]
    layers: int
    layer_types: Mapping[str, int]
    profiles: tuple[str, ...]
    parsed: bool
    built: bool | None
    build_seconds: float
    plan_bytes: int
    warnings: tuple[str, ...]
    faults: tuple[Fault, ...]
    error: PlanError | None

    @property
    def accepted(self) -> bool:
        """Whether everything that was tried went well."""
        return not self.faults

    @property
    def proves(self) -> str:
        """What this report stands for, in one sentence."""
        if not self.parsed:
            return f"{self.library} does not read this graph; the TensorRT of your target most likely does not either"
        if self.built is False:
            return f"{self.library} reads this graph, but does not build it; its builder is not that of your target"
        if self.built is None:
            return f"{self.library}'s parser reads this graph; no builder has seen it"
        return f"{self.library}'s parser reads this graph and its builder accepts every layer with these profiles"

    @property
    def does_not_prove(self) -> str:
        """What it does not stand for."""
        return "what the TensorRT of your target and its GPU make of it, speed, accuracy: the engine was not run"

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values, names as in this class."""
        values = {name: getattr(self, name) for name in self.__slots__ if name not in ("faults", "error")}
        return {
            **values,
            "accepted": self.accepted,
            "faults": [{**asdict(fault), "hint": fault.hint} for fault in self.faults],
            "proves": self.proves,
            "does_not_prove": self.does_not_prove,
        }

    def raise_for_status(self) -> None:
        """Do nothing if the graph was accepted.

        Raises:
            PlanError: Lists what was refused, node by node.
        """
        if self.error is not None:
            raise self.error


def check_graph(
    onnx: OnnxModel,
    profiles: Sequence[Profile],
    *,
    build: bool = True,
    max_batch_size: int | None = None,
    on_progress: Callable[[str, float], None] = silent,
) -> PreflightReport:
    """Parse the graph with TensorRT-RTX and build it; a refusal is part of the report.

    Raises:
        PlanError: The profiles do not fit the graph.
        MissingDependencyError: tensorrt-rtx is not installed.
    """
    from generator.graph.model import load_proto
    from generator.plan.versions import open_adapter

    adapter = open_adapter("tensorrt_rtx")
    request = BuildRequest(
        onnx=onnx,
        precision=onnx.precision,
        profiles=tuple(profiles),
        max_batch_size=max_batch_size,
        options=PlanOptions(),
        command="",
    )
    check_profiles(onnx, profiles, max_batch_size=max_batch_size)
    compiled = compile_graph(adapter, request, build=build, on_progress=on_progress)
    nodes = load_proto(onnx.path, weights=False).graph.node
    parsed = bool(compiled.layers)
    return PreflightReport(
        model=str(onnx.path),
        library=adapter.name,
        opset=onnx.opset,
        precision=request.precision,
        operators=dict(Counter(node.op_type for node in nodes).most_common()),
        layers=compiled.layers,
        layer_types=compiled.layer_types,
        profiles=tuple(_describe(profile) for profile in profiles),
        parsed=parsed,
        built=bool(compiled.data) if build and parsed else None,
        build_seconds=round(compiled.seconds, 2),
        plan_bytes=len(compiled.data),
        warnings=compiled.warnings,
        faults=compiled.faults,
        error=refusal(adapter, onnx, compiled.faults) if compiled.faults else None,
    )


def _describe(profile: Profile) -> str:
    return "; ".join(
        f"{name} {'x'.join(map(str, shape.min))} {'x'.join(map(str, shape.opt))} {'x'.join(map(str, shape.max))}"
        for name, shape in profile.items()
    )
