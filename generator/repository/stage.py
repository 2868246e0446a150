"""The staged tree of one model: what is made for it, and what is taken over from the published versions."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import TYPE_CHECKING

from generator.artifact import Artifact
from generator.errors import RepositoryError
from generator.repository import Layout, Record
from generator.repository.layout import numeric_versions
from generator.versions import installed_packages, made_by

if TYPE_CHECKING:
    from pathlib import Path

    from generator.spec.model import ModelSpec

__all__ = ["read_published", "stage_files", "stage_listed_versions", "take_over"]


def take_over(root: Path, staged: Path, old: Record, layout: Layout) -> Artifact:
    """Stage the published graph and plan as they are: only the configuration changed."""
    for name in layout.models:
        source, target = root / name / str(old.version), staged / name / str(old.version)
        shutil.copytree(source, target, copy_function=_link)
    return read_published(staged, old, layout)


def read_published(folder: Path, record: Record, layout: Layout) -> Artifact:
    """Return the graph and plan of `layout` below `folder`, with what the record says about them."""
    from generator.graph.model import read_onnx
    from generator.plan.passport import read_passport
    from generator.spec.recipe import Recipe
    from generator.tasks.head import read_head

    return Artifact(
        onnx=read_onnx(folder / layout.onnx),
        head=read_head(record.head, record.spec["activation"], folder / layout.reference),
        recipe=Recipe.model_validate(record.recipe),
        labels=tuple(record.contract["labels"]),
        description=record.description,
        assumed=record.assumed,
        passport=read_passport(folder / layout.plan) if (folder / layout.plan).is_file() else None,
    )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, as in a dry run
        shutil.copy2(source, target)


def stage_files(spec: ModelSpec, staged: Path, layout: Layout, artifact: Artifact, inputs: dict[str, str]) -> None:
    """Write configurations, labels, the preprocessing step and warmup data into the staged tree."""
    from generator.render import read_static
    from generator.triton.check import check_configs
    from generator.triton.config import LABELS_FILE, WARMUP_FILE, make_model_configs, render_configs

    packages = installed_packages()
    configs = make_model_configs(spec, artifact, pillow_version=packages["pillow"])
    texts = render_configs(configs)
    check_configs(texts, artifact)
    for name, text in texts.items():
        _write(staged / name / "config.pbtxt", text.encode())
    labels = "".join(f"{label}\n" for label in artifact.output_labels).encode()
    for name in (layout.classifier, layout.ensemble):
        _write(staged / name / LABELS_FILE, labels)
    sample = read_static("preprocess/warmup/sample.jpg")
    # Triton's wire format for one element of a BYTES tensor: length, then content
    _write(staged / layout.preprocess / "warmup" / WARMUP_FILE, struct.pack("<I", len(sample)) + sample)
    step = staged / layout.preprocess / str(layout.version) / "model.py"
    if not step.exists():
        _write(step, read_static("preprocess/1/model.py"))
    # An ensemble's version directory holds nothing of Triton's; object stores and git drop empty ones.
    facts = staged / layout.ensemble / str(layout.version) / "version.json"
    if not facts.exists():
        content = {"made_by": made_by(), "source": artifact.description, "artifact": inputs["artifact"]}
        _write(facts, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


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
    published = numeric_versions(root / layout.classifier)
    if missing := sorted(set(spec.versions) - {*published, layout.version}):
        msg = f"{spec.name}: versions lists {missing}, but there are {published} and this build makes {layout.version}"
        raise RepositoryError(msg, hint="list versions that exist, or leave versions out to serve the newest")
    for version in set(spec.versions) - {layout.version}:
        source = root / layout.classifier / str(version)
        shutil.copytree(source, staged / layout.classifier / str(version), copy_function=_link, dirs_exist_ok=True)
    return Layout.of(spec, max(spec.versions))
