"""model.py, read as syntax; nothing of it is run or imported."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from generator.doctor.finding import Finding
from generator.rules import BY_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from generator.doctor.repository import ConfiguredModel

_LARGEST_BYTES = 4 << 20
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


def check_python_model(model: ConfiguredModel) -> Iterator[Finding]:
    """Check the model.py of every version that is served."""
    for version in model.served_versions:
        path = model.path / str(version) / "model.py"
        if path.is_file():
            yield from _check_file(model, path)


def _check_file(model: ConfiguredModel, path: Path) -> Iterator[Finding]:
    def found(rule: str, line: int, **values: object) -> Finding:
        return Finding(rule=BY_ID[rule], model=model.name, path=path, line=line, values={"place": "", **values})

    try:
        with path.open("rb") as file:
            tree = ast.parse(file.read(_LARGEST_BYTES))
    except SyntaxError as error:
        line = error.lineno or 1
        yield found("python-raised", line, error=type(error).__name__, detail=f"{error.msg} (line {line})")
        return
    except (ValueError, RecursionError, MemoryError, OSError) as error:
        yield found("python-raised", 1, error=type(error).__name__, detail=str(error))
        return
    named = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "TritonPythonModel" not in named:
        # another module may bring it, under any name
        if not any(isinstance(node, ast.Import | ast.ImportFrom | ast.Assign | ast.Try | ast.If) for node in tree.body):
            yield found("python-no-class", 1)
        return
    for node in named["TritonPythonModel"].body:
        if isinstance(node, ast.FunctionDef) and node.name == "auto_complete_config":
            for rule, line, values in _check_completed(model.config, _read_completed(node)):
                yield found(rule, line, **values)


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
