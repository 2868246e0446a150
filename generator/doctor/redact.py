"""Keys and passwords are not printed: neither those in a log nor those in the parameters of a configuration."""

from __future__ import annotations

import re

# A tensor may well be called token_ids.
_NAMES = r"(?:secret|password|passwd|api_?key|access_?key|credential|(?:auth|access|api|session|refresh|hf|hub)_?token)"
_HIDDEN = "***"
# A key and what stands behind it, in environment variables, options and JSON; quotes may be escaped.
_STATED = re.compile(rf"({_NAMES}\w*\\?[\"']?\s*[:=]\s*\\?[\"']?)[^\s\"',}}\\]+", re.IGNORECASE)
# --http-restricted-api=GROUPS:KEY=VALUE and its like
_RESTRICTED = re.compile(r"(--\w+-restricted-\w+=[^=\s]+=)[^\s\"']+")
_AUTHORIZATION = re.compile(
    r"(authorization\\?[\"']?\s*[:=]\s*\\?[\"']?(?:bearer|basic|token)\s+)[^\s\"',}\\]+", re.IGNORECASE
)
_PARAMETER = re.compile(
    rf"key\s*:\s*[\"'][^\"']*{_NAMES}[^\"']*[\"'][^}}]*?string_value\s*:\s*[\"']([^\"'\n]+)", re.IGNORECASE
)


def redact(text: str, *, of: str = "") -> str:
    """Return the text with *** for what looks like a key or a password, there or in the configuration `of`."""
    for secret in {match[1] for match in _PARAMETER.finditer(of)}:
        text = text.replace(secret, _HIDDEN)
    for pattern in (_STATED, _AUTHORIZATION, _RESTRICTED):
        text = pattern.sub(rf"\1{_HIDDEN}", text)
    return text
