"""Golden trees: the whole repository that a spec becomes, file by file.

Compared are the list of files, every text file byte by byte, and of trtgen.json and version.json what does not follow
from installed packages: no hashes, no versions, no folders of this machine. Pillow's version in config.pbtxt and the
folder of the spec are replaced by PILLOW and SPEC_FOLDER. The preprocessing step and the warmup image must be those of
templates/. Not compared are the bytes of model.onnx and reference.npz.

Write them anew, after a change that is meant, and look at the difference:

    python -m tests.test_golden
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import onnx
import pytest

from generator.graph.model import read_onnx
from generator.pipeline import BuildOptions, build_repository
from generator.render import read_static
from generator.server.embedded import EmbeddedServer
from generator.spec.file import load_spec
from tests.tiny_onnx import write_tiny_onnx

GOLDEN = Path(__file__).parent / "golden"
CASES = ("demo", "onnx_file")
TREE = "tree.txt"
README = Path(__file__).parent.parent / "model_repository" / "README.md"

# What follows from the spec and from trtgen alone.
_RECORD_KEYS = (
    "format", "name", "version", "command", "description", "spec", "recipe", "contract", "graph", "proof", "files",
)  # fmt: skip
_BINARY = {"model.onnx", "reference.npz", "image.bin"}
_COPIED = {"model.py"}


def build(case: str, folder: Path) -> Path:
    """Build the case's spec in `folder` and return the repository's root."""
    shutil.copytree(GOLDEN / case, folder, ignore=shutil.ignore_patterns("expected"))
    if case == "onnx_file":
        _widen(write_tiny_onnx(folder / "tiny.onnx", size=32, classes=3), width=48)
    root = folder / "model_repository"
    for spec in load_spec(folder / "models.yaml"):
        build_repository(spec, root, BuildOptions(verify=False))
    return root


def _widen(path: Path, *, width: int) -> None:
    """Make the images wider than high, so that swapped axes would show."""
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = width
    onnx.save(model, path)


def snapshot(root: Path, folder: Path) -> dict[str, str]:
    """Return what is compared, text by path; `folder` is where the spec lies."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    names = [path.relative_to(root).as_posix() for path in paths]
    texts = {TREE: "".join(f"{name}\n" for name in names)}
    for path, name in zip(paths, names, strict=True):
        if path.name == "config.pbtxt":
            texts[name] = re.sub(r'(key: "pillow" .*string_value: )"[0-9.]+"', r'\1"PILLOW"', path.read_text())
        elif path.suffix == ".json":
            texts[name] = _stable(path).replace(str(folder), "SPEC_FOLDER")
        elif path.name not in _BINARY | _COPIED:
            texts[name] = path.read_text()
    return texts


def _stable(path: Path) -> str:
    data: dict[str, Any] = json.loads(path.read_text())
    if path.name == "version.json":
        stable = {"source": data["source"]}
    else:
        stable = {key: data[key] for key in _RECORD_KEYS}
        stable["files"] = list(data["files"])
        del stable["graph"]["nodes"]  # the exporter's business
    return json.dumps(stable, indent=2, ensure_ascii=False) + "\n"


def read_expected(case: str) -> dict[str, str]:
    folder = GOLDEN / case / "expected"
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def update_readme(text: str) -> str:
    """Return the README of model_repository/ with the tree and the ensemble of the golden demo in its two blocks."""
    expected = read_expected("demo")
    for language, content in (("text", expected[TREE]), ("protobuf", expected["demo/config.pbtxt"])):
        before, fence, rest = text.partition(f"```{language}\n")
        assert fence, f"{README} has no block of {language}"
        text = before + fence + content + rest[rest.index("```") :]
    return text


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The case, the folder of its spec, and the repository built from it."""
    folder = tmp_path_factory.mktemp("golden") / request.param
    return request.param, folder, build(request.param, folder)


def test_the_tree_is_the_golden_one(built: tuple[str, Path, Path]) -> None:
    case, folder, root = built
    actual, expected = snapshot(root, folder), read_expected(case)
    assert actual.keys() == expected.keys()
    for path, text in expected.items():
        assert actual[path] == text, f"{case}/expected/{path}: if the change is meant, python -m tests.test_golden"


def test_what_is_copied_is_what_templates_hold(built: tuple[str, Path, Path]) -> None:
    _, _, root = built
    (step,) = root.glob("*_preprocess/1/model.py")
    (warmup,) = root.glob("*_preprocess/warmup/image.bin")
    sample = read_static("preprocess/warmup/sample.jpg")
    assert step.read_bytes() == read_static("preprocess/1/model.py")
    assert warmup.read_bytes() == struct.pack("<I", len(sample)) + sample


def test_the_golden_classifier_is_that_of_the_graph(built: tuple[str, Path, Path]) -> None:
    case, _, root = built
    (graph,) = root.glob("*_classifier/1/model.onnx")
    model = read_onnx(graph)
    (config,) = (text for path, text in read_expected(case).items() if path.endswith("_classifier/config.pbtxt"))
    for tensor in (model.input, model.output):
        dims = ", ".join(map(str, tensor.shape[1:]))
        assert f'name: "{tensor.name}"\n    data_type: {tensor.data_type.triton}\n    dims: [ {dims} ]' in config


def test_the_readme_of_the_model_repository_shows_the_golden_demo() -> None:
    text = README.read_text()
    assert update_readme(text) == text, "python -m tests.test_golden"


@pytest.mark.server
def test_the_readme_does_not_disturb_a_server_on_its_folder(demo: Path) -> None:
    shutil.copy(README, demo / README.name)
    with EmbeddedServer(demo) as server:
        assert {model.state for model in server.models()} == {"READY"}


def write_goldens() -> None:
    for case in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / case
            texts = snapshot(build(case, folder), folder)
        shutil.rmtree(GOLDEN / case / "expected", ignore_errors=True)
        for name, text in texts.items():
            path = GOLDEN / case / "expected" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path.relative_to(GOLDEN.parent.parent))
    README.write_text(update_readme(README.read_text()))


if __name__ == "__main__":
    write_goldens()
