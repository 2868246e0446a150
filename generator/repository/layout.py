"""Which file of one served model lies where, relative to the repository's root."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from generator.repository.record import Record
    from generator.spec.model import ModelSpec

__all__ = ["RECORD_FILE", "Layout", "name_option", "numeric_versions"]

RECORD_FILE = "trtgen.json"
_DEFAULT_ROOT = Path("model_repository")
_VERSION = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The three model directories of one served model, at one version."""

    ensemble: str
    preprocess: str
    classifier: str
    version: int

    @classmethod
    def of(cls, spec: ModelSpec, version: int) -> Layout:
        """Return the layout of `spec` at `version`."""
        return cls(
            ensemble=spec.name, preprocess=spec.preprocess_name, classifier=spec.classifier_name, version=version
        )

    @classmethod
    def of_record(cls, record: Record) -> Layout:
        """Return the layout of what `record` says was published."""
        from generator.spec.model import MEMBERS

        preprocess, classifier = (record.name + suffix for suffix in MEMBERS)
        return cls(ensemble=record.name, preprocess=preprocess, classifier=classifier, version=record.version)

    @property
    def models(self) -> tuple[str, str, str]:
        """The directories in the order of publishing: clients see the ensemble last."""
        return self.preprocess, self.classifier, self.ensemble

    @property
    def record(self) -> PurePosixPath:
        """Trtgen's own record."""
        return PurePosixPath(self.ensemble, RECORD_FILE)

    @property
    def onnx(self) -> PurePosixPath:
        """The graph."""
        return PurePosixPath(self.classifier, str(self.version), "model.onnx")

    @property
    def plan(self) -> PurePosixPath:
        """The TensorRT plan, beside the graph that it was built from; its passport has the suffix .json."""
        return PurePosixPath(self.classifier, str(self.version), "model.plan")

    @property
    def reference(self) -> PurePosixPath:
        """Images and the source's own answers, beside the graph."""
        return PurePosixPath(self.classifier, str(self.version), "reference.npz")

    def is_versioned(self, path: PurePosixPath) -> bool:
        """Say whether `path` lies in a version directory, which is never modified once published."""
        return len(path.parts) > 2 and _VERSION.fullmatch(path.parts[1]) is not None


def name_option(root: Path) -> str:
    """Return the option that a command needs for this repository, a space before it; nothing for the default one."""
    return "" if root == _DEFAULT_ROOT else f" --repository {shlex.quote(str(root))}"


def numeric_versions(model: Path) -> list[int]:
    """Return the version directories of one model, sorted; Triton ignores every other name, and so do we."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if entry.is_dir() and _VERSION.fullmatch(entry.name))
