"""Batches, priorities, queues, sequences, metrics and instances."""

from generator.rules.rule import Rule, config_rule

RULES = (
    config_rule(
        id="batch-negative",
        says=r"'max_batch_size' must be non-negative value",
        cause="max_batch_size is negative",
        fix="write 0 for a model without batches, or the largest batch, in {model}/config.pbtxt",
    ),
    config_rule(
        id="batch-preferred-not-positive",
        says=r"(?P<which>dynamic|sequence) batching preferred (batch )?size must be positive",
        cause="preferred_batch_size of {which} batching has a number below 1",
    ),
    config_rule(
        id="batch-preferred-too-large",
        says=r"(?P<which>dynamic|sequence) batching preferred (batch )?size must be <= max batch size",
        cause="preferred_batch_size of {which} batching is above max_batch_size",
    ),
    config_rule(
        id="priority-default",
        says=r"default priority level must be in range \[1, (?P<levels>\d+)\]",
        cause="default_priority_level is not between 1 and priority_levels, {levels}",
        fix="set default_priority_level in {model}/config.pbtxt",
    ),
    config_rule(
        id="priority-policy",
        says=r"priority queue policy must have priority level in range \[1, (?P<levels>\d+)\]",
        cause="priority_queue_policy has a level that is not between 1 and priority_levels, {levels}",
    ),
    config_rule(
        id="ordering-priorities",
        says=r"Only one priority level is allowed when 'preserve_ordering' is true",
        cause="preserve_ordering and several priority levels exclude each other",
    ),
    config_rule(
        id="ordering-delay",
        says=r"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true",
        cause="preserve_ordering and a queue policy with timeout_action DELAY exclude each other",
    ),
    config_rule(
        id="control-name-missing",
        says=r"sequence batching control tensor must have a name",
        cause="a control_input of sequence_batching has no name",
    ),
    config_rule(
        id="control-twice",
        says=r"sequence batching control tensor '(?P<tensor>[^']*)' is specified for multiple control kinds",
        cause="control_input {tensor!r} is named more than once",
    ),
    config_rule(
        id="control-kind-twice",
        says=r"sequence batching specifies multiple (?P<kind>\w+) tensors",
        cause="sequence_batching has several controls of the kind {kind}",
    ),
    config_rule(
        id="control-value",
        says=r"sequence batching (must specify either|must not specify either|specifies more than one from|"
        r"control '\w+' must have exactly 2 entries|control tensor must specify a)|unexpected data type for control",
        cause="a control of sequence_batching needs exactly one of int32_false_true, fp32_false_true and "
        "bool_false_true, with two entries; the one with the correlation ID needs a data_type instead",
    ),
    config_rule(
        id="batch-tensor-sources",
        says=r"batch (?P<which>input|output) kind '(?P<kind>\w+)' expects 1 source input, got (?P<count>\d+)",
        cause="batch_{which} of the kind {kind} has {count} source_input, one was expected",
    ),
    config_rule(
        id="batch-tensor-unknown",
        says=r"unknown (source input|target output) name '(?P<tensor>[^']*)'",
        cause="batch_input or batch_output names {tensor!r}, which is no tensor of the model",
    ),
    config_rule(
        id="batch-tensor-twice",
        says=r"target output name '(?P<tensor>[^']*)' can only be specified once",
        cause="batch_output names the target {tensor!r} more than once",
    ),
    config_rule(
        id="batch-tensor-type",
        says=r"batch input data type must be TYPE_INT32 or TYPE_FP32",
        cause="batch_input has a data_type other than TYPE_INT32 and TYPE_FP32",
    ),
    Rule(
        id="batch-tensor-backend",
        says=r"batch inputs and batch outputs are only supported for custom platform and TensorRT platform",
        cause="batch_input and batch_output are for TensorRT and custom backends alone",
        fix="remove them from {model}/config.pbtxt",
        build="rewrite",
    ),
    config_rule(
        id="metrics-incomplete",
        says=r"(metric control|metric identifier|histogram options) must specify (non-empty )?'(?P<field>\w+)'",
        cause="model_metrics lacks {field}",
        first="24.11",
    ),
    config_rule(
        id="cache-unsupported",
        says=r"Response Cache does not currently support model \S+ with (?P<what>.*?)\. Please",
        cause="response_cache does not work with {what}",
        fix="remove response_cache from {model}/config.pbtxt",
    ),
    config_rule(
        id="instance-cpu-with-gpus",
        says=r"has kind (?P<kind>KIND_CPU|KIND_MODEL) but specifies one or more GPU",
        cause="instance_group has {kind} and a list of gpus",
        fix="remove gpus, or write kind: KIND_GPU, in {model}/config.pbtxt",
    ),
    Rule(
        id="instance-gpu-unknown",
        says=r"specifies invalid or unsupported gpu id (?P<gpu>-?\d+)",
        cause="instance_group names GPU {gpu}, which is not there or too old for this release",
        fix="name a GPU that nvidia-smi -L shows, in {model}/config.pbtxt",
        build="rewrite",
        seen_in=("files", "host", "log"),
    ),
    config_rule(
        id="instance-profile",
        says=r"specifies profile field which is only supported|specifies invalid profile (?P<profile>\S+?)\. The field",
        cause="profile of instance_group is for TensorRT plans, and holds numbers from 0",
    ),
)
