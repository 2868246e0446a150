"""Errors: what they keep, that their hints are in no command line's words, and that docs/errors.md has each."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main

from generator import errors
from generator.cli import app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errors.md"
CLASSES = sorted(name for name in vars(errors) if name.endswith("Error"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {option for command in COMMANDS.values() for one in command.params for option in one.opts if "--" in option}
SAID = re.compile(rf"\btrtgen ({'|'.join(COMMANDS)})\b|(?<![\w-])({'|'.join(sorted(OPTIONS))})\b(?![-=])")
# What is no hint, but stands in trtgen.json, whose words stay.
ALLOWED = {
    "pipeline.py": ("trtgen build-repo --spec {}/{} --repository {}",),
    "repository/merge.py": ("trtgen merge {} --output {}",),
}
# What a record says of what it takes on trust.
MEASURES = "--labelled DIR measures it"
PAGES = ("cli/",)  # where the command line's words are at home


def read_texts(path: Path) -> list[tuple[int, str]]:
    """Return line and words of the texts of a module: those with a blank, `{}` for what is put in.

    Not docstrings, nor what begins with #: comments of files that are made.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            texts.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append((node.lineno, node.value))
    return [(line, text) for line, text in texts if " " in text and not text.startswith("#")]


def test_the_library_says_no_command_line_and_no_option() -> None:
    found = []
    for path in sorted((ROOT / "generator").rglob("*.py")):
        module = path.relative_to(ROOT / "generator").as_posix()
        if module.startswith(PAGES):
            continue
        texts = [
            (line, text)
            for line, text in read_texts(path)
            if text not in ALLOWED.get(module, ()) and not (module.startswith("tasks/") and text.endswith(MEASURES))
        ]
        found += [f"{module}:{line}: {text}" for line, text in texts if SAID.search(text)]
    assert found == []


def test_an_error_keeps_what_it_was_given() -> None:
    error = errors.SpecError(["one", "two"], hint="edit")
    assert (str(error), error.problems, error.hint) == ("one\ntwo", ["one", "two"], "edit")
    missing = errors.MissingDependencyError("nvidia-pytriton", extra="server", why="it serves")
    assert missing.hint == "in trtgen's checkout: pip install -e '.[server]'"
    failed = errors.ServerError("x", hint="y", log_tail=["a"], fields={"log_path": None}, command=["serve"])
    assert (failed.log_tail, failed.fields, failed.command) == (["a"], {"log_path": None}, ("serve",))
    again = errors.PlanError("z", **failed.advice)
    assert (again.hint, again.fields, again.command) == ("y", {"log_path": None}, ("serve",))


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"MissingDependencyError"}))
def test_every_error_has_a_hint(name: str) -> None:
    with pytest.raises(TypeError, match="hint"):
        getattr(errors, name)("x")


def test_every_class_is_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert sorted([*rows, "TrtgenError"]) == CLASSES
