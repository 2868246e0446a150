"""Every error trtgen raises on purpose.

    TrtgenError                     what was found, where, what was expected; `hint` = what to do next
    |- SpecError                    models.yaml or the command line asks for something impossible
    |- SourceError                  the model cannot be obtained: unknown name, weights, checkpoint, ONNX file
    |- ExportError                  the model was obtained but does not become a valid dynamic ONNX graph
    |- PlanError                    a TensorRT plan cannot be built, read or loaded, or does not fit this host
    |- DeviceError                  no GPU, no driver, or its memory is exhausted
    |- ConfigError                  a rendered config.pbtxt breaks one of Triton's rules, or disagrees with the graph
    |- RepositoryError              the model repository cannot be read, staged, published or recovered
    |- ReleaseError                 a release or its store cannot be read or written, or is not what it says
    |- ServerError                  tritonserver does not start, does not get ready, or stops; keeps the log's tail
    |- DeployError                  manifests for a cluster cannot be made, or break a rule
    |- OutputError                  what a command makes cannot be written where it was asked to, or was edited there
    |- VerificationError            a stage of the gate ran and failed
    |- PerfError                    perf_analyzer is absent or its run failed
    |- BulkError                    bulk work cannot begin or go on: its source, its results or a worker
    `- MissingDependencyError       a package of an extra is not installed

Anything else that escapes is a bug and keeps its traceback. Only `generator.cli` prints.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class TrtgenError(Exception):
    """A failure the user can act on.

    Args:
        message: What was found, where, and what was expected.
        hint: The next edit or step, imperative, one line, in the words of the spec. How a command line says it is the
            CLI's, which makes it of the next two.
        fields: The fields of the spec, or arguments of the functions of `generator`, that the hint is about, each with
            the value that would do; None where the user must find it.
        command: The command that the hint is about and its arguments; `fields` are its options then. An export without
            a model is one of the model at hand.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str,
        fields: Mapping[str, object] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = dict(fields or {})
        self.command = tuple(command)

    @property
    def advice(self) -> dict[str, Any]:
        """What is to be done, for an error that takes the place of this one."""
        return {"hint": self.hint, "fields": self.fields, "command": self.command}


class SpecError(TrtgenError):
    """The spec is invalid; `problems` lists every one of them."""

    def __init__(self, problems: str | Sequence[str], *, hint: str, **advice: Any) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems), hint=hint, **advice)


class SourceError(TrtgenError):
    """The model named by the spec cannot be obtained."""


class ExportError(TrtgenError):
    """The model does not become a valid ONNX graph with a dynamic batch."""


class PlanError(TrtgenError):
    """A TensorRT plan cannot be built, read or loaded, or does not fit where it is to run."""


class DeviceError(TrtgenError):
    """There is no usable GPU, or its memory is exhausted."""


class ConfigError(TrtgenError):
    """A model configuration breaks a rule of Triton or disagrees with the graph it describes."""


class RepositoryError(TrtgenError):
    """The model repository cannot be read, staged, published or recovered."""


class ReleaseError(TrtgenError):
    """A release, a channel or the store that holds them cannot be read or written, or is not what it should be."""


class ServerError(TrtgenError):
    """tritonserver failed; `log_tail` holds its last lines."""

    def __init__(self, message: str, *, hint: str, log_tail: Sequence[str] = (), **advice: Any) -> None:
        super().__init__(message, hint=hint, **advice)
        self.log_tail = list(log_tail)


class DeployError(TrtgenError):
    """Manifests for a cluster cannot be made of what was given, or break a rule."""


class OutputError(TrtgenError):
    """What a command makes for its user cannot be written, or would overwrite what somebody edited."""


class VerificationError(TrtgenError):
    """A stage of the gate ran and failed."""


class PerfError(TrtgenError):
    """perf_analyzer is absent or did not measure."""


class BulkError(TrtgenError):
    """Bulk work cannot begin or go on; what is finished stays, and the same command goes on behind it."""


class MissingDependencyError(TrtgenError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, *, extra: str | None, why: str, install: str | None = None, **advice: Any) -> None:
        # not `pip install trtgen[...]`: on an index that name would be somebody else's
        if install is None:
            install = f"in trtgen's checkout: pip install -e '.[{extra}]'" if extra else f"pip install {package}"
        super().__init__(f"the package {package} is not installed: {why}", hint=install, **advice)
        self.package = package
        self.extra = extra


def near(word: str, valid: Iterable[str], *, most: int = 3) -> list[str]:
    """Return up to `most` of the valid words that look like `word`, best first."""
    by_lower = {name.lower(): name for name in valid}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=0.6)
    return [by_lower[match] for match in matches]
