"""Engine, network or graph -> Report: layers joined with ONNX nodes, times and arithmetic. Nothing here runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.measure.inspect.layers import Tensor, kind_of_operators, kind_of_type, traffic_bytes
from generator.measure.inspect.mapping import find_eliminated, map_layers, name_nodes
from generator.measure.inspect.report import Report, Row, finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.measure.inspect.graph import OnnxGraph
    from generator.measure.inspect.layers import EngineInformation, EngineLayer
    from generator.measure.inspect.mapping import Origin
    from generator.measure.inspect.network import Network
    from generator.measure.inspect.timing import Timing

__all__ = ["report_engine", "report_graph", "report_network"]

# Among the layers that one node became, the first of these does the arithmetic.
_ARITHMETIC = ("convolution", "matmul", "fused")


def report_engine(
    information: EngineInformation,
    *,
    graph: OnnxGraph | None,
    timing: Timing | None,
    title: str,
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str] = (),
    batch: int = 1,
) -> Report:
    """Join the engine's layers with the ONNX nodes they come from and with their times."""
    origins = map_layers(information.layers, graph)
    times = {(one.name, one.occurrence): one.median_ms for one in timing.layers} if timing else {}
    total_ms = sum(times.values())
    operators = {node.name: node.operator for node in graph.nodes} if graph else {}
    macs = _share_out_macs(information.layers, origins, graph)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for index, (layer, origin) in enumerate(zip(information.layers, origins, strict=True)):
        occurrence = seen.get(layer.name, 0)
        seen[layer.name] = occurrence + 1
        time_ms = times.pop((layer.name, occurrence), None)
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
                inferred=origin.inferred,
                parts=origin.parts,
                tactic=layer.tactic,
                time_ms=time_ms,
                share=time_ms / total_ms if time_ms is not None and total_ms else None,
                macs=macs[index] * batch,
                traffic_bytes=traffic_bytes(layer),
            )
        )
    return finish(
        Report(
            subject="engine",
            title=title,
            facts=tuple(facts),
            notes=(*notes, *_engine_notes(information, origins, graph, timing, tuple(times))),
            rows=tuple(rows),
            eliminated=find_eliminated(information.layers, origins, graph) if graph else (),
            node_count=len(graph.nodes) if graph else None,
            batch=batch,
            total_ms=total_ms if timing else None,
            latency_ms=timing.latency_ms if timing else None,
        )
    )


def report_network(network: Network, graph: OnnxGraph, *, title: str, facts: Sequence[tuple[str, str]]) -> Report:
    """Join the parsed network's layers with the ONNX nodes they come from; shares are of multiply-accumulates."""
    nodes = {node.name: node for node in graph.nodes}
    names = name_nodes(graph)
    taken: set[str] = set()
    rows = []
    for index, layer in enumerate(network.layers):
        name = names.get(layer.node, layer.node) or names.get(layer.name, "")
        node = nodes.get(name)
        kind = kind_of_type(layer.type)
        macs = (node.macs or 0) if node and name not in taken and kind in _ARITHMETIC else 0
        taken.update([name] if macs else [])
        rows.append(
            Row(
                index=index,
                name=layer.name,
                type=layer.type,
                kind=kind,
                precision=next((tensor.data_type for tensor in layer.outputs), ""),
                inputs=layer.inputs,
                outputs=layer.outputs,
                nodes=(name,) if name else (),
                operators=(node.operator,) if node else (),
                source="metadata" if layer.node else "name" if name else "none",
                inferred=bool(name and not layer.node),
                macs=macs,
            )
        )
    found = {name for row in rows for name in row.nodes}
    missing = [node for node in graph.nodes if node.name not in found and node.operator != "Constant"]
    notes = ["this is the network as the parser sees it: what TensorRT fuses is decided when the plan is built"]
    if missing:
        listed = ", ".join(f"{node.name} ({node.operator})" for node in missing[:8])
        notes.append(
            f"{len(missing)} ONNX nodes became no layer of the network: {listed}{', ...' * (len(missing) > 8)}"
        )
    return finish(
        Report(
            subject="network",
            title=title,
            facts=(*facts, ("parser", network.parser)),
            notes=tuple(notes),
            rows=tuple(rows),
            node_count=len(graph.nodes),
        )
    )


def report_graph(graph: OnnxGraph, *, title: str, facts: Sequence[tuple[str, str]], notes: Sequence[str]) -> Report:
    """Return the ONNX nodes as rows; shares are of multiply-accumulates."""
    rows = [
        Row(
            index=index,
            name=node.name,
            type=node.operator,
            kind=kind_of_operators((node.operator,)),
            precision=node.data_type,
            inputs=(),
            outputs=(Tensor(name=node.outputs[0], shape=node.shape, data_type=node.data_type, layout=""),),
            nodes=(node.name,),
            operators=(node.operator,),
            source="metadata",
            inferred=False,
            macs=node.macs or 0,
            traffic_bytes=node.weights_bytes,
        )
        for index, node in enumerate(graph.nodes)
        if node.operator != "Constant" and node.outputs
    ]
    return finish(
        Report(
            subject="onnx",
            title=title,
            facts=tuple(facts),
            notes=tuple(notes),
            rows=tuple(rows),
            node_count=len(graph.nodes),
        )
    )


def _kind(layer: EngineLayer, operators: tuple[str, ...]) -> str:
    """Take the nodes' kind where TensorRT's type says nothing, or runs a matrix product as a convolution."""
    of_nodes = kind_of_operators(operators) if operators else layer.kind
    as_convolution = layer.kind == "convolution" and of_nodes == "matmul"
    return of_nodes if layer.kind == "other" or as_convolution else layer.kind


def _share_out_macs(layers: Sequence[EngineLayer], origins: Sequence[Origin], graph: OnnxGraph | None) -> list[int]:
    """Give each node's multiply-accumulates, of one image, to one of the layers that it became."""
    found = [0] * len(layers)
    for node in graph.nodes if graph else ():
        owners = [index for index, origin in enumerate(origins) if node.name in origin.nodes]
        heavy = [index for kind in _ARITHMETIC for index in owners if layers[index].kind == kind]
        if node.macs and owners:
            found[(heavy or owners)[0]] += node.macs
    return found


def _engine_notes(
    information: EngineInformation,
    origins: Sequence[Origin],
    graph: OnnxGraph | None,
    timing: Timing | None,
    unmatched: Sequence[tuple[str, int]],
) -> list[str]:
    notes = []
    if timing:
        notes.append(
            f"layer times are medians of {timing.iterations} runs after {timing.warm_up} for warm-up; with a profiler "
            "TensorRT runs layer after layer, without CUDA graph or overlap, so their sum is at least the latency"
        )
    if not information.detailed and information.layers:
        notes.append("the plan holds only its layers' names: types, formats and precisions are unknown")
    if graph is None:
        notes.append("no ONNX file was given (--onnx): parts of layers' names are taken for nodes, none is looked up")
    elif any(origin.inferred for origin in origins):
        count = sum(origin.inferred for origin in origins)
        notes.append(
            f"this TensorRT does not say which ONNX nodes {count} of the layers come from: inferred from names, "
            "or, where marked ~, from the tensors or nodes around"
        )
    if graph and information.layers and not any(origin.nodes for origin in origins):
        notes.append(f"no layer's name occurs in {graph.path.name}: is it the file that the plan was built from?")
    if unmatched:
        listed = ", ".join(name for name, _ in unmatched[:5])
        notes.append(f"{len(unmatched)} times belong to no layer that the inspector lists: {listed}")
    return notes
