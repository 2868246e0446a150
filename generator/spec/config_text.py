"""The spec's field `config`: what users add to a config.pbtxt in Triton's own words, and what is not theirs to set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generator.task import Role

_BUILT = "it follows from what was built and proved"
# Top-level fields of a model configuration, and why `config` does not take them.
REFUSED = {
    "name": "it follows from the model's name",
    **dict.fromkeys(("platform", "backend", "runtime", "default_model_filename", "cc_model_filenames"), _BUILT),
    **dict.fromkeys(("input", "output", "batch_input", "batch_output"), "tensors are read from the graph or the plan"),
    "ensemble_scheduling": _BUILT,
    "model_operations": _BUILT,
    "model_transaction_policy": "each request gets one response",
    "sequence_batching": "the model keeps nothing between requests",
    "max_batch_size": "set batch.max of the spec, which graph and plan are made for",
    "version_policy": "set versions of the spec",
    "model_repository_agents": "they load code into the server",
}
_MEMBERS_RUN = "an ensemble only passes requests on: give it to config of the member that runs"
REFUSED_IN_ENSEMBLE = dict.fromkeys(("dynamic_batching", "instance_group", "model_warmup"), _MEMBERS_RUN)


def parse_text(text: str | None) -> Any:
    """Return the text as Triton's ModelConfig.

    Raises:
        ValueError: It is none; with the line of the text.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text or "", model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        msg = f"line {error.GetLine()}: {str(error).partition(' : ')[2]}"
        raise ValueError(msg) from error


def given_fields(text: str | None) -> tuple[str, ...]:
    """Return the names of the top-level fields that a valid text states.

    Read from the text itself: the parsed message does not tell an empty list or a zero from a field left out.
    """
    if not text:
        return ()
    from google.protobuf import text_format

    names: dict[str, None] = {}
    tokens = text_format.Tokenizer(text.split("\n"))
    depth, before = 0, ""
    while not tokens.AtEnd():
        token = tokens.token
        depth += (token in ("{", "<", "[")) - (token in ("}", ">", "]"))
        if depth == 0 and before != ":" and token.isidentifier():
            names[token] = None
        before = token
        tokens.NextToken()
    return tuple(names)


def check_text(text: str, role: Role) -> None:
    """Refuse a text that cannot be put into the config.pbtxt of the member with this role.

    Raises:
        ValueError: Lists everything that is wrong with it.
    """
    if problems := list(_problems(text, role)):
        raise ValueError("; ".join(problems))


def _problems(text: str, role: Role) -> Iterable[str]:
    parsed = parse_text(text)
    refused = REFUSED if role.default_instances else {**REFUSED, **REFUSED_IN_ENSEMBLE}
    for name in given_fields(text):
        if name in refused:
            yield f"{name} cannot be given here: {refused[name]}"
    if parsed.optimization.HasField("execution_accelerators"):
        yield "optimization.execution_accelerators cannot be given here: set precision of the spec, which is proved"
    for key, reason in role.own_parameters.items():
        if key in parsed.parameters:
            yield f"parameters {key} cannot be given here: {reason}"
