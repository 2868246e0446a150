"""The user's checkpoint: a state dict for an architecture of the registry. Nothing in the file is executed."""

from __future__ import annotations

import logging
import pickle
import struct
import warnings
from argparse import Namespace
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

_LOG = logging.getLogger(__name__)
# Where training scripts put the state dict. The averaged weights (EMA) come first: timm and torchvision's reference
# script validate them, and choose the best epoch by them.
_EMA = ("state_dict_ema", "model_ema")
_CONTAINERS = (*_EMA, "state_dict", "model_state_dict", "model", "net")
# What training scripts store beside the weights; the names in newer files are read from the file itself.
_COMMON_GLOBALS = (
    "argparse.Namespace", "pathlib.PosixPath", "pathlib.WindowsPath", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "numpy.dtype",
)  # fmt: skip
# What torch.load raises over damaged files, besides its own errors.
_TORCH_SLIPS = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError,
                ValueError, struct.error)  # fmt: skip
_SAVE_STATE_DICT = "where you trust the file: torch.save(model.state_dict(), 'weights.pt') and give that"


def load_state_dict(
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    path: Path,
    *,
    architecture: str,
    layer: str | None = None,
) -> None:
    """Fill `module` with the aligned weights of `path`, every one of them and no more.

    `architecture` is what errors call it. `layer` is its last one; None for a module of the user's own, which need not
    have one.

    Raises:
        SourceError: Names or shapes that do not fit, or weights that are no numbers.
    """
    import torch

    wanted = module.state_dict()
    names = [f"missing: {name}" for name in wanted if name not in state]
    names += [f"unexpected: {name} {list(state[name].shape)}" for name in state if name not in wanted]
    shapes = [
        f"{name} has shape {list(state[name].shape)}, but {list(tensor.shape)} is expected"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems := names + shapes:
        shown = problems[:6] + ([f"and {len(problems) - 6} more"] if len(problems) > 6 else [])
        msg = f"{path} does not fit {architecture}:\n  " + "\n  ".join(shown)
        raise SourceError(msg, **_advise_on_misfit(state, wanted, layer))
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]:
        msg = f"{path} holds NaN or infinity in {', '.join(broken[:3])}"
        raise SourceError(msg, hint="take an earlier checkpoint: the training diverged")
    module.load_state_dict(state)


def _advise_on_misfit(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], layer: str | None
) -> dict[str, Any]:
    """Return hint and fields of the error."""
    if layer is None:
        hint = "give the weights that were saved from this module, or let the function make the module they belong to"
        return {"hint": hint, "fields": {"weights": None}}
    weight = f"{layer}.weight"
    differing = {name for name in {*state, *wanted} if name not in state or name not in wanted}
    if differing and all(_root(name) == _root(layer) for name in differing):
        hint = (
            f"the last layers ({_root(layer)}) are not those of the architecture: export the module itself to ONNX "
            "(torch.onnx.export) and give that file"
        )
        return {"hint": hint, "fields": {"onnx": None}}
    if (
        not differing
        and state[weight].shape[1:] == wanted[weight].shape[1:]
        and len(state[weight]) != len(wanted[weight])
    ):
        classes = len(state[weight])
        hint = f"its last layer has {classes} classes: leave classes out, or set it to that"
        return {"hint": hint, "fields": {"classes": classes}}
    hint = "set architecture and classes to what the checkpoint was trained with"
    return {"hint": hint, "fields": {"architecture": None, "classes": None}}


