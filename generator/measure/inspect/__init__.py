"""What became of a graph: network layers, engine layers, their precision and time; `trtgen inspect`.

`layers`, `nodes`, `mapping`, `describe` and `inspection` are values in, values out; `parsed` and `run` ask TensorRT,
`timing` runs the plan; `text` and `page` show the inspection.
"""

from generator.measure.inspect.inspection import Inspection, to_json
from generator.measure.inspect.run import inspect_onnx, inspect_plan, is_plan

__all__ = ["Inspection", "inspect_onnx", "inspect_plan", "is_plan", "to_json"]
