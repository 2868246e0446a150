"""From tritonserver's log to plain words: which models failed, why, and what to do next. Pure functions of the text."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.errors import ServerError
from generator.rules.words import find_rule
from generator.server.launch import find_ensembles, name_rebuild

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TAIL_LINES = 15
# What a hint says of building the model again, and the fields for it.
_BUILDS: dict[str, tuple[str, dict[str, object]]] = {
    "rebuild": ("build it again", {}),
    "rewrite": ("build it again and discard the edits", {"discard_edits": True}),
}
_WORDS_LENGTH = 400
_SIGNALLED = 128  # the shell's convention: the exit code of a process that signal N ended is 128 + N


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One failure: `model` is empty when it concerns the server; cause and hint are None for words we do not know.

    `build` is the command of the hint and its fields, as TrtgenError takes them; empty where it has none.
    """

    model: str
    words: str
    cause: str | None
    hint: str | None
    build: dict[str, Any]

    def sentence(self) -> str:
        """Return who failed and why, for people."""
        why = self.cause or shorten(self.words)
        return f"{self.model}: {why}" if self.model else why


# `2026-11-22T12:31:28Z E 14638 model_lifecycle.cc:642] "..."` or `E1122 12:31:28.507750 14638 pb_stub.cc:366] ...`
_LINE = re.compile(r"^(?:\S+Z [IWEF] \d+|[IWEF]\d{4} \S+ +\d+) [\w./]+:\d+\] +(?P<message>.*)$")
# Tables, and what a machine without a GPU logs.
_NOISE = re.compile(
    r"^[|+]|pinned_memory_manager|cuda_memory_manager|CUDA driver version is insufficient|"
    r"CudaDriverHelper|initialize NVML|DCGM|Collecting CPU metrics|"
    r"server\.cc:\d+\] $"
)
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR .*?Error parsing text-format \S+: (\d+):(\d+): (?P<detail>.*)$")
# A version in the table that is written when all models are through, and the lines that go on with its status.
_ROW = re.compile(r"\| (?P<model>[^|]*?) +\| (?P<version>\d*|-) +\| (?P<status>.*?) *\|\s*$")
# Where the rest of a message is said about the model that it names.
_FAILURES = (
    re.compile(r"^failed to load '(?P<model>[^']+)' version \d+: (?P<words>.*)", re.DOTALL),
    re.compile(r"^Poll failed for model directory '(?P<model>[^']+)': (?P<words>.*)", re.DOTALL),
    re.compile(r"^failed to load model '(?P<model>[^']+)': (?P<words>.*)", re.DOTALL),
    re.compile(r"^(?P<words>version \d+ is specified for model '(?P<model>[^']+)'.*)", re.DOTALL),
    re.compile(r"^(?P<words>Invalid argument: (?:in )?ensemble '?(?P<model>[^' ,]+)'?.*)", re.DOTALL),
    re.compile(r"^(?P<words>Invalid argument: circular dependency between ensembles: (?P<model>\S+) ->.*)", re.DOTALL),
    re.compile(
        r"^Failed to preinitialize Python stub: (?P<words>.*?'\S*?/(?P<model>[^/]+)/\d+/model\.py'.*)", re.DOTALL
    ),
    re.compile(r"^(?P<model>)(?P<words>failed to start \w+ service: .*)", re.DOTALL),
)
_FAILED_REQUEST = re.compile(
    r"^Failed to process the request\(s\) for model '(?P<model>.*)_\d+_\d+', message: (?P<words>.*)", re.DOTALL
)
_LOADER = re.compile(r"^\S*triton_python_backend_stub: (?P<words>error while loading shared libraries: .*)$")
_FATAL_LINE = re.compile(r"^error: (?P<words>.*)$")
_LOADING = re.compile(r"\"loading: (?P<model>[^\"]+):\d+\"$")
_LOADED = re.compile(r"\"successfully loaded '(?P<model>[^']+)'\"$")
_MEMORY = re.compile(r"the memory of (?:GPU (?P<gpu>\d+)|a GPU) is exhausted")
# tritonserver goes on waiting, or serves without the port, after it said one of these.
_HUNG = ("Failed to preinitialize Python stub", "triton_python_backend_stub: error while loading", "failed to start ")


