"""What exported graphs have in common: the names of their tensors, which clients of the classifier see, and opsets."""

from __future__ import annotations

__all__ = ["DYNAMIC_HINT", "INPUT_NAME", "NEWEST_OPSET_OF_8", "OUTPUT_NAMES"]

INPUT_NAME = "PIXELS"
OUTPUT_NAMES = {"softmax": "PROBABILITIES", "sigmoid": "PROBABILITIES", "none": "LOGITS"}
DYNAMIC_HINT = "export the source again with a dynamic batch: write -1 or x.shape[0] instead of a number for that axis"
# In opset 18 the axes of ReduceMean became an input, which TensorRT 8.6 does not read.
NEWEST_OPSET_OF_8 = 17
