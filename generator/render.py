"""The one Jinja environment. Templates only format: no defaults, no arithmetic, no type maps in them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def template_root() -> Path:
    """Return the folder of templates: inside the installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "templates", package.parent / "templates"):
        if (candidate / "network" / "config.pbtxt.j2").is_file():
            return candidate
    msg = f"no templates beside {package}: the installation is damaged"
    raise FileNotFoundError(msg)


def render(name: str, **values: object) -> str:
    """Return the text of template `name`; a variable that it uses and nobody gave raises `jinja2.UndefinedError`."""
    return _environment().get_template(name).render(**values)


def read_static(name: str) -> bytes:
    """Return a file that is copied as it is, such as the preprocessing step."""
    return (template_root() / name).read_bytes()


def read_runtime() -> dict[str, bytes]:
    """Return the files of `generator.runtime`, and what it imports, as those of the package `trtgen_runtime`."""
    package = Path(__file__).resolve().parent
    paths = [package / "tensor.py", *sorted((package / "runtime").glob("*.py"))]
    files = {f"trtgen_runtime/{path.relative_to(package).as_posix()}": path.read_bytes() for path in paths}
    return {"trtgen_runtime/__init__.py": b"", **files}


def pbtxt_quote(value: object) -> str:
    r"""Return `value` as a protobuf text string. JSON's escapes are a subset of protobuf's for what we write.

    Non-ASCII text is written as it is (UTF-8), since protobuf has no surrogate pairs in its escapes.
    """
    return json.dumps(str(value), ensure_ascii=False)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_root()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - protobuf text and YAML, never HTML
    )
    environment.filters["pbtxt_quote"] = pbtxt_quote
    return environment