def find_failures(log: str, repository: Path) -> list[Finding]:
    """Return what failed according to the log of a server on `repository`: a finding per model, in the log's order."""
    words_of: dict[str, str] = {}
    for model, words, _ in read_failures(log):
        words_of.setdefault(model, words)
    ensembles = find_ensembles(repository) if words_of else {}
    findings = []
    for model, words in words_of.items():
        if (known := find_rule(words, model=model)) is None:
            findings.append(Finding(model=model, words=words, cause=None, hint=None, build={}))
            continue
        rule, values = known
        cause, hint = rule.cause.format_map(values), rule.fix.format_map(values)
        if found := _MEMORY.search(cause):
            cause = _complete_memory(cause, found, log, model)
        build: dict[str, Any] = {}
        if rule.build:
            more, fields = _BUILDS[rule.build]
            hint = f"{hint}, or {more}"
            build = name_rebuild(repository, ensembles.get(model, model), **fields)
        findings.append(Finding(model=model, words=words, cause=cause, hint=hint, build=build))
    return findings


def _complete_memory(cause: str, found: re.Match[str], log: str, model: str) -> str:
    """Name the full GPU where the words did not, and how many instances were loaded on it before.

    Triton gives the instances on each GPU the same names, and logs one line when it starts to load an instance; our
    backend logs one when it is loaded. Others do not: where none is logged, nothing is counted.
    """
    name = rf"({re.escape(model)}_\d+_\d+)"
    loaded = set(re.findall(rf"\"{name}: TensorRT \S+ on GPU (\d+)", log))
    gpu = found["gpu"]
    if gpu is None:
        started = set(re.findall(rf"ModelInstanceInitialize: {name} \(GPU device (\d+)\)", log))
        gpus = {gpu for _, gpu in started - loaded}
        if len(gpus) != 1:
            return cause
        gpu = gpus.pop()
        cause = cause.replace("the memory of a GPU", f"the memory of GPU {gpu}")
        if not loaded:
            return cause
    return f"{cause} ({sum(number == gpu for _, number in loaded)} of its instances were loaded)"


def has_hung(log: str) -> bool:
    """Tell whether the log shows a failure after which tritonserver neither gets ready nor ends."""
    return any(phrase in log for phrase in _HUNG)


def is_port_conflict(text: str) -> bool:
    """Tell whether one of the ports was taken."""
    return bool(re.search(r"failed to start \w+ service: .*already in use", text))


def is_silent_crash(code: int, log: str) -> bool:
    """Tell whether tritonserver crashed while it loaded models and before it named a reason.

    Release 24.10 does so in one of ten cases when a model answers a request of its warmup with an error, and on a busy
    machine in one of some fifty because a lock in the Python backend's shared memory fails.
    """
    lost_lock = code == _SIGNALLED + signal.SIGABRT and "boost::interprocess::lock_exception" in log
    return (lost_lock or code == _SIGNALLED + signal.SIGSEGV) and not any(read_failures(log))


def explain_end(code: int, log: str, *, log_path: Path, repository: Path, ready: bool) -> ServerError:
    """Return the error for a server that ended by itself with this exit code (128 + N: signal N)."""
    findings = [] if ready else find_failures(log, repository)
    if findings:
        # Seen when a request of a warmup fails while other models load.
        crash = f"\n(tritonserver then crashed: {_describe_code(code)})" if code > _SIGNALLED else ""
        return _describe(findings, log_path=log_path, note=crash)
    loading = "" if ready or code <= _SIGNALLED else f" while it loaded {', '.join(_find_waiting(log)) or 'no model'}"
    return ServerError(
        f"tritonserver {'stopped' if ready else 'did not start'}: {_describe_code(code)}{loading}",
        hint=f"read its log: {log_path}",
        log_tail=tail(log),
    )


def explain_timeout(log: str, *, log_path: Path, repository: Path, timeout_s: float) -> ServerError:
    """Return the error for a server that did not get ready in time, with the models that were still loading."""
    findings = find_failures(log, repository)
    if findings:
        return _describe(findings, log_path=log_path)
    waiting = _find_waiting(log)
    what = f"still loading {', '.join(waiting)}" if waiting else "no model was loading"
    return ServerError(
        f"tritonserver was not ready after {timeout_s:g} s: {what}",
        hint=f"read its log: {log_path}, or give the models more time to load",
        fields={"ready_timeout_s": None},
        log_tail=tail(log),
    )


