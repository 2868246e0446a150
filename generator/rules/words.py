"""From tritonserver's words to the rule that they are about.

Sources of the patterns: logs of tritonserver 2.51 on repositories that are broken on purpose
(tests/test_server_failures.py), and, for the TensorRT backend and later releases, the texts in Triton's sources.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generator.rules import RULES

if TYPE_CHECKING:
    from generator.rules.rule import Rule

# Packages whose import name differs from the name that pip installs.
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "yaml": "pyyaml"}
_TRACEBACK = re.compile(r"\n+At:\n\s*\S*?(?P<file>[^/\s]+)\((?P<line>\d+)\): .*", re.DOTALL)
_STATUS = re.compile(
    r"^((Internal|Invalid argument|Unavailable|Not found|Unknown|Unsupported|TritonModelException): )+"
)


def find_rule(words: str, *, model: str) -> tuple[Rule, dict[str, str]] | None:
    """Return the rule that knows these words about one model, and the values of its templates; None: no rule does."""
    place = _TRACEBACK.search(words)
    plain = _TRACEBACK.sub("", words).strip().rstrip(";").strip()
    for rule in RULES:
        if rule.says is None or not (match := re.search(rule.says, plain, re.DOTALL)):
            continue
        values = {key: (value or "").strip() for key, value in match.groupdict().items()}
        values |= {"words": _STATUS.sub("", plain), "model": model}
        values["place"] = f" ({place['file']} line {place['line']})" if place else ""
        if package := values.get("package"):
            values["package"] = PACKAGES.get(package, package)
        return rule, values
    return None
