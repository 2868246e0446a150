"""A model repository as it lies on the disk; nothing of it is run."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from generator.doctor.positions import Positions, find_positions
from generator.doctor.redact import redact
from generator.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.pbtxt"
_GIVE = "give the folder that tritonserver gets as --model-repository"
_LARGEST_CONFIG_BYTES = 16 << 20  # a configuration has thousands of bytes; protobuf's parser takes a second for a MB


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntaxFault:
    """Why a configuration cannot be read, and where; `line` is None where it cannot be opened at all."""

    line: int | None
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
        names = (entry.name for entry in self.entries if is_folder(entry))
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
        SourceError: It is no folder, cannot be read, or holds nothing that could be a model; says what was meant.
    """
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if is_folder(entry))
    except (OSError, ValueError) as error:
        msg = f"{root} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise SourceError(msg, hint=_GIVE) from error
    if is_file(root / CONFIG) or (folders and all(name.isdigit() for name in folders)):
        what = f"it holds {CONFIG} itself" if is_file(root / CONFIG) else "its folders are versions"
        raise SourceError(f"{root} is one model: {what}", hint=f"give the folder above it: {root.resolve().parent}")
    if not folders:
        raise SourceError(f"{root} holds no folder, a folder for each model was expected", hint=_GIVE)
    models = {name: _read_model(root / name) for name in folders}
    deeper = [] if any(map(_is_model, models.values())) else [one.path for one in models.values() if _holds_models(one)]
    if deeper:
        msg = f"{root} holds no model: they are one level deeper"
        raise SourceError(msg, hint=f"give the folder that holds them: {deeper[0]}")
    return ModelRepository(root=root, models=models)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder, or a link to one; not one that leads in a circle or may not be followed."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Tell whether there is a file; False where that cannot be found out, which Path.is_file raises for."""
    return os.path.isfile(path)  # noqa: PTH113


def is_missing(path: Path) -> bool:
    """Tell whether nothing is there; False where it may not be looked at."""
    try:
        path.stat()
    except PermissionError:
        return False
    except (OSError, ValueError):  # such as a name that no file can have
        return True
    return False


def _is_model(model: ModelFolder) -> bool:
    """Tell whether a folder was meant to be a model; those of a project, beside its repository, are not."""
    return not isinstance(model, ConfiguredModel) or model.text is not None or bool(model.versions)


def _holds_models(model: ModelFolder) -> bool:
    """Tell whether a folder is a repository itself."""
    return any(is_file(model.path / entry.name / CONFIG) for entry in model.entries if is_folder(entry))


def _read_model(path: Path) -> ModelFolder:
    entries: tuple[os.DirEntry[str], ...] = ()
    try:
        with os.scandir(path) as scanned:
            entries = tuple(sorted(scanned, key=lambda entry: entry.name))
        if all(entry.name != CONFIG for entry in entries):
            return ConfiguredModel(path=path, entries=entries, text=None, config=_parse(""))
        text = _read_text(path / CONFIG)
    except OSError as error:
        return ModelFolder(
            path=path, entries=entries, fault=SyntaxFault(line=None, detail=error.strerror or str(error))
        )
    except ValueError as error:
        return ModelFolder(path=path, entries=entries, fault=SyntaxFault(line=1, detail=str(error)))
    config = _parse(text)
    if isinstance(config, SyntaxFault):
        return ModelFolder(path=path, entries=entries, fault=config)
    return ConfiguredModel(path=path, entries=entries, text=text, config=config)


def _read_text(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        msg = "it is not a regular file"
        raise ValueError(msg)
    if (size := status.st_size) > _LARGEST_CONFIG_BYTES:
        msg = f"{size:,} bytes, a model configuration has a few thousand"
        raise ValueError(msg)
    data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"it is no text: byte {error.start} is not UTF-8"
        raise ValueError(msg) from None


def _parse(text: str) -> Any | SyntaxFault:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        detail = redact(str(error).removeprefix(f"{error.GetLine()}:{error.GetColumn()} : "), of=text)
        return SyntaxFault(line=error.GetLine() or 1, detail=detail)
    except (RecursionError, UnicodeError) as error:
        return SyntaxFault(line=1, detail=str(error))
