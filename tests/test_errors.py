"""Every error says what to do, and docs/errors.md lists them all."""

from __future__ import annotations

from pathlib import Path

from generator import errors
from generator.error_docs import find_errors, render_page

ROOT = Path(__file__).parents[1]


def test_every_error_has_a_hint() -> None:
    found = find_errors()
    assert len(found) > 100
    assert [error for error in found if not error.hint] == []
    assert {error.kind for error in found} == set(errors.__all__) - {"TrtgenError", "near"}


def test_the_page_is_what_the_code_says() -> None:
    assert (ROOT / "docs/errors.md").read_text() == render_page(), "python -m generator.error_docs > docs/errors.md"


def test_an_error_keeps_what_it_was_given() -> None:
    error = errors.SpecError(["one", "two"], hint="edit")
    assert (str(error), error.problems, error.hint) == ("one\ntwo", ["one", "two"], "edit")
    missing = errors.MissingDependencyError("nvidia-pytriton", extra="server", why="it serves")
    assert missing.hint == "in trtgen's checkout: pip install -e '.[server]'"
    assert errors.ServerError("x", log_tail=["a"]).log_tail == ["a"]
