"""The staged tree of one model: what is made for it, and what is taken over from the published versions."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from generator.artifact import Artifact
from generator.errors import RepositoryError
from generator.packages import made_by
from generator.repository import Layout, Record
from generator.repository.layout import numeric_versions
from generator.task import find_task

if TYPE_CHECKING:
    from pathlib import Path

    from generator.graph.model import OnnxModel
    from generator.spec.model import ModelSpec


def take_over(root: Path, staged: Path, old: Record, spec: ModelSpec, layout: Layout) -> Artifact:
    """Stage the published graph and plan as they are: only the configuration changed."""
    for name in layout.models:
        source, target = root / name / str(old.version), staged / name / str(old.version)
        shutil.copytree(source, target, copy_function=link)
    return read_published(staged, old, spec, layout)


def read_published(
    folder: Path, record: Record, spec: ModelSpec, layout: Layout, *, read_graph: bool = True
) -> Artifact:
    """Return the graph and plan of `layout` below `folder`, with what the record says about them.

    Without `read_graph` the graph is what the record says of it, which is all that is needed where it does not run.
    """
    from generator.graph.model import read_onnx
    from generator.plan.passport import read_passport
    from generator.spec.recipe import Recipe

    return Artifact(
        onnx=read_onnx(folder / layout.onnx) if read_graph else _describe_graph(folder / layout.onnx, record),
        head=find_task(spec.task).restore_head(record.head, spec, folder / layout.reference),
        recipe=Recipe.model_validate(record.recipe),
        labels=tuple(record.contract.get("labels", ())),  # not every task has classes
        description=record.description,
        assumed=record.assumed,
        repairs=tuple(record.repairs),
        passport=read_passport(folder / layout.plan) if (folder / layout.plan).is_file() else None,
    )


def _describe_graph(path: Path, record: Record) -> OnnxModel:
    """Return the graph as its record tells it, without outputs, whose shapes it does not tell."""
    from generator.graph.model import OnnxModel
    from generator.tensor import Tensor, from_triton

    return OnnxModel(
        path=path,
        input=Tensor(name=record.graph["input"], data_type=from_triton("TYPE_UINT8"), shape=(-1, *record.recipe.shape)),
        outputs=(),
        opset=record.graph["opset"],
        node_count=record.graph["nodes"],
        sha256=record.files[f"{path.parent.parent.name}/{path.parent.name}/{path.name}"],
        low_precisions=tuple(record.graph.get("low_precisions", ())),
    )


def link(source: str, target: str) -> None:
    """Give a file a second name, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:  # another file system, as in a dry run
        shutil.copy2(source, target)


def stage_files(spec: ModelSpec, staged: Path, layout: Layout, artifact: Artifact, inputs: dict[str, str]) -> None:
    """Write each member's configuration and files into the staged tree."""
    from generator.triton.check import check_members

    members = find_task(spec.task).make_members(spec, artifact)
    texts = {member.config.name: member.render() for member in members}
    check_members(texts, members, artifact)
    # An ensemble's version directory holds nothing of Triton's; object stores and git drop empty ones.
    facts = {"made_by": made_by(), "source": artifact.description, "artifact": inputs["artifact"]}
    described = {"version.json": (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()}
    for member in members:
        folder = staged / member.config.name
        _write(folder / "config.pbtxt", texts[member.config.name].encode())
        for name, content in member.files.items():
            _write(folder / name, content)
        for name, content in (member.version_files or ({} if folder.name == layout.network else described)).items():
            path = folder / str(layout.version) / name
            if not path.exists():  # a published version stays as it is
                _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def stage_listed_versions(spec: ModelSpec, root: Path, staged: Path, layout: Layout) -> Layout:
    """Stage the published versions that the spec lists, and return the layout of the one that will be served.

    Raises:
        RepositoryError: A listed version is neither published nor being built.
    """
    if not isinstance(spec.versions, list):
        return layout
    published = numeric_versions(root / layout.network)
    if missing := sorted(set(spec.versions) - {*published, layout.version}):
        msg = f"{spec.name}: versions lists {missing}, but there are {published} and this build makes {layout.version}"
        raise RepositoryError(msg, hint="list versions that exist, or leave versions out to serve the newest")
    for version in set(spec.versions) - {layout.version}:
        source = root / layout.network / str(version)
        shutil.copytree(source, staged / layout.network / str(version), copy_function=link, dirs_exist_ok=True)
    return Layout.of(spec, max(spec.versions))
