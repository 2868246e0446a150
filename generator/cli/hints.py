"""A hint as the command line says it: its fields become options, its command a line to copy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from generator.cli.options import MODEL_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import typer

    from generator.errors import TrtgenError

# Fields and arguments of the library whose option is not named after their last word.
_PARAMETERS = {
    "batch.max": "max_batch",
    "folder": "output",
    "gpus": "cpu",
    "grpc_url": "url",
    "secrets_folder": "secrets",
    "log_path": "log",
    "models": "model",
    "plan.profiles": "profile",
    "requests_per_window": "measurement_requests",
    "timeout_s": "timeout",
    "require_all": "require",
}
_context: typer.Context | None = None  # the command under way; there is one at a time


def remember_command(context: typer.Context) -> None:
    """Keep the command that errors are of from now on."""
    global _context  # noqa: PLW0603 - there is one at a time
    _context = context


def describe_hint(error: TrtgenError) -> str:
    """Return the hint, with the options of this command that it is about, or with the command."""
    if _context is None:
        return error.hint
    if error.command:
        return f"{error.hint}: {write_command(error.command, error.fields)}"
    options = list(_options(_context.command, error.fields))
    if not options and _needs_file(error, _context):
        options = ["in a file: --spec FILE, which trtgen init writes"]
    return f"{error.hint} ({', '.join(options)})" if options else error.hint


def _needs_file(error: TrtgenError, context: Any) -> bool:
    """Say whether the hint is about a field of the spec that has no option, and no file was given."""
    from generator.spec.model import ModelSpec

    return context.params.get("spec", "") is None and not error.fields.keys().isdisjoint(ModelSpec.model_fields)


def write_command(command: Sequence[str], fields: Mapping[str, object]) -> str:
    """Return the command line; an export without a model is one of what the command under way was asked for."""
    assert _context is not None, "a command is under way"
    name, *arguments = command
    if name == "export" and not arguments:
        given = {key: value for key, value in _context.params.items() if key in (*MODEL_PARAMETERS, "images") and value}
        arguments = given.pop("names", [])
        fields = {**fields, **{key: value for key, value in given.items() if key not in fields}}
    group: Any = _context.find_root().command
    called = group.commands[name]
    if hasattr(called, "commands"):
        called = called.commands[arguments[0]]
    options = _options(called, fields, defaults=False)
    return " ".join(["trtgen", name, *map(shlex.quote, arguments), *options])


def _options(command: Any, fields: Mapping[str, object], *, defaults: bool = True) -> Iterator[str]:
    """Yield the option of each field that the command has one for, with its value; `defaults` are said, too."""
    parameters = {one.name: one for one in command.get_params(_context) if one.param_type_name == "option"}
    for field, value in fields.items():
        one = parameters.get(_PARAMETERS.get(field, field.rpartition(".")[2]))
        if one is None or (not defaults and value is not None and value == one.default):
            continue
        option = max(one.opts, key=len)
        if value is None or one.is_flag:
            yield f"{option} {one.shown_type or ''}".rstrip()
            continue
        for each in value if isinstance(value, list) else [value]:
            yield f"{option} {shlex.quote(str(each))}"
