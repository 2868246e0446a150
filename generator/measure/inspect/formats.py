"""TensorRT's words for how a tensor lies in memory, as two short ones: data type and layout."""

from __future__ import annotations

import re

# Bytes of one element; what has less than one byte counts as one.
WIDTHS = {
    "fp64": 8, "int64": 8, "fp32": 4, "tf32": 4, "int32": 4, "fp16": 2, "bf16": 2,
    "int8": 1, "uint8": 1, "fp8": 1, "bool": 1, "int4": 1, "fp4": 1,
}  # fmt: skip
_NAMES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "tf32": "tf32",
    "half": "fp16", "float16": "fp16", "fp16": "fp16",
    "bfloat16": "bf16", "bf16": "bf16", "bfloat": "bf16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool",
    "fp8": "fp8", "float8": "fp8", "float8e4m3fn": "fp8", "fp8e4m3": "fp8", "e4m3": "fp8",
    "int4": "int4", "fp4": "fp4", "double": "fp64", "float64": "fp64", "fp64": "fp64",
}  # fmt: skip
_WIDE = {"two": 2, "four": 4, "eight": 8, "sixteen": 16, "thirty-two": 32}
_WIDE_WORDS = re.compile(r"(two|four|eight|sixteen|thirty-two) wide channel", re.IGNORECASE)
_MULTIPLE = re.compile(r"channel % (\d+) == 0|C % (\d+) == 0")


def data_type_of(text: str) -> str:
    """Return `fp32`, `fp16`, `int8` ... for any text of TensorRT that names a type; empty where it names none.

    Examples: "Channel major FP16 format where channel % 8 == 0" is fp16, "Half" too, "Row major Int8 format" is int8.
    """
    for word in re.findall(r"[A-Za-z]+\d*[A-Za-z]*\d*[A-Za-z]*", text):
        if (found := _NAMES.get(word.lower())) is not None:
            return found
    return ""


def layout_of(text: str) -> str:
    """Return `NCHW`, `NHWC`, `NHWC8`, `NC/32HW32` ... for TensorRT's description; empty where it describes none."""
    wide = _WIDE_WORDS.search(text)
    lowered = text.lower()
    if wide:
        width = _WIDE[wide[1].lower()]
        return f"NC/{width}HW{width}"
    if "channel major" in lowered or "channel-last" in lowered:
        multiple = _MULTIPLE.search(text)
        return "NHWC" + ((multiple[1] or multiple[2]) if multiple else "")
    if "row major" in lowered:
        return "NCHW"
    return ""
