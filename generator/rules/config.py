"""config.pbtxt against the network, and against rules of Triton that have no row of their own."""

from functools import partial

from generator.rules.rule import EDIT, FILES, Rule

network_rule = partial(Rule, fix=EDIT, build="rewrite", seen_in=("onnx", "plan", "log"))

# What Triton says of a config.pbtxt that is not that of the graph or plan.
_DISAGREEMENT = (
    r"unexpected datatype TYPE_\w+ for inference|"
    r"unexpected inference (input|output) '|expected configuration for (input|output)|"
    r"configuration expects \d+ (input|output)s|is missing from the configuration|"
    r"the (model|graph) (expects|has) \d+ dimensions|the graph has shape|"
    r"model configuration specified invalid shape|"
    r"invalid profile -?\d+|failed to find any Optimization Profile|whether batching is supported"
)
# What it says of one that breaks a rule that has no row of its own.
_BROKEN_RULE = (
    r"TensorRT backend supports only GPU device|"
    r"graph (lower bound )?spec expects|Supported values are|does not specify|"
    r"Invalid stub name|Incorrect value for FORCE_CPU_ONLY"
)

AGAINST_NETWORK = (
    network_rule(
        id="network-tensor-unknown",
        says=r"unexpected inference (?P<kind>input|output) '(?P<tensor>[^']*)'.*?"
        r"allowed (?:in|out)puts are: (?P<names>.*)",
        cause="{kind} {tensor!r} is not in the model, which has {names}",
        fix="write the model's own name in {model}/config.pbtxt",
    ),
    network_rule(
        id="network-tensor-count",
        says=r"configuration expects (?P<stated>\d+) (?P<kind>input|output)s, "
        r"model provides (at most )?(?P<made>\d+)",
        cause="config.pbtxt has {stated} {kind}s, the model {made}",
    ),
    network_rule(
        id="network-data-type",
        says=r"unexpected datatype (?P<stated>TYPE_\w+) for inference (?P<kind>input|output) '(?P<tensor>[^']*)'.*?"
        r"(expecting|the graph has) (?P<made>TYPE_\w+)",
        cause="{kind} {tensor!r} is {stated} in config.pbtxt and {made} in the model",
        fix="write data_type: {made} in {model}/config.pbtxt",
    ),
    network_rule(
        id="network-dims",
        says=r"tensor '(?P<tensor>[^']*)': the (?:model expects|graph has) (?:\d+ dimensions? \()?"
        r"shape (?P<made>\[.*?\])[^;]*(?P<stated>\[.*?\])",
        cause="{tensor!r} has the shape {made} in the model and {stated} in config.pbtxt, the batch included",
        fix="write its dims, without the batch where max_batch_size is above 0, in {model}/config.pbtxt",
    ),
    network_rule(
        id="network-batch-fixed",
        says=r"model does not support batching while non-zero max_batch_size|is not a variable-size batch dimension|"
        r"the underlying engine doesn't support batching|first dimension must be dynamic",
        cause="max_batch_size is above 0, but the batch of its graph is fixed",
        fix="set max_batch_size: 0 and the full dims, or export it with a dynamic batch",
        build="rebuild",
    ),
    network_rule(
        id="network-max-batch",
        says=r"max-batch (?P<own>\d+) but TensorRT engine only supports max-batch (?P<most>\d+)",
        cause="max_batch_size is {own}, and the optimization profiles of its plan end at {most}",
        fix="write max_batch_size: {most} in {model}/config.pbtxt, or build the plan with a larger batch",
        build="rebuild",
        seen_in=("plan", "log"),
    ),
    network_rule(
        id="network-batch-contradiction",
        says=r"contradicting each other in terms of whether batching is supported",
        cause="by their dims, some of its tensors have a batch and others have none",
        seen_in=("log",),
    ),
    network_rule(
        id="network-no-output",
        says=r"model configuration must contain at least one (?P<kind>input|output), none were specified",
        cause="it states no {kind}, and its backend cannot fill that in",
        fix="write its {kind}s into {model}/config.pbtxt",
        seen_in=FILES,
    ),
    network_rule(
        id="network-tensorrt-io",
        says=r"'(?P<tensor>[^']*)' (uses a linear IO format, but|is incorrectly specified as a shape tensor)",
        cause="{tensor!r} is no shape tensor or has a linear format in the plan, and config.pbtxt says otherwise",
        fix="remove is_shape_tensor and is_non_linear_format_io of it in {model}/config.pbtxt",
        seen_in=("log",),
    ),
    Rule(
        id="config-not-of-network",
        says=_DISAGREEMENT,
        cause="config.pbtxt and the model disagree: {words}",
        fix=EDIT,
        build="rewrite",
    ),
    Rule(
        id="warmup-shape",
        says=r"unexpected shape for input '(?P<tensor>[^']+)' for model '[^']*'\. "
        r"(?P<detail>Expected \S+, got [^.\s]+)",
        cause="a request of its warmup does not fit the input {tensor}: {detail}",
        fix=EDIT,
        build="rewrite",
    ),
)

BROKEN_RULES = (
    Rule(
        id="parameter-value",
        says=r"Invalid value for '(?P<name>\w+)': '(?P<value>[^']*)' for model instance",
        cause="the parameter {name} has the value {value!r}, which the backend does not know",
        fix=EDIT,
        build="rewrite",
        seen_in=FILES,
    ),
    Rule(
        id="config-rule",
        says=_BROKEN_RULE,
        cause="its config.pbtxt breaks a rule of Triton: {words}",
        fix=EDIT,
        build="rewrite",
    ),
)
