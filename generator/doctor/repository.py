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
    """One folder of a repository's root, whose configuration cannot be read where it is no ConfiguredModel."""

    path: Path
    entries: tuple[os.DirEntry[str], ...] = field(repr=False)
    fault: SyntaxFault | None = None
    config: Any | None = None

    @property
    def name(self) -> str:
        """The folder's name, by which Triton knows the model."""
        return self.path.name

    @property
    def config_path(self) -> Path:
        """Where its configuration is, or would be."""
        return self.path / CONFIG

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
class ConfiguredModel(ModelFolder):
    """A model whose configuration was read: Triton's ModelConfig, empty where there is no file (`text` is None)."""

    text: str | None
    config: Any

    @cached_property
    def positions(self) -> Positions:
        """The lines of the configuration's fields."""
        return find_positions(self.text or "")


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
    entries: tuple[os.DirEntry[str], ...] = ()
    try:
        with os.scandir(path) as scanned:
            entries = tuple(sorted(scanned, key=lambda entry: entry.name))
        if all(entry.name != CONFIG for entry in entries):
            return ConfiguredModel(path=path, entries=entries, text=None, config=_parse(""))
        text = _read_text(path / CONFIG)
    except OSError as error:
        return ModelFolder(path=path, entries=entries, fault=SyntaxFault(line=1, detail=error.strerror or str(error)))
    except ValueError as error:
        return ModelFolder(path=path, entries=entries, fault=SyntaxFault(line=1, detail=str(error)))
    config = _parse(text)
    if isinstance(config, SyntaxFault):
        return ModelFolder(path=path, entries=entries, fault=config)
    return ConfiguredModel(path=path, entries=entries, text=text, config=config)


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


def _parse(text: str) -> Any | SyntaxFault:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        detail = str(error).removeprefix(f"{error.GetLine()}:{error.GetColumn()} : ")
        return SyntaxFault(line=error.GetLine() or 1, detail=detail)
    except (RecursionError, UnicodeError) as error:
        return SyntaxFault(line=1, detail=str(error))
