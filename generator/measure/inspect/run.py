"""A plan or ONNX file -> Inspection: what is asked of TensorRT, and what is said where it cannot be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.errors import PlanError, RepositoryError
from generator.files import PLAN_MAGIC, RTX_MAGIC, hash_file
from generator.measure.inspect.describe import describe_engine, describe_graph, describe_network
from generator.measure.inspect.inspection import Inspection
from generator.measure.inspect.layers import read_layers
from generator.measure.inspect.nodes import read_graph
from generator.measure.inspect.parsed import parse_network
from generator.plan.library import installed_version

if TYPE_CHECKING:
    from pathlib import Path

    from generator.measure.inspect.nodes import OnnxGraph
    from generator.plan.header import PlanHeader
    from generator.plan.local import PlanEngine
    from generator.plan.passport import Passport
    from generator.runtime.shapes import Shapes
    from generator.tensor import Profile

_PLAN_SUFFIXES = (".plan", ".engine", ".trt")
_WARM_UP = 10


def is_plan(path: Path) -> bool:
    """Say whether a file is to be read as a plan: by its first bytes, else by its name.

    Raises:
        PlanError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            first = stream.read(4)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise PlanError(msg, hint="give the path of a plan or of an ONNX file") from error
    return first in (PLAN_MAGIC, RTX_MAGIC) or path.suffix.lower() in _PLAN_SUFFIXES


def inspect_onnx(path: Path) -> Inspection:
    """Return the network that TensorRT's parser makes of a graph, or the graph itself where no parser is installed.

    Raises:
        SourceError: Not ONNX.
        PlanError: The parser refuses it.
    """
    graph = read_graph(path)
    facts = [
        ("file", path.name),
        ("size", f"{path.stat().st_size / 1e6:.1f} MB"),
        ("opset", str(graph.opset)),
        ("sha256", graph.sha256[:16]),
        *([("license", graph.license)] if graph.license else []),
        *_source(path),
    ]
    network = parse_network(path)
    if network is not None:
        parser, layers = network
        return describe_network(layers, graph, parser=parser, title=path.name, facts=facts)
    note = "neither TensorRT-RTX (pip install -e '.[preflight]') nor TensorRT can parse here: these are ONNX's nodes"
    return describe_graph(graph, title=path.name, facts=facts, notes=[note])


def inspect_plan(path: Path, *, onnx: Path | None, batch: int | None, iterations: int) -> Inspection:
    """Return the engine's layers with times, or header and passport alone where this host cannot run the plan.

    Args:
        path: The plan.
        onnx: The graph it was built from; default: `model.onnx` beside it, if the passport says that it was that one.
        batch: Images at once; default: what the first profile is optimised for.
        iterations: Runs that the times are taken from.

    Raises:
        PlanError: Not a plan, another TensorRT's, or no profile holds the batch.
        SourceError: `onnx` is not ONNX.
        DeviceError: The GPU's memory is exhausted.
    """
    from generator.gpu import why_no_gpu
    from generator.plan.header import read_header

    header = read_header(path)
    passport = _passport(path)
    facts = _plan_facts(path, header, passport)
    notes = []
    if passport is None:
        notes.append("the plan has no passport beside it: what it was built from and for is unknown")
    if reason := why_no_gpu() or ("" if installed_version() else "TensorRT is not installed (the extra tensorrt)"):
        notes.append(
            f"this plan cannot be opened here, so this is its header and passport only: {reason}. Layers exist only "
            "in an engine on its GPU; inspecting the ONNX file shows the network here"
        )
        return Inspection(subject="header", title=path.name, facts=tuple(facts), notes=tuple(notes))
    graph = _find_graph(path, onnx, passport, notes)
    return _inspect_engine(path, graph=graph, facts=facts, notes=notes, batch=batch, iterations=iterations)


def _inspect_engine(
    path: Path,
    *,
    graph: OnnxGraph | None,
    facts: list[tuple[str, str]],
    notes: list[str],
    batch: int | None,
    iterations: int,
) -> Inspection:
    from generator.gpu import find_gpu
    from generator.measure.inspect.timing import measure_layers
    from generator.plan.local import open_engine

    with open_engine(path) as engine:
        chosen = _choose_batch(engine, batch)
        shapes, profile = engine.open_batch(chosen)
        _fill(engine, shapes)
        layers = read_layers(_ask_inspector(engine.trt, engine.engine, engine.contexts[0]), profile=profile)
        timing = measure_layers(engine, shapes, iterations=iterations, warm_up=_WARM_UP)
        gpu = find_gpu()
        facts = [*facts, ("measured on", f"{gpu.name}, driver {gpu.driver}"), ("batch", str(chosen))]
        return describe_engine(
            layers, graph=graph, timing=timing, title=path.name, facts=facts, notes=notes, batch=chosen
        )


