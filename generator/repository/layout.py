"""Which file of one served model lies where, relative to the repository's root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from generator.errors import RepositoryError
from generator.plan.choice import PLAN_FILE
from generator.task import find_roles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from generator.repository.record import Record
    from generator.spec.model import ModelSpec

RECORD_FILE = "trtgen.json"
_VERSION = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The model directories of one served model, at one version.

    `members` maps each role's key to the model's name, in the order of publishing: clients see the last one last.
    `network` is the one with the graph and the plan; where there is one model only, it is that. `plan_file` is the
    plan's name; of several plans, any.
    """

    members: Mapping[str, str]
    network: str
    version: int
    plan_file: str = PLAN_FILE

    @classmethod
    def of(cls, spec: ModelSpec, version: int) -> Layout:
        """Return the layout of `spec` at `version`."""
        members = {role.key: spec.name + role.suffix for role in spec.roles}
        return cls(members=members, network=spec.network_name, version=version)

    @classmethod
    def of_record(cls, record: Record) -> Layout:
        """Return the layout of what `record` says was published.

        Raises:
            RepositoryError: Its task is not known here.
        """
        try:
            roles = find_roles(record.spec.get("task", "classification"), record.spec.get("layout"))
        except LookupError as error:
            msg = f"{record.name} cannot be read: {error}"
            raise RepositoryError(msg, hint="install the package that brings this task") from error
        (network,) = (record.name + role.suffix for role in roles if role.holds_network)
        members = {role.key: record.name + role.suffix for role in roles}
        plan_file = next(iter(record.plans), PLAN_FILE)
        return cls(members=members, network=network, version=record.version, plan_file=plan_file)

    @property
    def models(self) -> tuple[str, ...]:
        """The directories in the order of publishing."""
        return tuple(self.members.values())

    @property
    def entry(self) -> str:
        """What clients call."""
        return self.models[-1]

    @property
    def is_fused(self) -> bool:
        """Say whether one model takes images and holds the network, too."""
        return "fused" in self.members

    @property
    def entry_stage(self) -> str:
        """What the gate calls its stage for what clients call."""
        return "served model" if self.is_fused else "served ensemble"

    def find(self, key: str) -> str:
        """Return the model that does the work of the member with this key: that member, or a fused model."""
        return self.entry if self.is_fused else self.members[key]

    @property
    def record(self) -> PurePosixPath:
        """Trtgen's own record."""
        return PurePosixPath(self.entry, RECORD_FILE)

    @property
    def onnx(self) -> PurePosixPath:
        """The graph."""
        return PurePosixPath(self.network, str(self.version), "model.onnx")

    @property
    def plan(self) -> PurePosixPath:
        """The TensorRT plan, beside the graph that it was built from; its passport has the suffix .json."""
        return PurePosixPath(self.network, str(self.version), self.plan_file)

    @property
    def reference(self) -> PurePosixPath:
        """Images and the source's own answers, beside the graph."""
        return PurePosixPath(self.network, str(self.version), "reference.npz")

    def is_versioned(self, path: PurePosixPath) -> bool:
        """Say whether `path` lies in a version directory, which is never modified once published."""
        return len(path.parts) > 2 and _VERSION.fullmatch(path.parts[1]) is not None


def numeric_versions(model: Path) -> list[int]:
    """Return the version directories of one model, sorted; Triton ignores every other name, and so do we."""
    if not model.is_dir():
        return []
    return sorted(int(entry.name) for entry in model.iterdir() if entry.is_dir() and _VERSION.fullmatch(entry.name))


def next_version(root: Path, models: Iterable[str]) -> int:
    """Return the number above every version of these models."""
    return max((max(numeric_versions(root / name), default=0) for name in models), default=0) + 1
