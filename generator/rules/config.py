"""config.pbtxt against the network, and against rules of Triton that have no row of their own."""

from generator.rules.rule import EDIT, Rule

# What Triton says of a config.pbtxt that is not that of the graph or plan.
_DISAGREEMENT = (
    r"unexpected datatype TYPE_\w+ for inference|"
    r"unexpected inference (input|output) '|expected configuration for (input|output)|"
    r"configuration expects \d+ (input|output)s|is missing from the configuration|"
    r"the (model|graph) (expects|has) \d+ dimensions|the graph has shape|"
    r"model configuration specified invalid shape|"
    r"invalid profile -?\d+|failed to find any Optimization Profile|whether batching is supported|"
    r"engine only supports max-batch"
)
# What it says of one that breaks a rule that has no row of its own.
_BROKEN_RULE = (
    r"is outside model directory|TensorRT backend supports only GPU device|"
    r"graph (lower bound )?spec expects|Supported values are|does not specify|"
    r"Invalid stub name|Incorrect value for FORCE_CPU_ONLY"
)

AGAINST_NETWORK = (
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
        id="config-rule",
        says=_BROKEN_RULE,
        cause="its config.pbtxt breaks a rule of Triton: {words}",
        fix=EDIT,
        build="rewrite",
    ),
)
