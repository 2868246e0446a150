"""model.py, read as syntax; nothing of it is run or imported."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.doctor.backends import find_model_files
from generator.doctor.finding import Finding, in_config
from generator.doctor.repository import is_missing
from generator.rules import BY_ID
from generator.rules.releases import find_release
from generator.rules.words import PACKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel

_LARGEST_BYTES = 4 << 20
# What Python 3.12 reads and older ones do not: quotes within an f-string, `type`, parameters of types.
_PERHAPS_NEWER = re.compile(r"f-string|unterminated|^\s*type \w|^\s*(?:class|(?:async )?def) \w+\[", re.MULTILINE)
_ENVIRONMENT, _OWN_FOLDER = "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY"
# What the image has for the Python backend: its own modules, and the packages that server's Dockerfile installs.
_OF_THE_IMAGE = {
    "triton_python_backend_utils", "c_python_backend_utils", "numpy", "tritonserver", "tritonfrontend",
    "pip", "setuptools", "wheel",
}  # fmt: skip
_NEEDED = ("name", "data_type", "dims")
_KNOWN = {"input": {*_NEEDED, "optional"}, "output": set(_NEEDED)}
_KNOWN_WORDS = {kind: ", ".join(f"'{name}'" for name in sorted(names)) for kind, names in _KNOWN.items()}
_SCHEDULING = {"set_dynamic_batching": "dynamic_batching", "set_sequence_batching": "sequence_batching"}


@dataclass(frozen=True, slots=True)
class _Completed:
    """What auto_complete_config sets, as far as its literals show: (kind, value, line) in the order of the calls."""

    calls: list[tuple[str, Any, int]] = field(default_factory=list)
    returns: bool = False
    line: int = 1


def check_python_model(model: ConfiguredModel, release: str) -> Iterator[Finding]:
    """Check the model.py of every version that is served."""
    environment = model.config.parameters[_ENVIRONMENT].string_value if _ENVIRONMENT in model.config.parameters else ""
    if environment and (detail := _find_environment_fault(model, environment)):
        place = model.positions.index(("parameters",), "key", _ENVIRONMENT)
        yield in_config(model, "python-environment", "parameters", place, value=environment, detail=detail)
    known = find_release(release)
    for path in find_model_files(model, "python"):
        tree = None
        for finding in _parse(model, path, known.python if known else None):
            if isinstance(finding, ast.Module):
                tree = finding
            else:
                yield finding
        if tree is not None:
            yield from _check_tree(model, path, tree)
            if not environment:
                yield from _check_imports(model, path, tree)


def _find_environment_fault(model: ConfiguredModel, value: str) -> str:
    if value.startswith(_OWN_FOLDER):
        path = model.path / value.removeprefix(_OWN_FOLDER).lstrip("/")
        return "" if not is_missing(path) else f"{path} does not exist"
    return "" if value.startswith("/") else "a relative path begins where the server was started"


def _parse(model: ConfiguredModel, path: Path, python: str | None) -> Iterator[Finding | ast.Module]:
    """Yield the syntax, or why there is none, by the rules of the release's Python as far as this one knows them."""
    ours = sys.version_info[:2]
    theirs = tuple(map(int, python.split("."))) if python else ours
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, such as of an escape in a string
            yield ast.parse(file.read(_LARGEST_BYTES), feature_version=theirs)  # type: ignore[arg-type]
    except SyntaxError as error:
        line = error.lineno or 1
        detail = f"{error.msg} (line {line})"
        if theirs > ours and _PERHAPS_NEWER.search(f"{error.msg}\n{error.text}"):
            own, other = (".".join(map(str, one)) for one in (ours, theirs))
            yield _found(model, path, "python-newer-than-ours", line, ours=own, theirs=other, detail=detail)
        else:
            yield _found(model, path, "python-raised", line, error=type(error).__name__, detail=detail)
    except (ValueError, RecursionError, MemoryError, OSError) as error:
        yield _found(model, path, "python-raised", 1, error=type(error).__name__, detail=str(error))


def _found(model: ConfiguredModel, path: Path, rule: str, line: int, **values: object) -> Finding:
    return Finding(rule=BY_ID[rule], model=model.name, path=path, line=line, values={"place": "", **values})


