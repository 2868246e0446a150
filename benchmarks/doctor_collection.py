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

from generator.doctor.examine import examine
from generator.doctor.repository import read_repository
from generator.rules.words import find_rule

_BROKEN = (
    "autofill_noplatform", "noautofill_platform", "model_metrics/invalid_config", "special_cases",
    "custom_parameters/tensorrt/invalid",
)  # fmt: skip
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


def find_rules(folder: Path, release: str) -> set[str]:
    """Return the rules that are found in a copy of the folder: one model, or an ensemble with its members."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "models"
        members = [path for path in folder.iterdir() if (path / "config.pbtxt").is_file()]
        for source in members or [folder]:
            _copy(source, root / source.name)
        return {finding.rule.id for finding in examine(read_repository(root), release)}


def _copy(source: Path, target: Path) -> None:
    """Copy a model, as the collection's own script does: model.py in version 1, a version for all."""
    shutil.copytree(source, target)
    (target / "1").mkdir(exist_ok=True)
    if (target / "model.py").exists():
        (target / "model.py").rename(target / "1" / "model.py")
    if "/onnx/" in source.as_posix():
        _write_graph(target / "1" / "model.onnx")
    if (target / "partial.pbtxt").exists() and not (target / "config.pbtxt").exists():
        (target / "partial.pbtxt").rename(target / "config.pbtxt")


def _write_graph(path: Path) -> None:
    """Write what the collection's generator makes for these folders: two INT32 tensors [-1, 16] in and out."""
    import onnx
    from onnx import TensorProto, helper

    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16])

    nodes = [helper.make_node(kind, ["INPUT0", "INPUT1"], [f"OUTPUT{n}"]) for n, kind in enumerate(("Add", "Sub"))]
    names = [[info(f"{kind}{n}") for n in range(2)] for kind in ("INPUT", "OUTPUT")]
    model = helper.make_model(helper.make_graph(nodes, "graph", *names), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


def main() -> int:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="the folder qa of a checkout")
    parser.add_argument("--release", default="26.08")
    parser.add_argument("--misses", action="store_true", help="list them")
    options = parser.parse_args()
    found = explained = 0
    broken = find_broken(options.collection)
    for folder in broken:
        words = read_words(folder)
        known = [rule[0].id for text in words if (rule := find_rule(text, model=folder.name))]
        rules = find_rules(folder, options.release)
        found += bool(rules & set(known))
        explained += bool(known)
        if options.misses and not rules & set(known):
            place = folder.relative_to(options.collection / "L0_model_config")
            print(
                f"{place}: {words[0][:140] if words else ''}\n    said: {known or '-'}; files: {sorted(rules) or '-'}"
            )
    print(f"found from files: {found} of {len(broken)} ({found / len(broken):.0%})")
    print(f"explained from the log: {explained} of {len(broken)} ({explained / len(broken):.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
