"""The spec's field `config`: what users add to a config.pbtxt in Triton's own words, and what is not theirs to set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from generator.spec.recipe import IMAGENET

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["REFUSED", "REFUSED_IN_ENSEMBLE", "ConfigTexts", "given_fields", "parse_text"]

_BUILT = "it follows from what was built and proved"
_MEMBERS_RUN = "an ensemble only passes requests on: give it to config.classifier or config.preprocess"
# Top-level fields of a model configuration, and why `config` does not take them.
REFUSED = {
    "name": "it follows from the model's name",
    **dict.fromkeys(("platform", "backend", "runtime", "default_model_filename", "cc_model_filenames"), _BUILT),
    **dict.fromkeys(("input", "output", "batch_input", "batch_output"), "tensors are read from the graph or the plan"),
    "ensemble_scheduling": _BUILT,
    "model_operations": _BUILT,
    "model_transaction_policy": "each request gets one response",
    "sequence_batching": "a classifier keeps nothing between requests",
    "max_batch_size": "set batch.max of the spec, which graph and plan are made for",
    "version_policy": "set versions of the spec",
    "model_repository_agents": "they load code into the server",
}
REFUSED_IN_ENSEMBLE = dict.fromkeys(("dynamic_batching", "instance_group", "model_warmup"), _MEMBERS_RUN)
# The same for `parameters`, by member.
_REFUSED_PARAMETERS = {
    "preprocess": {
        **dict.fromkeys((*IMAGENET.parameters(), "pillow"), "it is part of the recipe that was proved"),
        "EXECUTION_ENV_PATH": "another Python would make other pixels than those that were proved",
    },
    "ensemble": {"negative_label": "it follows from the labels"},
}


class ConfigTexts(BaseModel):
    """What each member's config.pbtxt states beside or in place of trtgen's, as protobuf text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preprocess: str | None = Field(default=None, description="For `NAME_preprocess`.")
    classifier: str | None = Field(default=None, description="For `NAME_classifier`.")
    ensemble: str | None = Field(default=None, description="For `NAME`, the ensemble that clients call.")

    @field_validator("*")
    @classmethod
    def _is_for_users(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text and (problems := list(_problems(str(info.field_name), text))):
            raise ValueError("; ".join(problems))
        return text


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


def _problems(member: str, text: str) -> Iterable[str]:
    """Yield what keeps the text from being put into the member's config.pbtxt."""
    parsed = parse_text(text)
    refused = {**REFUSED, **REFUSED_IN_ENSEMBLE} if member == "ensemble" else REFUSED
    for name in given_fields(text):
        if name in refused:
            yield f"{name} cannot be given here: {refused[name]}"
    if parsed.optimization.HasField("execution_accelerators"):
        yield "optimization.execution_accelerators cannot be given here: set precision of the spec, which is proved"
    for key, reason in _REFUSED_PARAMETERS.get(member, {}).items():
        if key in parsed.parameters:
            yield f"parameters {key} cannot be given here: {reason}"
