"""The command line: each command in its own file parses, calls the library and prints."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated

import typer

from generator import __version__
from generator.cli import console
from generator.errors import TrtgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order in which a newcomer needs them: command -> module and function of the same name.
_COMMANDS = {
    "init": "init",
    "show": "show",
    "build-repo": "build_repo",
    "serve": "serve",
    "verify": "verify",
    "list": "list_models",
    "remove": "remove",
    "perf": "perf",
    "export": "export",
    "check": "check",
    "build-plan": "build_plan",
    "classify-plan": "classify_plan",
    "inspect": "inspect",
    "bench": "bench",
}

app = typer.Typer(
    name="trtgen",
    help="From the name of an image model to a Triton model repository that is proved to work.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for details.")] = 0,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    console.install_logging(verbose)


for _name, _module in _COMMANDS.items():
    app.command(_name)(getattr(importlib.import_module(f"generator.cli.{_module}"), _module))


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 1 (an error with a hint), 2 (usage) or 130 (Ctrl-C)."""
    try:
        app(list(arguments), prog_name="trtgen")
    except TrtgenError as error:
        console.report(error)
        return 1
    except KeyboardInterrupt:
        console.say("interrupted")
        return 130
    except BrokenPipeError:
        return 1
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    return 0
