"""Our exported FP32 graph -> the graph that the target's precision needs.

TensorRT 10 and later build what the graph says ("strongly typed"), so precision is a property of the ONNX file.
TensorRT 8.6 takes FP32 graphs, or FP32 graphs with Q/DQ, and its builder chooses with flags.
"""

from __future__ import annotations

from generator.graph.precision.calibration import Calibration, read_calibration
from generator.graph.precision.convert import ConvertedGraph, convert_graph, graph_precision

__all__ = ["Calibration", "ConvertedGraph", "convert_graph", "graph_precision", "read_calibration"]
