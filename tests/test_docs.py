"""The documents: what they name exists; the limits are the code's."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

from generator.cli import app
from generator.graph.batches import ROW_TOLERANCE
from generator.tasks.classification.compare import LIMITS, ensemble_limit
from generator.tasks.classification.stages import _SERVED_TOLERANCE

ROOT = Path(__file__).parent.parent
PAGES = (
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "model_repository/README.md")),
    ROOT / "generator" / "assets" / "ATTRIBUTION.md",
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# What is taken for a file or folder of the project; others are Triton's (config.pbtxt), the user's, or made.
NAMED = ("compose.yaml", "constraints.txt", "Makefile", "LICENSE", ".ci/run")
FILE = re.compile(r"[\w./-]+(\.(py|md|toml|j2|jpg|safetensors)|/)|" + "|".join(map(re.escape, NAMED)))
PROGRAM_OPTIONS = ("--help", "--version", "--install-completion")  # of trtgen itself
PLACEHOLDERS = {"templates/backends/NAME/model.py"}
REPOSITORY_PAGE = ROOT / "model_repository" / "README.md"


def identify(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def find_spans(text: str) -> list[str]:
    """The code between single back quotes."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def find_code_lines(text: str) -> list[str]:
    """The lines of fenced and indented blocks."""
    fenced = [line for block in FENCE.findall(text) for line in block.splitlines()[1:-1]]
    return [*fenced, *(line.strip() for line in re.findall(r"^    .*$", text, re.MULTILINE))]


def list_options() -> dict[str, set[str]]:
    """The options of each command, of those of a group under both their names."""
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for name, group in list(commands.items()):
        commands |= {f"{name} {inner}": command for inner, command in getattr(group, "commands", {}).items()}
    return {
        name: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
        for name, command in commands.items()
    }


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_paths() -> set[str]:
    """Every file of the project and every folder, as git sees them now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [Path(name) for name in listed if (ROOT / name).exists()]
    return {path.as_posix() for path in paths} | {folder.as_posix() for path in paths for folder in path.parents}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != REPOSITORY_PAGE], ids=identify)
def test_every_file_named_exists(page: Path) -> None:
    paths = list_paths()
    for name in find_spans(page.read_text()):
        if FILE.fullmatch(name) and name not in PLACEHOLDERS:
            stripped = name.removesuffix("/")
            assert any(path == stripped or path.endswith(f"/{stripped}") for path in paths), name


def test_every_file_of_the_made_repository_exists() -> None:
    """The table of model_repository/README.md has a row for every file of the golden demo."""
    text = REPOSITORY_PAGE.read_text()
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    tree = (ROOT / "tests/golden/demo/expected/tree.txt").read_text().splitlines()
    for row in rows:
        assert any(row.rstrip("/") in (*Path(path).parts, "/".join(Path(path).parts[1:])) for path in tree), row
    for path in tree:
        parts = Path(path).parts
        assert {"/".join(parts[1:]), parts[-1]} & set(rows), path


# the page of rules quotes regular expressions
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "rules.md"], ids=identify)
def test_every_command_and_option_named_exists(page: Path) -> None:
    options = list_options()
    text = page.read_text()
    for span in (*find_spans(text), *find_code_lines(text)):
        for part in span.removeprefix("$ ").split(" -- "):
            words = part.partition("#")[0].split()
            if len(words) > 1 and words[0] == "trtgen" and words[1] not in PROGRAM_OPTIONS:
                name = " ".join(words[1:3]) if " ".join(words[1:3]) in options else words[1]
                assert name in options, span
                assert {word for word in words[2:] if word.startswith("-")} <= options[name], span
            elif words and words[0].startswith("--") and page != ROOT / "CONTRIBUTING.md":
                known = set().union(*options.values()) | {"--help", "--version", "--model-control-mode=none"}
                assert words[0] in known, span


def test_the_limits_of_the_gate_are_the_codes() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z ]+)` \| .*? \| (.*) \|$", text, re.MULTILINE))
    whole = ensemble_limit(LIMITS["fp32"])
    assert tuple(rows)[-3:] == ("served pixels", "served classifier", "served ensemble")
    assert f"within {ROW_TOLERANCE:.4f} " in rows["batches"]
    assert f"cosine {LIMITS['fp32'].cosine} " in rows["onnx"]
    assert LIMITS["fp32"].top1 == 1.0
    assert f"within {_SERVED_TOLERANCE:.4f} " in rows["served classifier"]
    assert (
        f"cosine {whole.cosine:.5f}, first class equal for {whole.top1:.1%}".replace("%", " %")
        in (rows["served ensemble"])
    )


def test_every_module_is_on_the_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    entries = {path.name for path in (ROOT / "generator").iterdir() if not path.name.startswith("__")}
    entries -= {"assets", "py.typed"}
    for name in entries:
        assert f"`{name}`" in text or f"`{name}/`" in text, name


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_nothing_is_left_open(page: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|TBD)\b", page.read_text())


def test_imports_point_down_the_order_of_the_page() -> None:
    """Also those inside functions; a room is a module or package of generator/. Types alone may point anywhere."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.search(r"Imports point down this order.*?: ([^.]*)\.", text, re.DOTALL)
    assert listed is not None
    layers = [re.findall(r"\w+", layer) for layer in listed[1].split(";")]
    rank = {room: number for number, layer in enumerate(layers) for room in layer}
    up = []
    for path in sorted((ROOT / "generator").rglob("*.py")):
        room = path.relative_to(ROOT / "generator").parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text())
        types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom) or id(node) in types:
                continue
            if not str(node.module).startswith("generator."):
                continue
            target = str(node.module).split(".")[1]
            if not room.startswith("__") and target != room and rank[room] <= rank[target]:
                up.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {node.module}")
    assert up == []
