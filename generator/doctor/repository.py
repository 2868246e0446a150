"""A model repository as it lies on the disk; nothing of it is run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from generator.doctor.positions import Positions, find_positions
from generator.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.pbtxt"
_LARGEST_CONFIG_BYTES = 16 << 20  # a configuration has thousands of bytes; protobuf's parser takes a second for a MB


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntaxFault:
    """Where and why a configuration cannot be read."""

    line: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """One folder of a repository's root; `config` is None where there is none, or none that can be read."""

    path: Path
    text: str | None
    config: Any | None
    fault: SyntaxFault | None
    entries: tuple[os.DirEntry[str], ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The folder's name, by which Triton knows the model."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """Where its configuration is, or would be."""
        return self.path / CONFIG

    @cached_property
    def positions(self) -> Positions:
        """The lines of the configuration's fields."""
        return find_positions(self.text or "")

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """The versions that Triton sees: folders whose names are numbers and do not begin with 0."""
        names = (entry.name for entry in self.entries if entry.is_dir())
        return tuple(sorted(int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0"))

    @property
    def served_versions(self) -> tuple[int, ...]:
        """The versions that its version_policy takes."""
        if self.config is None:
            return self.versions[-1:]
        policy = self.config.version_policy
        which = policy.WhichOneof("policy_choice")
        if which == "all":
            return self.versions
        if which == "specific":
            return tuple(version for version in self.versions if version in policy.specific.versions)
        count = policy.latest.num_versions if which == "latest" else 1
        return self.versions[-count:] if count else ()


@dataclass(frozen=True, kw_only=True)
class ModelRepository:
    """The folders of a root by their names, in order."""

    root: Path
    models: dict[str, ModelFolder]


def read_repository(root: Path) -> ModelRepository:
    """Return what lies in a model repository.

    Raises:
        SourceError: It is no folder, cannot be read, or holds nothing that could be a model.
    """
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
    except (OSError, ValueError) as error:
        msg = f"{root} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise SourceError(msg, hint="give the folder that tritonserver gets as --model-repository") from error
    if (root / CONFIG).is_file():
        msg = f"{root} is one model, it holds {CONFIG} itself"
        raise SourceError(msg, hint=f"give the folder above it: {root.resolve().parent}")
    if not folders:
        msg = f"{root} holds no folder, a folder for each model was expected"
        raise SourceError(msg, hint="give the folder that tritonserver gets as --model-repository")
    return ModelRepository(root=root, models={name: _read_model(root / name) for name in folders})


def _read_model(path: Path) -> ModelFolder:
    try:
        with os.scandir(path) as scanned:
            entries = tuple(sorted(scanned, key=lambda entry: entry.name))
    except OSError as error:
        fault = SyntaxFault(line=1, detail=f"the folder cannot be read: {error.strerror}")
        return ModelFolder(path=path, text=None, config=None, fault=fault, entries=())
    text: str | None = None
    config: Any = None
    fault: SyntaxFault | None = None
    if any(entry.name == CONFIG for entry in entries):
        try:
            text = _read_text(path / CONFIG)
            config, fault = _parse(text)
        except (OSError, ValueError) as error:
            fault = SyntaxFault(line=1, detail=getattr(error, "strerror", None) or str(error))
    return ModelFolder(path=path, text=text, config=config, fault=fault, entries=entries)


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > _LARGEST_CONFIG_BYTES:
        msg = f"{size:,} bytes, a model configuration has a few thousand"
        raise ValueError(msg)
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"byte {error.start} is no text (UTF-8 was expected)"
        raise ValueError(msg) from None


def _parse(text: str) -> tuple[Any | None, SyntaxFault | None]:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig()), None
    except text_format.ParseError as error:
        line = error.GetLine() or 1
        detail = str(error).removeprefix(f"{error.GetLine()}:{error.GetColumn()} : ")
        return None, SyntaxFault(line=line, detail=detail)
    except (RecursionError, UnicodeError) as error:
        return None, SyntaxFault(line=1, detail=str(error))
