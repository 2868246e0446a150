"""model.py and what it imports."""

from functools import partial

from generator.rules.rule import EDIT, Rule

_code_rule = partial(Rule, fix="correct model.py", build="rewrite", seen_in=("python", "log"))

RULES = (
    _code_rule(
        id="python-config-property-missing",
        says=r"(?P<kind>input|output) (?:'(?P<tensor>[^']*)' )?in auto-complete-config function for model '[^']*' is "
        r"missing '(?P<field>\w+)' property",
        cause="auto_complete_config gives an {kind} without {field}: {tensor}",
    ),
    _code_rule(
        id="python-config-property-unknown",
        says=r"(?P<kind>input|output|model transaction)( property)? (?:'(?P<tensor>[^']*)' )?in auto-complete-config "
        r"function for model '[^']*' contains property other than (?P<known>.*?)\.?$",
        cause="auto_complete_config gives the {kind} {tensor} a property other than {known}",
    ),
    _code_rule(
        id="python-config-not-returned",
        says=r"auto_complete_config function in model '[^']*' must return a valid pb.ModelConfig object",
        cause="auto_complete_config does not return the configuration that it was given",
        fix="end it with `return auto_complete_model_config`",
    ),
    _code_rule(
        id="python-config-batch",
        says=r"configuration specified max_batch_size (?P<stated>\d+), but in auto-complete-config function for "
        r"model '[^']*' specified max_batch_size (?P<made>\d+)",
        cause="max_batch_size is {stated} in config.pbtxt and {made} in auto_complete_config",
        fix="remove one of them",
    ),
    _code_rule(
        id="python-config-scheduling",
        says=r"[Cc]onfiguration specified scheduling_choice as '(?P<stated>\w+)', but auto-complete-config function "
        r"for model '[^']*' tries to set scheduling_choice as '(?P<made>\w+)'",
        cause="config.pbtxt has {stated}, and auto_complete_config sets {made}",
        fix="remove one of them",
    ),
    _code_rule(
        id="python-config-decoupled",
        says=r"trying to change decoupled property in auto-complete-config for model '[^']*', which is already set to "
        r"'(?P<stated>\w+)'",
        cause="decoupled is {stated} in config.pbtxt, and auto_complete_config changes it",
        fix="remove one of them",
    ),
    _code_rule(
        id="python-config-data-type",
        says=r"configuration expects datatype (?P<stated>\w+) for (?P<kind>input|output) '(?P<tensor>[^']*)', model "
        r"provides (?P<made>\w+)",
        cause="{kind} {tensor!r} is {stated} in config.pbtxt and {made} in the model",
        fix=EDIT,
    ),
    _code_rule(
        id="python-config-dims",
        says=r"tensor '(?P<tensor>[^']*)': the model expects dims (?P<made>\[.*?\]) but the model configuration "
        r"specifies dims (?P<stated>\[.*?\])",
        cause="dims of {tensor!r} are {stated} in config.pbtxt and {made} in the model",
        fix=EDIT,
    ),
    _code_rule(
        id="python-no-class",
        says=r"has no attribute 'TritonPythonModel'",
        cause="model.py has no class TritonPythonModel",
    ),
    Rule(
        id="python-newer-than-ours",
        severity="note",
        cause="the Python {ours} that runs trtgen cannot read it ({detail}); that of the release is {theirs}",
        fix="run trtgen with Python {theirs} to have it checked",
        seen_in=("python",),
    ),
    Rule(
        id="python-import-absent",
        severity="warning",
        cause="it imports {module}, which is not part of tritonserver's image",
        fix="install it in an image of your own (pip install {package}), or name an environment in EXECUTION_ENV_PATH",
        seen_in=("python",),
    ),
    Rule(
        id="python-environment",
        severity="warning",
        cause="EXECUTION_ENV_PATH is {value}: {detail}",
        fix="write $$TRITON_MODEL_DIRECTORY/ and where it lies in the model's folder",
        seen_in=("files",),
    ),
    Rule(
        id="python-import",
        says=r"No module named '(?P<module>(?P<package>[^'.]+)[^']*)'",
        cause="its Python code imports {module}, which is not installed for the Python that runs the server",
        fix="pip install {package}",
    ),
    Rule(
        id="warmup-answered-error",
        says=r"failed to run warmup sample.*?: (Failed to process the request.*?, message: )?(?P<detail>.*)",
        cause="a request of its warmup was answered with an error: {detail}{place}",
        fix=EDIT,
        build="rewrite",
    ),
)

# after all others: what a model says itself
OWN_WORDS = (
    Rule(
        id="python-says",
        says=r"TritonModelException: (?P<detail>.*)",
        cause="{detail}",
        fix="correct that",
        build="rebuild",
    ),
    Rule(
        id="python-raised",
        says=r"^(?:Internal: )?(?P<error>\w+(?:Error|Exception)): (?P<detail>.*)",
        cause="its model.py raised {error}: {detail}{place}",
        fix="correct model.py",
        build="rebuild",
        seen_in=("python", "log"),
    ),
)

UNKNOWN = (Rule(id="unknown-words", cause="{words}", fix="read the lines around it in the log"),)
