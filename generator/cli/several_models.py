"""Several models in one command: an error ends the model that it belongs to, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import typer

from generator.cli.console import report, say
from generator.errors import TrtgenError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.spec.model import ModelSpec

_T = TypeVar("_T")


def run_each(specs: Sequence[ModelSpec], run: Callable[[ModelSpec], _T]) -> dict[str, _T | TrtgenError]:
    """Call `run` for each model and print errors as they come; return what came of each, by name."""
    results: dict[str, _T | TrtgenError] = {}
    for spec in specs:
        try:
            results[spec.name] = run(spec)
        except TrtgenError as error:
            report(error)
            results[spec.name] = error
    return results


def end_with(results: dict[str, _T | TrtgenError]) -> None:
    """Say which of several models failed, each in one line, and exit with 1 where any did.

    Raises:
        typer.Exit: At least one failed.
    """
    failed = {name: result for name, result in results.items() if isinstance(result, TrtgenError)}
    if not failed:
        return
    if len(results) > 1:
        say(f"! {len(failed)} of {len(results)} models failed:")
        for name, error in failed.items():
            say(f"!   {name}: {error.message.splitlines()[0]}")
    raise typer.Exit(1)
