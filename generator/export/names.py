"""The names of the exported graph's tensors, which clients of the classifier see."""

from __future__ import annotations

__all__ = ["DYNAMIC_HINT", "INPUT_NAME", "OUTPUT_NAMES"]

INPUT_NAME = "PIXELS"
OUTPUT_NAMES = {"softmax": "PROBABILITIES", "sigmoid": "PROBABILITIES", "none": "LOGITS"}
DYNAMIC_HINT = "export the source again with a dynamic batch: write -1 or x.shape[0] instead of a number for that axis"
