"""How many of the broken configurations of NVIDIA's test collection does `trtgen doctor` find and explain?

    git clone --depth 1 https://github.com/triton-inference-server/server
    python -m benchmarks.doctor_collection server/qa --release 26.08 --misses

The collection (BSD-3) lies in qa/L0_model_config: folders with a broken model and, in `expected*`, the words that
tritonserver must say. Found: a rule whose pattern matches those words is among the findings from the files. Explained:
a rule knows the words as a log has them. False alarms: errors in configurations that the server is expected to load.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from generator.doctor.backends import FILES
from generator.doctor.examine import examine
from generator.doctor.prove import SERVER_RELEASE, Proof, prove
from generator.doctor.repository import read_repository
from generator.rules.words import find_rule

_BROKEN = (
    "autofill_noplatform", "noautofill_platform", "model_metrics/invalid_config", "special_cases",
    "custom_parameters/tensorrt/invalid",
)  # fmt: skip
_NOT_THERE = {"layout-no-model-file", "layout-named-file-missing", "ensemble-members-absent"}
# refused by the server, as that test expects
_ALSO_BROKEN = ("L0_response_cache/models/decoupled_cache/config.pbtxt",)
# with another platform put in by the test; what the folder itself says is in `expected`
_OTHER_SETTINGS = ("expected_ensemble", "expected_unsupported")


def find_broken(collection: Path) -> list[Path]:
    """Return the folders of broken models."""
    root = collection / "L0_model_config"
    folders = {path.parent for kind in _BROKEN for path in (root / kind).rglob("expected*")}
    return sorted(folders)


def read_words(folder: Path) -> list[str]:
    """Return the alternatives of what tritonserver says, without the escapes of regular expressions."""
    paths = [path for path in sorted(folder.glob("expected*")) if path.name not in _OTHER_SETTINGS]
    return [re.sub(r"\\(.)", r"\1", path.read_text().strip()) for path in paths]


def find_rules(folder: Path, collection: Path, release: str) -> set[str]:
    """Return the rules that are found in a copy of the folder: one model, or an ensemble with its members."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "models"
        members = [path for path in folder.iterdir() if (path / "config.pbtxt").is_file()]
        for source in members or [folder]:
            _copy(source, root, collection)
        return {finding.rule.id for finding in examine(read_repository(root), release)}


def find_false_alarms(collection: Path, release: str) -> tuple[int, list[str]]:
    """Return how many configurations are not meant to be broken, and the errors in them.

    Their weights and members are made by other scripts: what is absent for that reason is not counted.
    """
    broken = {path for folder in find_broken(collection) for path in folder.rglob("config.pbtxt")}
    broken |= {collection / path for path in _ALSO_BROKEN}
    alarms, seen = [], 0
    for path in sorted(collection.rglob("config.pbtxt")):
        if path in broken:
            continue
        seen += 1
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "models"
            _copy(path.parent, root, collection)
            alarms += [
                f"{path.relative_to(collection)}:{finding.line}: {finding.rule.id}: {finding.cause}"
                for finding in examine(read_repository(root), release)
                if finding.severity == "error" and finding.rule.id not in _NOT_THERE
            ]
    return seen, alarms


def prove_collection(collection: Path) -> Proof:
    """Let tritonserver judge every configuration that is one model, under other names."""
    broken = find_broken(collection)
    alone = [folder for folder in broken if not any((path / "config.pbtxt").is_file() for path in folder.iterdir())]
    others = {path.parent for path in collection.rglob("config.pbtxt")}
    others = {folder for folder in others if not any(one in (folder, *folder.parents) for one in broken)}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "models"
        root.mkdir()
        for number, folder in enumerate([*alone, *sorted(others)]):
            apart = Path(scratch) / f"copy{number}"
            _copy(folder, apart, collection)
            model = root / f"model{number}"
            next(apart.iterdir()).rename(model)
            text = _read_config(model)
            (model / "config.pbtxt").write_text(re.sub(r"^name:.*\n", "", text, flags=re.MULTILINE))
        return prove(read_repository(root))


