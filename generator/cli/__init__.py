"""The command line: each command in its own file parses, calls the library and prints."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from generator import __version__
from generator.cli import console
from generator.cli.commands import Command, Group, QuietOption, VerboseOption, with_verbosity
from generator.errors import TrtgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order in which a newcomer needs them: command -> module and function of the same name.
_COMMANDS = {
    "init": "init",
    "show": "show",
    "build-repo": "build_repo",
    "serve": "serve",
    "harden": "harden",
    "reload": "reload",
    "verify": "verify",
    "merge": "merge",
    "canary": "canary",
    "list": "list_models",
    "remove": "remove",
    "classify-all": "classify_all",
    "detect-all": "detect_all",
    "perf": "perf",
    "tune": "tune",
    "export": "export",
    "check": "check",
    "build-plan": "build_plan",
    "classify-plan": "classify_plan",
    "detect-plan": "detect_plan",
    "monitor": "monitor",
    "doctor": "doctor",
    "inspect": "inspect",
    "bench": "bench",
}
# group -> its commands, each a function of the module named like the group, whose docstring is the group's help.
_GROUPS: dict[str, dict[str, str]] = {
    "release": {"push": "push", "list": "list_releases", "pull": "pull", "rollback": "rollback", "prune": "prune"},
    "deploy": {"kubernetes": "kubernetes", "kserve": "kserve"},
}
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

app = typer.Typer(
    name="trtgen",
    cls=Group,
    help="From the name of an image model to a Triton model repository that is proved to work.",
    epilog="Example: trtgen build-repo demo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"trtgen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    *,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print name and version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    ctx.obj = -1 if quiet else verbose
    console.set_verbosity(ctx.obj)


for _name, _module in _COMMANDS.items():
    _command = getattr(importlib.import_module(f"generator.cli.{_module}"), _module)
    app.command(_name, cls=Command)(with_verbosity(_command))
for _name, _functions in _GROUPS.items():
    _commands = importlib.import_module(f"generator.cli.{_name}")
    _group = typer.Typer(cls=Group, help=_commands.__doc__)
    for _name_in_group, _function in _functions.items():
        _group.command(_name_in_group, cls=Command)(with_verbosity(getattr(_commands, _function)))
    app.add_typer(_group, name=_name)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0, 1 (an error with a hint), 2 (usage) or 128 + N (signal N)."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have what the terminal's encoding does not
    try:
        code = _run(arguments)
        if sys.stdout is not None:  # which it is after `>&-`
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        code = 1
    except OSError as error:
        if error.errno not in _DISK_ERRORS or error.filename is not None:
            raise
        import tempfile  # here, since --help is to be fast

        hint = f"free disk space where the output goes, or in {tempfile.gettempdir()}"
        with contextlib.suppress(OSError):
            console.fail(f"nothing more can be written: {error.strerror}", hint=hint)
        code = 1
    _drop_unwritable()
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(list(arguments), prog_name="trtgen", standalone_mode=False)
    except TrtgenError as error:
        console.report(error)
        return 1
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        console.fail(error.format_message(), hint=f"{context.command_path if context else 'trtgen'} --help")
        return error.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 1
    return code if isinstance(code, int) else 0


def _drop_unwritable() -> None:
    """Let what cannot be written go nowhere: Python would try again as it ends, and complain."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):  # a stream of a test has no descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
