"""Ensembles: their steps, and what connects them."""

from generator.rules.rule import CORE, Rule, config_rule

RULES = (
    Rule(
        id="ensemble-member-failed",
        says=r"depends on '(?P<member>[^']+)' which has no loaded version",
        cause="its member {member} did not load",
        fix="repair {member} first",
    ),
    Rule(
        id="ensemble-member-version",
        says=r"depends on '(?P<member>[^']+)' whose required version (?P<version>\d+) is not loaded",
        cause="it needs version {version} of {member}, which {member} does not load (0 is what no model_version means)",
        fix="write model_version: -1, the newest one, in {model}/config.pbtxt, or correct it",
        build="rebuild",
        seen_in=CORE,
    ),
    Rule(
        id="ensemble-members-absent",
        says=r"contains models that are not available or ambiguous: (?P<members>.*)",
        cause="its members are not in the repository: {members}",
        fix="copy them there, or correct model_name in {model}/config.pbtxt",
        build="rebuild",
        seen_in=CORE,
    ),
    config_rule(
        id="ensemble-circular",
        says=r"circular dependency between ensembles: (?P<path>.*)",
        cause="it is a member of itself: {path}",
    ),
    config_rule(
        id="ensemble-backend",
        says=r"Ensemble model '[^']*' must have platform type '\w+' and empty backend type",
        cause="it is an ensemble and names a backend",
        fix="remove backend from {model}/config.pbtxt",
    ),
    config_rule(
        id="ensemble-not-scheduled",
        says=r"ensemble scheduling must be set for ensemble",
        cause='it has platform: "ensemble" and no ensemble_scheduling',
        fix="write its steps into ensemble_scheduling, or another backend, in {model}/config.pbtxt",
    ),
    config_rule(
        id="ensemble-scheduled",
        says=r"ensemble scheduling cannot be set for model",
        cause='it has ensemble_scheduling, but not platform: "ensemble"',
        fix='write platform: "ensemble" in place of its backend or platform, in {model}/config.pbtxt',
    ),
    config_rule(
        id="ensemble-field",
        says=r"(?P<field>instance group|optimization|model_warmup) (should not|can not) be specified for ensemble",
        cause="an ensemble cannot have {field}",
        fix="remove it from {model}/config.pbtxt; it belongs to the members",
    ),
    config_rule(
        id="ensemble-step-incomplete",
        says=r"must specify '(?P<field>\w+)' (for|in step (?P<step>\d+) of) ensemble",
        cause="a step of the ensemble has no {field}, or there is no step",
    ),
    config_rule(
        id="ensemble-written-twice",
        says=r"ensemble tensor '(?P<tensor>[^']*)' can appear in an output map only once",
        cause="two steps write the tensor {tensor!r}",
    ),
    config_rule(
        id="ensemble-input-twice",
        says=r"input '(?P<tensor>[^']*)' in model '(?P<member>[^']*)' is mapped to multiple ensemble tensors",
        cause="input {tensor!r} of {member} is mapped to several tensors",
        seen_in=("log",),  # a map in a file has each key once
    ),
    config_rule(
        id="ensemble-unused",
        says=r"ensemble (?:input|tensor) '(?P<tensor>[^']*)' (?:for ensemble .* is not used|is unused in ensemble)",
        cause="no step reads the tensor {tensor!r}, and it is no output",
        fix="map it to an input of a step, or remove it, in {model}/config.pbtxt",
    ),
    config_rule(
        id="ensemble-unwritten",
        says=r"(?:output '(?P<tensor>[^']*)' for ensemble .* is not (?:written|used))",
        cause="no step writes the output {tensor!r}",
        fix="map an output of a step to it in {model}/config.pbtxt",
    ),
    config_rule(
        id="ensemble-input-unmapped",
        says=r"input (?P<tensor>\S+) in model (?P<member>\S+) is not mapped to any ensemble tensors",
        cause="input {tensor!r} of {member} gets no tensor",
        fix="add it to input_map of that step in {model}/config.pbtxt",
    ),
    config_rule(
        id="ensemble-map-unknown",
        says=r"is mapp(?:ing to|ed from) non-existing (?P<kind>input|output) (?P<tensor>\S+) in model (?P<member>\S+)",
        cause="a map of its steps names the {kind} {tensor!r}, which {member} does not have",
    ),
    config_rule(
        id="ensemble-batch",
        says=r"allows maximum batch size (?P<own>\d+), but it contains model (?P<member>\S+) which only allows maximum "
        r"batch size to be (?P<least>\d+)",
        cause="its max_batch_size is {own}, but its member {member} takes at most {least}",
        fix="write max_batch_size: {least} in {model}/config.pbtxt, or raise that of {member}",
    ),
    config_rule(
        id="ensemble-data-type",
        says=r"ensemble tensor (?P<tensor>\S+): inconsistent data type: (?P<one>\w+) is inferred from model "
        r"(?P<first>\S+) while (?P<other>\w+) is inferred from model (?P<second>\S+)",
        cause="the tensor {tensor!r} is {one} in {first} and {other} in {second}",
    ),
    config_rule(
        id="ensemble-shape",
        says=r"ensemble tensor (?P<tensor>\S+): inconsistent shape: (?P<one>\S+) is inferred from model (?P<first>\S+) "
        r"while (?P<other>\S+) is inferred from model (?P<second>\S+)",
        cause="the tensor {tensor!r} has the shape {one} in {first} and {other} in {second}",
    ),
    config_rule(
        id="ensemble-decoupled",
        says=r"step of model '(?P<member>[^']*)' receives inputs originated from different decoupled models",
        cause="the step {member} gets tensors of two decoupled models, which answer at different times",
    ),
    Rule(
        id="ensemble-queue-size",
        severity="warning",
        cause="{member}, a member of it, limits its queue (max_queue_size: {size}): until 26.02 an ensemble whose "
        "request is refused there never answers",
        fix="remove max_queue_size from {member}/config.pbtxt and set it for {model}, or serve it with 26.03 or later",
        seen_in=("files",),
        last="26.02",
    ),
)