def tail(log: str, *, lines: int = _TAIL_LINES) -> list[str]:
    """Return the last lines, without tables, blanks and words about an absent GPU."""
    kept = [shorten(line) for line in log.splitlines() if line.strip() and not _NOISE.search(line)]
    return kept[-lines:]


def shorten(text: str) -> str:
    """Return the text on one line of a readable length."""
    line = " ".join(text.split())
    return line if len(line) <= _WORDS_LENGTH else f"{line[:_WORDS_LENGTH]} ..."


def _describe(findings: list[Finding], *, log_path: Path, note: str = "") -> ServerError:
    """Return one error for all findings, in the order of the log."""
    known = next((finding for finding in findings if finding.hint), None)
    separator = " " if len(findings) == 1 else "\n  "
    return ServerError(
        separator.join(["tritonserver did not start:", *(finding.sentence() for finding in findings)]) + note,
        hint=known.hint if known and known.hint else f"read its log: {log_path}",
        **(known.build if known else {}),
        log_tail=[*(shorten(finding.words) for finding in findings), f"(log: {log_path})"],
    )


def read_failures(log: str) -> Iterator[tuple[str, str, int]]:
    """Yield (model, words, line) for every line that reports a failure.

    Then for every request of a warmup that raised: tritonserver may crash before it says that this is why a model
    failed. Last what the table of all models says, which is what is left of a log whose beginning was cut off.
    """
    syntax: list[str] = []
    requests: list[tuple[str, str, int]] = []
    for number, line in enumerate(log.splitlines(), 1):
        if match := _PROTOBUF.match(line):
            syntax.append(f"line {match[1]}, column {match[2]}: {match['detail']}")
        elif match := _LOADER.match(line):
            yield "", match["words"], number
        elif match := _LINE.match(line):
            message = _unquote(match["message"])
            if found := _FAILED_REQUEST.match(message):
                requests.append((found["model"], f"failed to run warmup sample: {found['words']}", number))
            elif found := next(filter(None, (pattern.match(message) for pattern in _FAILURES)), None):
                words = found["words"].strip()
                if "failed to read text proto" in words:
                    syntax = syntax or ["the log does not say where"]
                    words += f" ({'; '.join(dict.fromkeys(syntax))})"
                    syntax = []
                yield found["model"], words, number
        elif (match := _FATAL_LINE.match(line)) and "failed to load all models" not in line:
            yield "", match["words"], number
    yield from requests
    yield from _read_table(log)


def _read_table(log: str) -> Iterator[tuple[str, str, int]]:
    rows: list[tuple[str, list[str], int]] = []
    for number, line in enumerate(log.splitlines(), 1):
        if not (match := _ROW.search(line)):
            continue
        if match["model"]:
            rows.append((match["model"], [match["status"]], number))
        elif rows:
            rows[-1][1].append(match["status"])
    for model, lines, number in rows:
        state, _, words = "\n".join(lines).partition(": ")
        if state == "UNAVAILABLE" and words not in ("", "unloaded"):
            yield model, words, number


def _unquote(message: str) -> str:
    """Return the message of a log line, which Triton writes as a JSON string, or raw in its older form."""
    if message.startswith('"'):
        try:
            return str(json.loads(message))
        except ValueError:
            return message.strip('"').replace("\\n", "\n")
    return message


def find_loaded(log: str) -> set[str]:
    """Return the models that were loaded."""
    return {match["model"] for line in log.splitlines() if (match := _LOADED.search(line))}


def _find_waiting(log: str) -> list[str]:
    """Return the models that were loading and are not loaded."""
    loading = [match["model"] for line in log.splitlines() if (match := _LOADING.search(line))]
    loaded = find_loaded(log)
    return [model for model in loading if model not in loaded]


def _describe_code(code: int) -> str:
    if code < 0:
        return f"the process that watches over it was ended by {signal.Signals(-code).name}"
    try:
        name = signal.Signals(code - _SIGNALLED).name
    except ValueError:
        return f"it ended with exit code {code}"
    killed = " (the system does that for lack of memory: dmesg | tail)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{killed}"
