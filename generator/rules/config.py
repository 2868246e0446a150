"""config.pbtxt against the network, and against Triton's own rules; ensembles."""

from generator.rules.layout import EDIT
from generator.rules.rule import Rule

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
# What it says of one that breaks a rule, those of ensembles first.
_BROKEN_RULE = (
    r"is not mapped to any ensemble tensors|for ensemble .* is not (used|written)|is unused in ensemble|"
    r"can appear in an output map only once|must specify '\w+' (for|in step)|"
    r"(should not|can not) be specified for ensemble|allows maximum batch size|inconsistent (data type|shape)|"
    r"is mapping to non-existing|is outside model directory|TensorRT backend supports only GPU device|"
    r"dynamic batching preferred size must be|default priority level must be|Only one priority level is allowed|"
    r"must specify 'dims'|require 3 dims|specifies profile field|unexpected 'platform' and 'backend' pair|"
    r"graph (lower bound )?spec expects|Response Cache does not|Supported values are|does not specify|"
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
        says=r"unexpected shape for input '(?P<tensor>[^']+)' for model '[^']*'\. (?P<detail>Expected \S+, got [^.\s]+)",
        cause="a request of its warmup does not fit the input {tensor}: {detail}",
        fix=EDIT,
        build="rewrite",
    ),
)

ENSEMBLES = (
    Rule(
        id="ensemble-members-absent",
        says=r"contains models that are not available or ambiguous: (?P<members>.*)",
        cause="its members are not in the repository: {members}",
        fix="copy them there, or correct model_name in {model}/config.pbtxt",
        build="rebuild",
        seen_in=("files", "log"),
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