def _check_tree(model: ConfiguredModel, path: Path, tree: ast.Module) -> Iterator[Finding]:
    named = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "TritonPythonModel" not in named:
        # another module may bring it, under any name
        if not any(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Try | ast.If) for node in tree.body):
            yield _found(model, path, "python-no-class", 1)
        return
    for node in named["TritonPythonModel"].body:
        if isinstance(node, ast.FunctionDef) and node.name == "auto_complete_config":
            for rule, line, values in _check_completed(model.config, _read_completed(node)):
                yield _found(model, path, rule, line, **values)


def _check_imports(model: ConfiguredModel, path: Path, tree: ast.Module) -> Iterator[Finding]:
    """Find what is neither Python's, the image's, nor beside model.py; what is tried may be absent."""
    there = {*sys.stdlib_module_names, *_OF_THE_IMAGE, *(entry.stem for entry in path.parent.iterdir())}
    tried = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try | ast.If) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in tried:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top not in there:
                there.add(top)
                values = {"module": name, "package": PACKAGES.get(top, top)}
                yield _found(model, path, "python-import-absent", node.lineno, **values)


def _read_completed(function: ast.FunctionDef) -> _Completed:
    values: dict[str, Any] = {}
    calls: list[tuple[str, Any, int]] = []
    returns = False
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = _literal(node.value, {})
        elif isinstance(node, ast.Return) and node.value is not None:
            returns = returns or not (isinstance(node.value, ast.Constant) and node.value.value is None)
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            argument = _literal(node.args[0], values) if node.args else None
            calls.append((node.func.attr, argument, node.lineno))
    calls.sort(key=lambda call: call[2])
    return _Completed(calls=calls, returns=returns, line=function.lineno)


def _literal(node: ast.expr, values: dict[str, Any]) -> Any:
    """Return the value of a literal or of a variable that holds one; None where it is neither."""
    if isinstance(node, ast.Name):
        return values.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {one.arg: _literal(one.value, values) for one in node.keywords if one.arg}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _check_completed(config: Any, made: _Completed) -> Iterator[tuple[str, int, dict[str, object]]]:
    for name, value, line in made.calls:
        if name in ("add_input", "add_output") and isinstance(value, dict):
            yield from _check_tensor(config, name.removeprefix("add_"), value, line)
        elif name == "set_max_batch_size" and isinstance(value, int):
            if config.max_batch_size not in (0, value):
                yield "python-config-batch", line, {"stated": config.max_batch_size, "made": value}
        elif name in _SCHEDULING:
            stated = config.WhichOneof("scheduling_choice")
            if stated not in (None, _SCHEDULING[name]):
                yield "python-config-scheduling", line, {"stated": stated, "made": _SCHEDULING[name]}
        elif name == "set_model_transaction_policy" and isinstance(value, dict):
            yield from _check_policy(config, value, line)
    if not made.returns:
        yield "python-config-not-returned", made.line, {}


def _check_policy(config: Any, value: dict[str, Any], line: int) -> Iterator[tuple[str, int, dict[str, object]]]:
    if set(value) - {"decoupled"}:
        values: dict[str, object] = {"kind": "model transaction", "tensor": "policy", "known": "'decoupled'"}
        yield "python-config-property-unknown", line, values
    elif config.HasField("model_transaction_policy"):
        stated = config.model_transaction_policy.decoupled
        if stated != value.get("decoupled"):
            yield "python-config-decoupled", line, {"stated": stated}


def _check_tensor(
    config: Any, kind: str, value: dict[str, Any], line: int
) -> Iterator[tuple[str, int, dict[str, object]]]:
    tensor = value.get("name", "")
    if set(value) - _KNOWN[kind]:
        yield "python-config-property-unknown", line, {"kind": kind, "tensor": tensor, "known": _KNOWN_WORDS[kind]}
    for missing in (name for name in _NEEDED if name not in value):
        yield "python-config-property-missing", line, {"kind": kind, "tensor": tensor, "field": missing}
    stated = next((one for one in getattr(config, kind) if one.name == tensor), None)
    if stated is None:
        return
    types = stated.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    name = types[stated.data_type].name
    if stated.data_type and value.get("data_type") not in (None, name):
        values = {"kind": kind, "tensor": tensor, "stated": name, "made": value["data_type"]}
        yield "python-config-data-type", line, values
    if stated.dims and isinstance(value.get("dims"), list) and list(stated.dims) != value["dims"]:
        yield "python-config-dims", line, {"tensor": tensor, "stated": list(stated.dims), "made": value["dims"]}
