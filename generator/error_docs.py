"""docs/errors.md: every error with its cause and what to do, read from the code that raises it.

python -m generator.error_docs > docs/errors.md
"""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from generator import errors
from generator.graph import names as export_names

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RaisedError", "find_errors", "render_page"]

_PACKAGE = Path(__file__).resolve().parent
_CLASSES = {name: getattr(errors, name) for name in errors.__all__}
_HEAD = """\
<!-- Made by `python -m generator.error_docs > docs/errors.md`; do not edit. -->
# Errors

What trtgen refuses, in the words it uses, and what to do. `{...}` stands for what was found. Every error is printed
on stderr as `error:` and `hint:`, ends the command with exit code 1 and leaves nothing half-written; wrong usage ends
with 2, a signal with 128 and its number (Ctrl-C with 130). A traceback is a bug of trtgen.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedError:
    """One place in the code that makes an error: its class, its words, its hint."""

    kind: str
    message: str
    hint: str
    module: str
    line: int


def find_errors() -> list[RaisedError]:
    """Return every error that the package makes, in the order of modules and lines."""
    found: list[RaisedError] = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        module = path.relative_to(_PACKAGE).as_posix()
        if module not in ("errors.py", "error_docs.py") and not module.startswith("templates/"):
            found += _errors_of(ast.parse(path.read_text(encoding="utf-8")), module)
    return sorted(found, key=lambda error: (error.module, error.line))


def _errors_of(tree: ast.Module, module: str) -> Iterator[RaisedError]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        kind = call.func.id if isinstance(call.func, ast.Name) else ""
        if kind not in _CLASSES:
            continue
        around = [function for function in functions if function.lineno <= call.lineno <= (function.end_lineno or 0)]
        names = _assignments(around[-1] if around else tree, before=call.lineno)
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        if kind == "MissingDependencyError":
            package, why = _text(call.args[0], names), _text(keywords["why"], names)
            message, hint = f"the package {package} is not installed: {why}", "the pip install line that it prints"
        else:
            message = _text(call.args[0], names)
            hint = _text(keywords["hint"], names) if "hint" in keywords else ""
        yield RaisedError(kind=kind, message=message, hint=hint, module=module, line=call.lineno)


def _assignments(scope: ast.AST, *, before: int) -> dict[str, ast.expr]:
    """The last value that each name got in `scope` above the line."""
    nodes = [node for node in ast.walk(scope) if isinstance(node, ast.Assign) and node.lineno <= before]
    ordered = sorted(nodes, key=lambda node: node.lineno)
    return {target.id: node.value for node in ordered for target in node.targets if isinstance(target, ast.Name)}


def _text(node: ast.expr, names: dict[str, ast.expr], *, depth: int = 0) -> str:
    """The words of an expression, with `{name}` for what is only known when it runs."""
    text = f"{{{_name_of(node)}}}"
    if isinstance(node, ast.Constant):
        text = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(_text(part, names, depth=depth) for part in node.values)
    elif isinstance(node, ast.FormattedValue):
        text = f"{{{_name_of(node.value)}}}"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = _text(node.left, names, depth=depth) + _text(node.right, names, depth=depth)
    elif isinstance(node, ast.IfExp):
        text = " or: ".join(filter(None, (_text(part, names, depth=depth) for part in (node.body, node.orelse))))
    elif isinstance(node, ast.Name) and node.id in names and depth < 3:
        text = _text(names[node.id], names, depth=depth + 1)
    elif isinstance(node, ast.Name) and isinstance(getattr(export_names, node.id, None), str):
        text = str(getattr(export_names, node.id))
    return text


def _name_of(node: ast.expr) -> str:
    """A short name for a value: its last attribute or variable."""
    inner = [part for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute)]
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    words = [part.id if isinstance(part, ast.Name) else part.attr for part in inner]
    return next((word for word in words if word not in ("len", "str", "list", "sorted", "join", "path")), "...")


def render_page() -> str:
    """Return the text of docs/errors.md."""
    from generator.server.failure_rules import RULES

    parts = [_HEAD]
    found = find_errors()
    for name, kind in _CLASSES.items():
        mine = [error for error in found if error.kind == name]
        if not mine:
            continue
        parts.append(f"\n## {name}\n\n{(inspect.getdoc(kind) or '').splitlines()[0]}\n")
        parts.append("| what it says | what to do | where |\n|---|---|---|")
        parts += [f"| {_cell(error.message)} | {_cell(error.hint)} | `{error.module}` |" for error in mine]
    parts.append("\n## When tritonserver does not start\n\nWhat its log says, in plain words.\n")
    parts.append("| tritonserver's words (a regular expression) | cause | what to do |\n|---|---|---|")
    parts += [f"| `{_cell(words)}` | {_cell(cause)} | {_cell(hint)} |" for words, cause, hint in RULES]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render_page())
