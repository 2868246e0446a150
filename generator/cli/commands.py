"""What is asked of typer beyond its own: ends by signals, -v and -q behind a command, a help without Python's types."""

from __future__ import annotations

import functools
import inspect
import math
import signal
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from generator.cli import console
from generator.cli.hints import remember_command
from generator.signals import EndedBySignal, ending_signals

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPES = {"int": "N", "float": "N", "str": "TEXT", "path": "PATH", "file": "FILE", "directory": "DIR"}

VerboseOption = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, help="Say what is under way; twice for details."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say errors only; results are printed all the same.")]


class Group(TyperGroup):
    """The program: a signal ends it with a word, and with the exit code that a shell gives."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with ending_signals():
                return super().invoke(ctx)
        except KeyboardInterrupt as end:  # here, since typer would leave with 130 and without a word
            number = end.number if isinstance(end, EndedBySignal) else signal.SIGINT
            console.fail("interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}")
            raise typer.Exit(128 + number) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help where no command is given."""
        if not args and not ctx.resilient_parsing:
            print(self.get_help(ctx), file=sys.stderr)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands without boxes: loading what draws them takes longer than all the rest."""
        self.rich_markup_mode = None
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its whole first sentence."""
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.help.partition("\n")[0]) for name, one in commands if one and one.help])


class Command(TyperCommand):
    """One command of the program."""

    def __init__(self, *args: Any, help: str = "", **options: Any) -> None:  # noqa: A002 - typer's name
        super().__init__(*args, help=_escape(help), **options)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options as the help shows them."""
        return [_in_plain_words(one, ctx) for one in super().get_params(ctx)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse infinity and NaN, which options without a highest value, and without any bound, would take."""
        left = super().parse_args(ctx, args)
        parameters: list[Any] = self.params
        for parameter in parameters:
            value = ctx.params.get(parameter.name)
            if isinstance(value, float) and not math.isfinite(value):
                msg = f"{value} was given, and a finite number was expected"
                raise typer.BadParameter(msg, ctx=ctx, param=parameter)
        return left


def _in_plain_words(parameter: Any, ctx: Any) -> Any:
    """Take Python's types out of the help (`<list[str]>`, `<bool>`), and take square brackets in it literally."""
    if not hasattr(parameter, "shown_type"):
        takes_none = parameter.param_type_name == "argument" or parameter.is_flag or parameter.count
        kind = parameter.display_type(ctx).strip("<>").removesuffix(" range")
        parameter.shown_type = None if takes_none else parameter.metavar or _TYPES.get(kind, kind)
        parameter.display_type_rich = lambda ctx: parameter.shown_type  # noqa: ARG005 - typer's name
        parameter._get_number_range_help_str = lambda: None  # noqa: SLF001 - the message says it, too
        parameter.help = _escape(parameter.help or "")
    return parameter


def _escape(text: str) -> str:
    """Return the text for rich, to which square brackets are markup."""
    return text.replace("[", r"\[")


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with -v and -q, which stand behind its name as well as before it."""

    @functools.wraps(command)
    def run(ctx: typer.Context, *args: Any, verbose: int, quiet: bool, **options: Any) -> None:
        console.set_verbosity(-1 if quiet else ctx.obj + verbose)
        remember_command(ctx)
        command(*args, **options)

    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(one.replace(kind=one.KEYWORD_ONLY) for one in inspect.signature(command, eval_str=True).parameters.values()),
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VerboseOption),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run
