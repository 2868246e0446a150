"""The gate: the source, the graph, the plan and what is served must agree on the same images."""

from generator.gate.candidate import Candidate
from generator.gate.run import GateReport, run_gate

__all__ = ["Candidate", "GateReport", "run_gate"]
