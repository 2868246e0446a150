"""What became of a graph: network layers, engine layers, their precision and time; `trtgen inspect`.

`layers.py`, `graph.py`, `mapping.py`, `join.py` and `report.py` are values in, values out; `network.py` and
`subject.py` ask TensorRT, `timing.py` runs the plan; `text.py` and `page.py` show the report.
"""

from generator.measure.inspect.report import Report, to_json
from generator.measure.inspect.subject import inspect_onnx, inspect_plan, is_plan

__all__ = ["Report", "inspect_onnx", "inspect_plan", "is_plan", "to_json"]
