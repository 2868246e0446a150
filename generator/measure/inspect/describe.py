"""Layers of an engine or a network, or nodes of a graph -> Inspection: joined with ONNX nodes, times and arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.measure.inspect.inspection import Inspection, Row
from generator.measure.inspect.layers import Layer, LayerTensor, kind_of_operators, traffic_bytes
from generator.measure.inspect.mapping import Origin, find_eliminated, map_layers, name_nodes
from generator.measure.inspect.timing import number_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.measure.inspect.nodes import OnnxGraph
    from generator.measure.inspect.timing import Timing

# Among the layers that one node became, the first of these does the arithmetic.
_ARITHMETIC = ("convolution", "matmul", "fused")


def describe_engine(
    layers: Sequence[Layer],
    *,
    graph: OnnxGraph | None,
    timing: Timing | None,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    batch: int = 1,
) -> Inspection:
    """Join the engine's layers with the ONNX nodes they come from and with their times."""
    origins = map_layers(layers, graph)
    times = timing.layers_ms if timing else {}
    rows = _make_rows(layers, origins, graph, times_ms=times, batch=batch)
    return Inspection(
        subject="engine",
        title=title,
        facts=tuple(facts),
        notes=(*notes, *_engine_notes(rows, graph, timing)),
        rows=rows,
        eliminated=find_eliminated(layers, origins, graph) if graph else (),
        node_count=len(graph.nodes) if graph else None,
        batch=batch,
        total_ms=sum(times.values()) if timing else None,
        latency_ms=timing.latency_ms if timing else None,
    )


def describe_network(
    layers: Sequence[Layer], graph: OnnxGraph, *, parser: str, title: str, facts: Sequence[tuple[str, str]]
) -> Inspection:
    """Join the parsed network's layers with the ONNX nodes they come from; shares are of multiply-accumulates."""
    names = name_nodes(graph)
    origins = []
    for layer in layers:
        told = next(iter(layer.metadata), "")
        name = names.get(told, told) or names.get(layer.name, "")
        origins.append(Origin(nodes=(name,) if name else (), source="metadata" if told else "name" if name else "none"))
    found = {name for origin in origins for name in origin.nodes}
    missing = [node for node in graph.nodes if node.name not in found and node.operator != "Constant"]
    notes = ["this is the network as the parser sees it: what TensorRT fuses is decided when the plan is built"]
    if missing:
        listed = ", ".join(f"{node.name} ({node.operator})" for node in missing[:8])
        notes.append(
            f"{len(missing)} ONNX nodes became no layer of the network: {listed}{', ...' * (len(missing) > 8)}"
        )
    return Inspection(
        subject="network",
        title=title,
        facts=(*facts, ("parser", parser)),
        notes=tuple(notes),
        rows=_make_rows(layers, origins, graph),
        node_count=len(graph.nodes),
    )


def describe_graph(
    graph: OnnxGraph, *, title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str]
) -> Inspection:
    """Return the ONNX nodes as rows; shares are of multiply-accumulates."""
    layers = [
        Layer(
            name=node.name,
            type=node.operator,
            kind=kind_of_operators((node.operator,)),
            precision=node.data_type,
            outputs=(LayerTensor(name=node.outputs[0], shape=node.shape, data_type=node.data_type),),
            weights_bytes=node.weights_bytes,
        )
        for node in graph.nodes
        if node.operator != "Constant" and node.outputs
    ]
    origins = [Origin(nodes=(layer.name,), source="metadata") for layer in layers]
    return Inspection(
        subject="onnx",
        title=title,
        facts=tuple(facts),
        notes=tuple(notes),
        rows=_make_rows(layers, origins, graph),
        node_count=len(graph.nodes),
    )


def _make_rows(
    layers: Sequence[Layer],
    origins: Sequence[Origin],
    graph: OnnxGraph | None,
    *,
    times_ms: Mapping[tuple[str, int], float] | None = None,
    batch: int = 1,
) -> tuple[Row, ...]:
    """Return a row per layer, with its share of all times, or of all arithmetic where there are none."""
    operators = {node.name: node.operator for node in graph.nodes} if graph else {}
    macs = _share_out_macs(layers, origins, graph)
    times_ms = times_ms or {}
    total_ms, total_macs = sum(times_ms.values()), sum(macs)
    rows = []
    keys = number_names(layer.name for layer in layers)
    for index, (layer, origin, key) in enumerate(zip(layers, origins, keys, strict=True)):
        time_ms = times_ms.get(key)
        if total_ms:
            share = None if time_ms is None else time_ms / total_ms
        else:
            share = macs[index] / total_macs if total_macs else None
        names = tuple(operators[node] for node in origin.nodes if node in operators)
        rows.append(
            Row(
                index=index,
                name=layer.name,
                type=layer.type,
                kind=_kind(layer, names),
                precision=layer.precision,
                inputs=layer.inputs,
                outputs=layer.outputs,
                nodes=origin.nodes,
                operators=names,
                source=origin.source,
                parts=origin.parts,
                tactic=layer.tactic,
                time_ms=time_ms,
                share=share,
                macs=macs[index] * batch,
                traffic_bytes=traffic_bytes(layer),
            )
        )
    return tuple(rows)


def _kind(layer: Layer, operators: tuple[str, ...]) -> str:
    """Take the nodes' kind where TensorRT's type says nothing, or runs a matrix product as a convolution."""
    of_nodes = kind_of_operators(operators) if operators else layer.kind
    as_convolution = layer.kind == "convolution" and of_nodes == "matmul"
    return of_nodes if layer.kind == "other" or as_convolution else layer.kind


def _share_out_macs(layers: Sequence[Layer], origins: Sequence[Origin], graph: OnnxGraph | None) -> list[int]:
    """Give each node's multiply-accumulates, of one image, to one of the layers that it became."""
    found = [0] * len(layers)
    for node in graph.nodes if graph else ():
        owners = [index for index, origin in enumerate(origins) if node.name in origin.nodes]
        heavy = [index for kind in _ARITHMETIC for index in owners if layers[index].kind == kind]
        if node.macs and owners:
            found[(heavy or owners)[0]] += node.macs
    return found


def _engine_notes(rows: Sequence[Row], graph: OnnxGraph | None, timing: Timing | None) -> list[str]:
    notes = []
    if timing:
        notes.append(
            f"layer times are medians of {timing.iterations} runs after {timing.warm_up} for warm-up; with a profiler "
            "TensorRT runs layer after layer, without CUDA graph or overlap, so their sum is at least the latency"
        )
    if rows and not any(row.type for row in rows):
        notes.append("the plan holds only its layers' names: types, formats and precisions are unknown")
    if graph is None:
        notes.append("no ONNX file was given: parts of layers' names are taken for nodes, none is looked up")
    elif count := sum(row.inferred for row in rows):
        notes.append(
            f"this TensorRT does not say which ONNX nodes {count} of the layers come from: inferred from names, "
            "or, where marked ~, from the tensors or nodes around"
        )
    if graph and rows and not any(row.nodes for row in rows):
        notes.append(f"no layer's name occurs in {graph.path.name}: is it the file that the plan was built from?")
    known = set(number_names(row.name for row in rows))
    if timing and (unmatched := [name for name, number in timing.layers_ms if (name, number) not in known]):
        notes.append(f"{len(unmatched)} times belong to no layer that the inspector lists: {', '.join(unmatched[:5])}")
    return notes
