"""model.py and what it imports."""

from generator.rules.rule import EDIT, Rule

RULES = (
    Rule(
        id="python-import",
        says=r"No module named '(?P<module>(?P<package>[^'.]+)[^']*)'",
        cause="its Python code imports {module}, which is not installed for the Python that runs the server",
        fix="pip install {package}",
        seen_in=("python", "log"),
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
