"""Every name of TensorRT that our code uses exists in the versions that we support.

The real Python bindings are asked: their wheels (about 1 MB each) come from the package registry, the libraries of
several hundred MB that they link to are replaced by stubs, made here byte by byte. Nothing of TensorRT runs.

What our code uses is read from its syntax trees, so new uses are checked without being listed anywhere. Names behind
`trt.` are followed by themselves; for objects, `OBJECTS` says which variables hold what. That table cannot rot: each
row must be in use, what TensorRT's factories return must go into variables of the right row, and a method that only
TensorRT has may not be called on a variable that no row knows.

The wheels are pinned and exist for every Python that trtgen supports, so a missing one fails the test. It is skipped
only where no registry answers at all: there, nothing of this project could have been installed a moment before, which
is what CI does.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from generator.tensor import DATA_TYPES

ROOT = Path(__file__).parents[1]
SOURCES = ("generator/plan", "generator/runtime", "generator/measure", "templates/backends/tensorrt")
WHEELS = {
    "8.6": "tensorrt_bindings==8.6.1",
    "10.12": "tensorrt_cu12_bindings==10.12.0.36",
    "10.16": "tensorrt_cu13_bindings==10.16.1.11",
    "11.4": "tensorrt_cu13_bindings==11.4.0.106",
}


@dataclass(frozen=True)
class Row:
    """A variable or attribute of this name, below these paths, holds this class (or one of `ours`, if any)."""

    name: str
    holds: str
    below: tuple[str, ...] = ("",)
    ours: tuple[str, ...] = ()


_ADAPTER = ("generator/plan/versions.py",)
_GRAPHS = ("generator/plan", "generator/measure/inspect/parsed.py")
OBJECTS = (
    Row("builder", "Builder", _GRAPHS),
    Row("network", "INetworkDefinition", _GRAPHS),
    Row("parser", "OnnxParser", _GRAPHS),
    Row("error", "ParserError", _ADAPTER),
    Row("config", "IBuilderConfig", _ADAPTER),
    Row("profile", "IOptimizationProfile", _ADAPTER),
    Row("cache", "ITimingCache", _ADAPTER),
    Row("theirs", "ITimingCache", _ADAPTER),
    Row("tensor", "ITensor", _ADAPTER),
    Row("layer", "ILayer", (*_ADAPTER, "generator/plan/build.py", "generator/measure/inspect/parsed.py")),
    Row("runtime", "Runtime"),
    Row("engine", "ICudaEngine", ours=("Engine", "PlanEngine")),
    Row("context", "IExecutionContext"),
    Row("contexts[]", "IExecutionContext", ("generator/runtime", "generator/measure")),
    Row("inspector", "EngineInspector"),
)
# Modules of others with functions of the same names as TensorRT's methods.
OTHERS = {"shape_inference"}
# What a call on an object of a row returns.
FACTORIES = {
    ("trt", "Builder"): "Builder",
    ("trt", "OnnxParser"): "OnnxParser",
    ("trt", "Runtime"): "Runtime",
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("INetworkDefinition", "get_layer"): "ILayer",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("ILayer", "get_input"): "ITensor",
    ("ILayer", "get_output"): "ITensor",
    ("OnnxParser", "get_error"): "ParserError",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
}
# Names that some versions lack, and why our code may still use them.
LIMITED = {
    ("BuilderFlag", "FP16"): {"11.4"},  # a flag where networks are weakly typed: 8.6
    ("BuilderFlag", "INT8"): {"11.4"},
    ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"): {"11.4"},
    ("ILayer", "precision"): {"11.4"},
    ("ILayer", "set_output_type"): {"11.4"},
    ("IBuilderConfig", "progress_monitor"): {"8.6"},  # behind hasattr
    ("trt", "IProgressMonitor"): {"8.6"},
    ("ParserError", "node_name"): {"8.6"},  # behind hasattr
    ("ParserError", "node_operator"): {"8.6"},
    ("ICudaEngine", "device_memory_size"): {"11.4"},  # one of the two, behind hasattr
    ("ICudaEngine", "device_memory_size_v2"): {"8.6"},
}
# What the bindings take from TensorRT's libraries: its C functions, and constructors of the parsers that 8.6 had.
_SYMBOL = rb"(?<=\0)(?:(?:create|get|init)\w+(?:_INTERNAL|Registry|Version|Plugins)|_ZN\d+nv(?:uff|caffe)\w+)(?=\0)"
LIMITED_FLAGS = {"STRONGLY_TYPED": {"8.6"}, "EXPLICIT_BATCH": {"11.4"}}


# What our code uses


@dataclass(frozen=True)
class Use:
    owner: str  # "trt", or the name of a class
    name: str
    where: str


def source_files() -> list[Path]:
    return sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))


def last_name(node: ast.expr) -> str:
    """`self._engine` and `engine` are both "engine"; `self.contexts[0]` is "contexts[]"."""
    if isinstance(node, ast.Subscript):
        return f"{last_name(node.value)}[]"
    text = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return text.lstrip("_")


def row_of(name: str, path: Path) -> Row | None:
    place = path.relative_to(ROOT).as_posix()
    return next((row for row in OBJECTS if row.name == name and place.startswith(row.below)), None)


@functools.cache
def our_members(names: tuple[str, ...]) -> set[str]:
    """Methods and attributes of our own classes of these names."""
    found: set[str] = set()
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name in names:
                for inner in ast.walk(node):
                    if isinstance(inner, ast.FunctionDef):
                        found.add(inner.name)
                    elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
                        found.update([inner.attr] if inner.value.id == "self" else [])
                    elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                        found.add(inner.target.id)
    return found


def uses_in(path: Path) -> Iterator[Use]:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        receiver = last_name(node.value)
        if receiver == "trt":
            yield Use("trt", node.attr, where)
        elif isinstance(node.value, ast.Attribute) and last_name(node.value.value) == "trt":
            yield Use(node.value.attr, node.attr, where)
        elif (row := row_of(receiver, path)) and node.attr not in our_members(row.ours):
            yield Use(row.holds, node.attr, where)


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    return [use for path in source_files() for use in uses_in(path)]


# What the versions have

DUMP = """
import json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)  # no function of the stubs is ever called
sys.path.insert(0, sys.argv[1])
import tensorrt_bindings as trt
names = {name: sorted(dir(getattr(trt, name))) for name in dir(trt)}
json.dump({"trt": sorted(dir(trt)), **names}, sys.stdout)
"""


def write_stub_library(path: Path, like: bytes, symbols: list[bytes]) -> None:
    """Write a shared library with these symbols, for the processor of the ELF file that begins with `like`.

    One segment that holds the file, and a dynamic section with hash table (one bucket), symbol table, string table.
    """
    strings = b"\0" + b"".join(symbol + b"\0" for symbol in symbols)
    strings += bytes(-len(strings) % 8)
    count = len(symbols) + 1
    symbols_at = 64 + 2 * 56
    strings_at = symbols_at + 24 * count
    hashes_at = strings_at + len(strings)
    dynamic_at = hashes_at + 4 * (3 + count)
    dynamic_at += -dynamic_at % 8
    entries = [(4, hashes_at), (5, strings_at), (6, symbols_at), (10, len(strings)), (11, 24), (0, 0)]
    dynamic_bytes = 16 * len(entries)
    size = dynamic_at + dynamic_bytes
    content = like[:16] + struct.pack("<H", 3) + like[18:20]  # ident, ET_DYN, machine
    content += struct.pack("<IQQQIHHHHHH", 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    content += struct.pack("<IIQQQQQQ", 1, 6, 0, 0, 0, size, size, 0x1000)  # PT_LOAD
    content += struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, dynamic_at, dynamic_at, dynamic_bytes, dynamic_bytes, 8)
    content += bytes(24)
    for symbol in symbols:  # a global function, at an address that nobody calls
        content += struct.pack("<IBBHQQ", strings.index(b"\0" + symbol + b"\0") + 1, 0x12, 0, 1, symbols_at, 0)
    content += strings
    content += struct.pack(f"<II{1 + count}I", 1, count, 1, 0, *range(2, count), 0)
    content = content.ljust(dynamic_at, b"\0") + b"".join(struct.pack("<QQ", *entry) for entry in entries)
    assert len(content) == size
    path.write_bytes(content)


def fetch_wheel(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    run = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False, timeout=300
    )  # fmt: skip
    if run.returncode == 0:
        return next(folder.glob("*.whl"))
    if "(from versions: none)" in run.stderr or "Max retries exceeded" in run.stderr:
        pytest.skip(f"no package registry answers: {run.stderr.strip().splitlines()[-1]}")
    pytest.fail(run.stderr)


@pytest.fixture(scope="module", params=list(WHEELS))
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def names(version: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("bindings")
    with zipfile.ZipFile(fetch_wheel(WHEELS[version], folder)) as wheel:
        wheel.extractall(folder)
    (extension,) = folder.glob("tensorrt_bindings/tensorrt*.so")
    binary = extension.read_bytes()
    needed = set(re.findall(rb"(?<=\0)libnv\w+\.so\.\d+(?=\0)", binary))
    symbols = sorted(set(re.findall(_SYMBOL, binary)))
    assert needed
    assert b"getNvOnnxParserVersion" in symbols
    for name in needed:
        write_stub_library(folder / name.decode(), binary[:20], symbols)
    run = subprocess.run(
        [sys.executable, "-c", DUMP, str(folder)],
        env={"LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {name: set(members) for name, members in json.loads(run.stdout).items()}


# The tests


def test_every_name_exists(uses: list[Use], names: dict[str, set[str]], version: str) -> None:
    missing = [
        f"{use.where}: {use.owner}.{use.name}"
        for use in uses
        if version not in LIMITED.get((use.owner, use.name), set())
        and not (use.owner in names and use.name in names[use.owner])
        and not (use.owner not in names and version in LIMITED.get(("trt", use.owner), set()))
    ]
    assert not missing, f"TensorRT {version} lacks:\n" + "\n".join(missing)


def test_limits_are_true(names: dict[str, set[str]], version: str) -> None:
    for (owner, name), lacking in LIMITED.items():
        assert (name in names.get(owner, set())) == (version not in lacking), f"{owner}.{name} in {version}"
    for name, lacking in LIMITED_FLAGS.items():
        assert (name in names["NetworkDefinitionCreationFlag"]) == (version not in lacking)
    levels = {"NONE", "AMPERE_PLUS"} | ({"SAME_COMPUTE_CAPABILITY"} if version != "8.6" else set())
    assert levels <= names["HardwareCompatibilityLevel"]
    types = {row.tensorrt for row in DATA_TYPES if row.tensorrt}
    assert types - names["DataType"] <= ({"BF16", "INT64"} if version == "8.6" else set())


def test_objects_found_what_they_are_for(names: dict[str, set[str]]) -> None:
    """The bindings were really read: what is compared with is not empty."""
    assert len(names["trt"]) > 150
    assert "build_serialized_network" in names["Builder"]


def test_limits_are_in_use(uses: list[Use]) -> None:
    used = {(use.owner, use.name) for use in uses}
    assert not set(LIMITED) - used


def test_every_row_is_in_use(uses: list[Use]) -> None:
    files = source_files()
    for row in OBJECTS:
        receivers = {
            last_name(node)
            for path in files
            if path.relative_to(ROOT).as_posix().startswith(row.below)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.Name | ast.Subscript)
        }
        assert row.name in receivers, row
        assert row.holds in {use.owner for use in uses}, row
        assert not row.ours or our_members(row.ours), row


def test_what_factories_return_goes_into_known_variables() -> None:
    problems = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
                continue
            called = node.value.func
            if not isinstance(called, ast.Attribute):
                continue
            receiver = last_name(called.value)
            row = row_of(receiver, path)
            owner = "trt" if receiver == "trt" else row.holds if row else ""
            made = FACTORIES.get((owner, called.attr))
            for target in node.targets if made else []:
                known = row_of(last_name(target), path)
                if known is None or known.holds != made:
                    problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: {last_name(target)} holds a {made}")
    assert not problems, "declare in OBJECTS:\n" + "\n".join(problems)


def test_tensorrts_own_methods_are_called_on_known_variables(names: dict[str, set[str]]) -> None:
    classes = {row.holds for row in OBJECTS}
    trees = {path: ast.parse(path.read_text()) for path in source_files()}
    defined = {
        node.name if isinstance(node, ast.FunctionDef) else node.id
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }
    attributes = {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    own = {name for owner in classes for name in names.get(owner, ()) if re.fullmatch(r"[a-z]+(_\w+)+", name)}
    problems = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {last_name(node.value) or '?'}.{node.attr}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in own - defined - attributes
        and last_name(node.value) not in OTHERS
        and row_of(last_name(node.value), path) is None
        and not (isinstance(node.value, ast.Call) and last_name(node.value.func) in {name for _, name in FACTORIES})
    ]
    assert not problems, "declare in OBJECTS which variable this is:\n" + "\n".join(problems)
