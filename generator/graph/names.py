"""What exported graphs have in common: the names of their tensors, which clients of the classifier see, and opsets."""

from __future__ import annotations

INPUT_NAME = "PIXELS"
DYNAMIC_HINT = "export the source again with a dynamic batch: write -1 or x.shape[0] instead of a number for that axis"
NAN_HINT = "look for NaN, infinity or huge values in the source's weights"
# In opset 18 the axes of ReduceMean became an input, which TensorRT 8.6 does not read.
NEWEST_OPSET_OF_8 = 17
