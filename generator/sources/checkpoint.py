"""The user's checkpoint: a state dict for an architecture of the registry. Nothing in the file is executed."""

from __future__ import annotations

import pickle
import struct
import warnings
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["load_state_dict"]

# Where training scripts put the state dict, and what wrappers put before its names.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.")
# What torch.load raises over damaged files, besides its own errors.
_TORCH_SLIPS = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError,
                ValueError, struct.error)  # fmt: skip


def load_state_dict(module: torch.nn.Module, path: Path, *, architecture: str, classes: int) -> None:
    """Fill `module` with the weights in `path`, every one of them and no more.

    Raises:
        SourceError: Unreadable, code in the pickle, or names or shapes that do not fit.
    """
    import torch

    state = _unwrap(_read(path), path)
    wanted = module.state_dict()
    problems = [f"missing: {name}" for name in wanted if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {list(state[name].shape)}, but {list(tensor.shape)} is expected"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        shown = problems[:6] + ([f"and {len(problems) - 6} more"] if len(problems) > 6 else [])
        msg = f"{path} does not fit {architecture} with {classes} classes:\n  " + "\n  ".join(shown)
        raise SourceError(
            msg, hint="set architecture and classes (--architecture, --classes) to what the checkpoint was trained with"
        )
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]:
        msg = f"{path} holds NaN or infinity in {', '.join(broken[:3])}"
        raise SourceError(msg, hint="take an earlier checkpoint: the training diverged")
    module.load_state_dict(state)


def _read(path: Path) -> Any:
    import torch

    if not path.is_file():
        msg = f"the checkpoint {path} does not exist"
        raise SourceError(msg, hint="give the path of a .pt, .pth, .bin or .safetensors file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            _refuse_other_kind(path)
            msg = f"{path} is not a safetensors file: {error}"
            raise SourceError(msg, hint="save it again with safetensors.torch.save_file") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what a damaged file seems to be
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_other_kind(path)
        msg = f"{path} holds more than tensors, so loading it could run code; it was not loaded"
        raise SourceError(
            msg, hint="where you trust the file: torch.save(model.state_dict(), 'weights.pt') and give that"
        ) from error
    except _TORCH_SLIPS as error:
        _refuse_other_kind(path)
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path} is not a checkpoint that torch can load: {first_line}"
        raise SourceError(msg, hint="save it again with torch.save(model.state_dict(), path)") from error


def _refuse_other_kind(path: Path) -> None:
    from generator.file_kind import CHECKPOINTS, name_kind

    kind, hint = name_kind(path)
    if kind and kind not in CHECKPOINTS.get(path.suffix, CHECKPOINTS[".pt"]):
        if any(kind in kinds for kinds in CHECKPOINTS.values()):
            hint = "the ending must say what it is: .pt for torch.save, .safetensors for safetensors"
        msg = f"{path} is {kind}; that is no checkpoint with the ending {path.suffix}"
        raise SourceError(msg, hint=hint)


def _unwrap(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The state dict itself, without containers and without the prefixes of wrappers."""
    import torch

    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        msg = f"{path} holds {type(content).__name__}, a state dict (name -> tensor) was expected"
        raise SourceError(msg, hint="save it again with torch.save(model.state_dict(), path)")
    if strange := [name for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        msg = f"{path}: {strange[0]!r} is not a tensor, a state dict (name -> tensor) was expected"
        raise SourceError(msg, hint="save it again with torch.save(model.state_dict(), path)")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    state: dict[str, torch.Tensor] = content
    return state