def _ask_inspector(trt: Any, engine: Any, context: Any) -> str:
    """Return the inspector's JSON with the context's real shapes; without it dynamic ones would read -1."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _choose_batch(engine: PlanEngine, batch: int | None) -> int:
    images = engine.inputs[0]
    ranges = [
        (one.min[0], one.opt[0], one.max[0]) for profile in engine.all_profiles if (one := profile.get(images.name))
    ]
    ranges = ranges or [(images.shape[0],) * 3]  # nothing is dynamic
    chosen = ranges[0][1] if batch is None else batch
    if not any(least <= chosen <= most for least, _, most in ranges):
        known = ", ".join(f"{least} to {most}" for least, _, most in ranges)
        msg = f"no optimization profile of {engine.path.name} takes a batch of {chosen}; they take {known}"
        fields = {"batch": ranges[0][1]}
        raise PlanError(msg, hint="take one of these", command=("inspect", str(engine.path)), fields=fields)
    return chosen


def _fill(engine: PlanEngine, shapes: Shapes) -> None:
    """Run the engine on noise instead of zeros once: a GPU draws less power on zeros, and clocks higher."""
    import numpy as np

    from generator.runtime.graphs import draw

    images = draw(np.random.default_rng(0), shapes[0], np.dtype(engine.input.data_type.numpy))
    engine.stage(0, images)
    engine.send(0, 0, 0, images.nbytes)
    engine.enqueue(0, shapes)
    engine.wait()


def _passport(path: Path) -> Passport | None:
    from generator.plan.passport import passport_path, read_passport

    return read_passport(path) if passport_path(path).is_file() else None


def _find_graph(path: Path, onnx: Path | None, passport: Passport | None, notes: list[str]) -> OnnxGraph | None:
    """Return the graph whose nodes are looked up; say so where it is not the one that the plan was built from."""
    if onnx is None:
        beside = path.with_name("model.onnx")
        if passport is None or not beside.is_file() or hash_file(beside) != passport.onnx_sha256:
            return None
        onnx = beside
    graph = read_graph(onnx)
    if passport is not None and graph.sha256 != passport.onnx_sha256:
        notes.append(
            f"{onnx.name} is not the file that the plan was built from (its passport has another hash): "
            "nodes may be missing or wrong"
        )
    return graph


def _source(path: Path) -> list[tuple[str, str]]:
    """Return what the graph was made of, with its license where that is stated; nothing where no record says it."""
    from generator.repository.model_info import find_model_info

    try:
        info = find_model_info(path)
    except (PlanError, RepositoryError, OSError):  # what lies beside the file is not what was asked for
        return []
    return [("source", info.description)] if info and info.description else []


def _plan_facts(path: Path, header: PlanHeader, passport: Passport | None) -> list[tuple[str, str]]:
    facts = [
        ("file", path.name),
        ("size", f"{header.size_bytes / 1e6:.1f} MB"),
        ("TensorRT", str(header.version or "unknown version")),
    ]
    facts += _source(path)
    if passport is None:
        return facts
    gpu = passport.gpu
    return [
        *facts,
        ("built on", f"{gpu['name']} (compute capability {gpu['compute_capability']})"),
        ("precision", passport.precision),
        ("profiles", "; ".join(_profile_text(profile) for profile in passport.profiles) or "static"),
        ("flags", ", ".join(passport.flags) or "none"),
        ("build", f"{passport.build_seconds:.0f} s, timing cache {passport.timing_cache}"),
        ("ONNX sha256", passport.onnx_sha256[:16]),
        ("made by", passport.command),
    ]


def _profile_text(profile: Profile) -> str:
    """Return the batches of one profile: `1 / 8 / 32` for min, opt and max."""
    return ", ".join(f"{one.min[0]} / {one.opt[0]} / {one.max[0]}" for one in profile.values())
