"""Inputs and outputs: names, data types, dims, reshape, format."""

from generator.rules.rule import config_rule

_TENSOR = r"model (?P<kind>input|output) '(?P<tensor>[^']*)' "

RULES = (
    config_rule(
        id="tensor-name-missing",
        says=r"model (?P<kind>input|output) must specify 'name'",
        cause="an {kind} has no name",
        fix="give it the name that the model's file or model.py has, in {model}/config.pbtxt",
    ),
    config_rule(
        id="tensor-data-type-missing",
        says=_TENSOR + r"must specify 'data_type'",
        cause="{kind} {tensor!r} has no data_type",
        fix="write data_type: TYPE_FP32, or what it is, in {model}/config.pbtxt",
    ),
    config_rule(
        id="tensor-dims-missing",
        says=_TENSOR + r"must specify 'dims'",
        cause="{kind} {tensor!r} has no dims",
        fix="write dims in {model}/config.pbtxt, without the batch where max_batch_size is above 0",
    ),
    config_rule(
        id="tensor-dim-invalid",
        says=_TENSOR + r"dimension must be integer >= 1, or -1",
        cause="{kind} {tensor!r} has a dimension that is neither 1 or more nor -1 for a variable one",
        fix="correct its dims in {model}/config.pbtxt",
    ),
    config_rule(
        id="tensor-format-dims",
        says=r"model input NHWC/NCHW require 3 dims",
        cause="an input with format FORMAT_NHWC or FORMAT_NCHW needs 3 dims, without the batch",
        fix="write three dims, or remove format, in {model}/config.pbtxt",
    ),
    config_rule(
        id="reshape-empty",
        says=_TENSOR + r"cannot have empty reshape for non-batching model",
        cause="{kind} {tensor!r} has an empty reshape, and max_batch_size is 0: scalars are not supported",
        fix="remove its reshape, or give it one dimension, in {model}/config.pbtxt",
    ),
    config_rule(
        id="reshape-dim-invalid",
        says=_TENSOR + r"reshape dimensions must be integer >= 1, or -1",
        cause="reshape of {kind} {tensor!r} has a dimension that is neither 1 or more nor -1 for a variable one",
        fix="correct its reshape in {model}/config.pbtxt",
    ),
    config_rule(
        id="reshape-size",
        says=_TENSOR + r"has different size for dims and reshape",
        cause="dims and reshape of {kind} {tensor!r} have different numbers of elements",
        fix="make their products equal, between variable dimensions too, in {model}/config.pbtxt",
    ),
    config_rule(
        id="reshape-variable-dims",
        says=_TENSOR + r"has different number of variable-size dimensions for dims and reshape",
        cause="dims and reshape of {kind} {tensor!r} have different numbers of variable dimensions",
        fix="give reshape a -1 for every -1 of dims in {model}/config.pbtxt",
    ),
    config_rule(
        id="tensor-non-linear-dims",
        says=r"Non-linear IO format (?P<kind>input|output) requires 3 dims",
        cause="an {kind} with is_non_linear_format_io needs 3 dims, without the batch",
    ),
    config_rule(
        id="tensor-only-tensorrt",
        says=r"(?P<what>shape tensors are|Non-linear IO format is) only supported for (the )?TensorRT platform",
        cause="an input or output is a shape tensor or has a non-linear format, which plans of TensorRT have alone",
    ),
)