def _copy(source: Path, root: Path, collection: Path) -> None:
    """Put a model into a repository as the collection's own scripts do: its name, its version, a file of its kind."""
    stated = re.search(r'^name: *"(.*)"', _read_config(source), re.MULTILINE)
    target = root / (stated[1] if stated and not _is_broken(source) else source.name)
    shutil.copytree(source, target)
    version = target / "1"
    version.mkdir(exist_ok=True)
    kind = source.parent.name
    if (partial := target / "partial.pbtxt").exists():  # what the script appends to another configuration
        metrics = collection / "python_models" / "async_execute_decouple" / "config.pbtxt"
        whole = metrics.read_text() if "model_metrics" in source.parts else 'platform: "tensorrt_plan"\n'
        (target / "config.pbtxt").write_text(f"{whole}\n{partial.read_text()}")
        (version / ("model.py" if "model_metrics" in source.parts else "model.plan")).touch()
    if (target / "model.py").exists():
        (target / "model.py").rename(version / "model.py")
    elif kind == "python":
        shutil.copy(collection / "python_models" / "auto_complete" / "model.py", version)
    elif kind == "onnx" and source.name != "cpu_instance":  # a graph of its own
        _write_graph(version / "model.onnx", batch=None if source.name == "bad_max_batch_size" else "batch")
    elif kind == "tensorrt":
        (version / FILES[kind]).write_bytes(b"ftrt" + bytes(20) + bytes((10, 9, 0, 34)))
    elif kind in ("openvino", "pytorch"):
        (version / FILES[kind]).touch()


def _read_config(folder: Path) -> str:
    path = folder / "config.pbtxt"
    return path.read_text() if path.is_file() else ""


def _is_broken(folder: Path) -> bool:
    return any(folder.parent.glob("expected*")) or any(folder.glob("expected*"))


def _write_graph(path: Path, *, batch: str | None) -> None:
    """Write what the collection's generator makes for these folders: two INT32 tensors of 16, in and out."""
    import onnx
    from onnx import TensorProto, helper

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT32, [batch, 16] if batch else [16])

    nodes = [helper.make_node(kind, ["INPUT0", "INPUT1"], [f"OUTPUT{n}"]) for n, kind in enumerate(("Add", "Sub"))]
    inputs, outputs = ([info(f"{kind}{n}") for n in range(2)] for kind in ("INPUT", "OUTPUT"))
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, str(path))


def main() -> int:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="the folder qa of a checkout")
    parser.add_argument("--release", default="26.08")
    parser.add_argument("--misses", action="store_true", help="list them")
    parser.add_argument("--prove", action="store_true", help="let a tritonserver judge them, too")
    options = parser.parse_args()
    found = explained = 0
    broken = find_broken(options.collection)
    for folder in broken:
        words = read_words(folder)
        known = [rule[0].id for text in words if (rule := find_rule(text, model=folder.name))]
        rules = find_rules(folder, options.collection, options.release)
        found += bool(rules & set(known))
        explained += bool(known)
        if options.misses and not rules & set(known):
            place = folder.relative_to(options.collection / "L0_model_config")
            print(
                f"{place}: {words[0][:140] if words else ''}\n    said: {known or '-'}; files: {sorted(rules) or '-'}"
            )
    print(f"found from files: {found} of {len(broken)} ({found / len(broken):.0%})")
    print(f"explained from the log: {explained} of {len(broken)} ({explained / len(broken):.0%})")
    seen, alarms = find_false_alarms(options.collection, options.release)
    print("\n".join(alarms))
    print(f"false alarms: {len(alarms)} in {seen} configurations")
    if options.prove:
        proof = prove_collection(options.collection)
        print("\n".join(f"{one.model}: {one.cause}" for one in proof.disagreements))
        agreed, judged = len(proof.agreed), len(proof.agreed) + len(proof.disagreements)
        others = len(proof.not_judged)
        print(f"agreed with tritonserver {SERVER_RELEASE}: {agreed} of {judged}; {others} not judged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