def align_state_dict(
    state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path, *, layer: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights under the names in `wanted`, as far as wrappers and a head in a Sequential changed them.

    Raises:
        SourceError: The file holds several networks of this architecture.
    """
    state = _strip_prefix(state, wanted, path)
    if layer is None:
        return state
    missing = {name for name in wanted if name not in state}
    unexpected = {name for name in state if name not in wanted}
    layers = {name.rpartition(".")[0] for name in unexpected}
    if len(layers) != 1 or missing != {name for name in wanted if name.rpartition(".")[0] == layer}:
        return state
    own = layers.pop()
    renamed = {name: f"{layer}.{name.rpartition('.')[2]}" for name in unexpected}
    if (
        _root(own) != _root(layer)
        or set(renamed.values()) != missing
        or any(state[name].shape[1:] != wanted[new].shape[1:] for name, new in renamed.items())
    ):
        return state
    _LOG.warning(
        "%s has its last layer in a Sequential: %s was taken for %s, and no other layer in there but Dropout is served",
        path, own, layer,
    )  # fmt: skip
    return {renamed.get(name, name): tensor for name, tensor in state.items()}


def _strip_prefix(
    state: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Find the network under the prefix that wrappers (DDP, Lightning, torch.compile) put before its names."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in wanted:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    if not counts:
        return state
    most = max(counts.values())
    found = [prefix for prefix, count in counts.items() if count == most]
    if len(found) > 1 and most > len(wanted) / 2:
        msg = f"{path} holds several networks of this architecture, under {' and '.join(found)}"
        raise SourceError(msg, hint="save one of them alone: torch.save(module.state_dict(), 'weights.pt')")
    prefix = found[0]
    if left := [name for name in state if not name.startswith(prefix)]:
        _LOG.info("%s: not part of the network under %s: %s", path, prefix, ", ".join(left))
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _root(name: str) -> str:
    return name.partition(".")[0]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint by name, taken out of what training scripts put around them.

    Raises:
        SourceError: Unreadable, or no state dict in it.
    """
    import torch

    content = _read(path)
    for _ in range(3):  # {"model": {"state_dict": ...}} is deep enough, and a dict may hold itself
        found = [key for key in _CONTAINERS if isinstance(content, dict) and content.get(key)]
        found = [key for key in found if isinstance(content[key], dict)]
        if not found:
            break
        if len(found) > 1:
            _tell_choice(path, found)
        content = content[found[0]]
    hint = "save it again with torch.save(model.state_dict(), path)"
    if isinstance(content, _StandIn):
        msg = f"{path} holds a pickled {type(content).__name__}, whose loading could run code; it was not loaded"
        raise SourceError(msg, hint=_SAVE_STATE_DICT)
    if not isinstance(content, dict) or not content:
        msg = f"{path} holds {type(content).__name__}, a state dict (name -> tensor) was expected"
        raise SourceError(msg, hint=hint)
    for name, value in content.items():
        if isinstance(value, _StandIn):
            msg = (
                f"{path}: {name!r} is a pickled {type(value).__name__}, whose loading could run code; it was not loaded"
            )
            raise SourceError(msg, hint=_SAVE_STATE_DICT)
        if not isinstance(value, torch.Tensor) or not isinstance(name, str):
            msg = f"{path}: {name!r} is not a tensor, a state dict (name -> tensor) was expected"
            raise SourceError(msg, hint=hint)
    state: dict[str, torch.Tensor] = content
    return state


def read_arguments(path: Path) -> dict[str, Any]:
    """Return the arguments that a training script stored beside the weights, {} where there are none."""
    content = {} if path.suffix == ".safetensors" else _read(path)
    stored = content.get("args") if isinstance(content, dict) else None
    return dict(stored) if isinstance(stored, dict) else dict(vars(stored)) if isinstance(stored, Namespace) else {}


def _tell_choice(path: Path, found: list[str]) -> None:
    taken, other = found[:2]
    what = f"{taken}, the averaged weights" if taken in _EMA else taken
    command = f"torch.save(torch.load({path.name!r}, weights_only=False)[{other!r}], 'weights.pt')"
    _LOG.warning("%s holds %s: %s, were taken; for %s, where you trust the file: %s", path, " and ".join(found), what,
                 other, command)  # fmt: skip


def _read(path: Path) -> Any:
    import torch

    if not path.is_file():
        msg = f"the checkpoint {path} does not exist"
        raise SourceError(msg, hint="give the path of a .pt, .pth, .ckpt, .bin or .safetensors file")
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
        with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins(path)):
            warnings.simplefilter("ignore")  # about what a damaged file seems to be
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        _refuse_other_kind(path)
        msg = f"{path} holds more than tensors, so loading it could run code; it was not loaded"
        raise SourceError(msg, hint=_SAVE_STATE_DICT) from error
    except _TORCH_SLIPS as error:
        _refuse_other_kind(path)
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path} is not a checkpoint that torch can load: {first_line}"
        raise SourceError(msg, hint="save it again with torch.save(model.state_dict(), path)") from error


class _StandIn:
    """Stands for whatever a checkpoint names that is no tensor; it takes its arguments and its state and drops them."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _stand_ins(path: Path) -> list[Any]:
    """Bind every name in the file that torch does not load to a class that does nothing: none of them is imported.

    Two that only hold data keep it: dictionaries, and the arguments of a training script.
    """
    import torch

    with path.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else _COMMON_GLOBALS
    kept: dict[str, Any] = {"collections.defaultdict": lambda *_: OrderedDict(), "argparse.Namespace": Namespace}
    bound: list[Any] = [(type(name, (_StandIn,), {}), name) for name in names if name not in kept]
    return [*bound, *((value, name) for name, value in kept.items())]


def _refuse_other_kind(path: Path) -> None:
    from generator.files import CHECKPOINTS, name_kind

    kind, hint = name_kind(path)
    if kind and kind not in CHECKPOINTS.get(path.suffix, CHECKPOINTS[".pt"]):
        if any(kind in kinds for kinds in CHECKPOINTS.values()):
            hint = "the ending must say what it is: .pt for torch.save, .safetensors for safetensors"
        msg = f"{path} is {kind}; that is no checkpoint with the ending {path.suffix}"
        raise SourceError(msg, hint=hint)
