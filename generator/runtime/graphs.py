"""CUDA graphs of an engine: recorded for the shapes that are asked for, and used only where they answer right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError
from .shapes import is_between

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from .engine import Engine
    from .shapes import Shape, Shapes


class GraphSpec(NamedTuple):
    """Shapes to record a CUDA graph for, one per input, and the least that it may stand in for."""

    shapes: Shapes
    lower: Shapes


def record_graphs(engine: Engine, specs: Sequence[Sequence[GraphSpec]]) -> list[str]:
    """Record CUDA graphs, a list for each context; return what cannot be recorded or used, and runs without."""
    warnings = []
    engine.graphs = [{} for _ in engine.contexts]
    for context, wanted in enumerate(specs):
        for spec in wanted:
            try:
                engine.graphs[context][spec.shapes] = (spec.lower, engine.record(context, spec.shapes))
            except EngineError as error:
                warnings.append(f"unable to record CUDA graph for {engine.name}, shapes {spec.shapes}: {error}")
    return [*warnings, *_check_graphs(engine)]


def _check_graphs(engine: Engine) -> list[str]:
    """Drop each graph that does not give what the context gives.

    They all were recorded from one context, which has had other shapes since: TensorRT does not promise that they
    still work. With the static memory of these contexts they do, here it is seen.
    """
    warnings = []
    random = np.random.default_rng(0)
    for context, graphs in enumerate(engine.graphs):
        least = tuple(one.min for one in engine.profiles[context].values())
        for shapes, (_, graph) in list(graphs.items()):
            for number, (shape, tensor) in enumerate(zip(shapes, engine.inputs, strict=True)):
                engine.stage(number, draw(random, shape, engine.dtypes[tensor.name]))
                engine.send(number, 0, 0, engine.count_bytes(shape, tensor))
            for other in (*graphs, least):
                engine.enqueue(context, other)  # other shapes take effect when something runs with them
            for number, pointer in enumerate(engine.device_outputs, len(engine.inputs)):
                engine.device.fill(pointer, 255, engine.sizes[number])  # what the graph leaves unwritten is seen
            engine.device.launch(graph)
            got = engine.fetch(context, shapes)
            engine.enqueue(context, shapes)
            if not all(map(_is_close, engine.fetch(context, shapes), got)):
                del graphs[shapes]
                engine.device.release("cuGraphExecDestroy", graph)
                warnings.append(f"{engine.name}: the CUDA graph for {shapes} differs and is not used")
    return warnings


def find_graph(graphs: Mapping[Shapes, tuple[Shapes, object]], shapes: Shapes) -> object | None:
    """Return the graph for exactly these shapes, or the smallest one that may stand in for it, or None."""
    exact = graphs.get(shapes)
    if exact is not None:
        return exact[1]
    able = [
        (upper, graph)
        for upper, (lower, graph) in graphs.items()
        if all(is_between(shape, a, b) for shape, a, b in zip(shapes, lower, upper, strict=True))
    ]
    return min(able, key=lambda pair: pair[0])[1] if able else None


def draw(random: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return random numbers that any network takes: whole numbers may be indices, and are 0 unless they are pixels."""
    if dtype == np.uint8:
        return random.integers(0, 256, shape, np.uint8)
    if np.issubdtype(dtype, np.floating):
        return random.standard_normal(shape, np.float32).astype(dtype)
    return np.zeros(shape, dtype)


def _is_close(expected: NDArray[Any], got: NDArray[Any]) -> bool:
    """Tell whether two outputs agree to 1 % of the largest value."""
    a, b = expected.astype(np.float64), got.astype(np.float64)
    finite = np.abs(a[np.isfinite(a)])
    return bool(np.allclose(a, b, rtol=0.01, atol=0.01 * (finite.max() if finite.size else 0), equal_nan=True))
