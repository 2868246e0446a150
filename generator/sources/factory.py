"""The user's own module: a function of theirs makes it. Its file is imported and the function is called."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from generator.errors import SourceError, near
from generator.sources.module import describe_failure, describe_value, try_module
from generator.sources.network import Network, resolve_recipe, torch_runner
from generator.spec.recipe import Recipe, RecipeSpec
from generator.spec.records import name_problems
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import torch

    from generator.spec.model import ModelSpec

_RETURN = 'return the module, or {"module": module, "recipe": {...}, "labels": [...]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What the function returned."""

    module: torch.nn.Module
    recipe: Recipe | None = None
    labels: Sequence[str] | None = None


def load(spec: ModelSpec) -> Network:
    """Call the function of `spec`, load the weights into its module and try that.

    Raises:
        SourceError: The function is not found, cannot be called without arguments, raises or returns no module; the
            weights do not fit; or the module does not answer images with scores.
    """
    what = f"the factory {spec.factory}"
    made = _make(spec, what)
    recipe = resolve_recipe(_with_labels(spec, made.labels), made.recipe)
    module = made.module
    if spec.weights != "default":
        _load_weights(module, Path(spec.weights), what)
    module, classes = try_module(module, recipe, f"the module of {what}")
    if made.labels is not None and spec.labels is None and len(made.labels) not in (classes, max(classes, 2)):
        msg = f"{what} gives {len(made.labels)} labels, but its module answers {classes} scores"
        raise SourceError(msg, hint="let it return one label for each score", fields={"labels": None})
    weights = "" if spec.weights == "default" else f", weights {Path(spec.weights).name}"
    return Network(
        description=f"your own code, {_name(spec)}{weights}",
        recipe=recipe,
        labels=find_task(spec.task).resolve_labels(spec, made.labels, classes),
        run=torch_runner(module, recipe),
        module=module,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names; the function is called for it."""
    network = load(spec)
    return network.recipe, network.labels


def find_file(factory: str) -> Path:
    """Return the file of the module that a factory is looked for in, without importing anything of it.

    Raises:
        SourceError: There is none; names the near ones.
    """
    place, _, _ = factory.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        if path.is_file():
            return path
        found = near(path.name, (one.name for one in path.parent.glob("*.py"))) if path.parent.is_dir() else []
        msg = f"the file {path} of factory does not exist{_did_you_mean(found)}"
        raise SourceError(msg, hint="give file.py:function", fields={"factory": None})
    _extend_path(Path.cwd())
    importlib.invalidate_caches()
    folders: Sequence[str] | None = None
    known, spec = "", None
    for part in place.split("."):
        name = f"{known}.{part}" if known else part
        # a finder of the parts' own names: that of the whole name would import the packages
        spec = PathFinder.find_spec(part, folders) if known else importlib.util.find_spec(part)
        if spec is None:
            names = (module.name for module in pkgutil.iter_modules(folders))
            where = f"the package {known}" if known else f"{Path.cwd()} and Python's path"
            msg = f"the module {name} of factory is not in {where}{_did_you_mean(near(part, names))}"
            hint = "run where it can be imported, install its package, or give file.py:function"
            raise SourceError(msg, hint=hint, fields={"factory": None})
        known, folders = name, [*(spec.submodule_search_locations or ())]
        if not folders and name != place:
            msg = f"{name} of factory is a module, not a package: there is no {place}"
            raise SourceError(msg, hint=f"give {name}:function", fields={"factory": None})
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        msg = f"the module {place} of factory has no file of its own"
        raise SourceError(msg, hint="give the module that defines the function", fields={"factory": None})
    return Path(spec.origin)


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {', '.join(names)}?" if names else ""


def _name(spec: ModelSpec) -> str:
    assert spec.factory is not None, "the spec's own rules see to it"
    place, _, function = spec.factory.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}:{function}"


def _make(spec: ModelSpec, what: str) -> _Made:
    assert spec.factory is not None, "the spec's own rules see to it"
    place, _, name = spec.factory.rpartition(":")
    file = find_file(spec.factory)
    with _running(what, "when it was imported"):
        module = _import(place, file)
    function = getattr(module, name, None)
    if function is None:
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        msg = f"{file} has no function {name}{_did_you_mean(near(name, names))}"
        raise SourceError(msg, hint="give the name of a function in it", fields={"factory": None})
    if not callable(function):
        msg = f"{name} in {file} is {describe_value(function)}; a function was expected"
        raise SourceError(msg, hint="put it into a function that returns it", fields={"factory": None})
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        msg = f"{what} cannot be called without arguments: {error}"
        hint = "give a function without arguments, which calls it with the right ones"
        raise SourceError(msg, hint=hint, fields={"factory": None}) from error
    except ValueError:  # a function of C without a signature
        pass
    import torch

    with _running(what, "when it was called"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        returned = function()
    return _read(what, returned)


def _import(place: str, file: Path) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    _extend_path(file.parent.resolve())  # as `python file.py` does: what lies beside it can be imported
    spec = importlib.util.spec_from_file_location(f"factory_{file.stem}", file)
    assert spec is not None, "it ends in .py"
    assert spec.loader is not None, "it ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _extend_path(folder: Path) -> None:
    """Put the folder first, as `python -m` and `python file.py` do; it stays, since functions import later, too."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextlib.contextmanager
def _running(what: str, when: str) -> Iterator[None]:
    """Run the user's code: what it prints goes to standard error, what it raises becomes one sentence."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        msg = f"{what} raised {describe_failure(error)} {when}"
        hint = "correct your code there"
        if isinstance(error, SystemExit):
            hint = "keep what a script does below `if __name__ == '__main__':`"
        raise SourceError(msg, hint=hint) from error


def _read(what: str, returned: object) -> _Made:
    """Check what the function returned: a module, alone or with recipe and labels."""
    import torch

    given: dict[str, Any] = returned if isinstance(returned, dict) and "module" in returned else {"module": returned}
    module = given["module"]
    if not isinstance(module, torch.nn.Module):
        msg = f"{what} returns {describe_value(module)}; a torch.nn.Module was expected"
        raise SourceError(msg, hint=_RETURN)
    if unknown := given.keys() - {"module", "recipe", "labels"}:
        msg = f"{what} returns the unknown keys {', '.join(map(repr, sorted(unknown)))}"
        raise SourceError(msg, hint=_RETURN)
    labels = given.get("labels")
    if labels is not None and (isinstance(labels, str) or not all(isinstance(label, str) for label in labels)):
        msg = f"{what} returns labels that are not a list of names"
        raise SourceError(msg, hint=_RETURN)
    module = module.to("cpu", torch.float32).eval()
    return _Made(module=module, recipe=_read_recipe(what, given.get("recipe")), labels=labels)


def _read_recipe(what: str, given: object) -> Recipe | None:
    """Return the recipe that the function gives, in the words of the spec."""
    if given is None or isinstance(given, Recipe):
        return given
    try:
        return RecipeSpec.model_validate({"base": given} if isinstance(given, str) else given).apply_to(None)
    except (ValueError, LookupError) as error:  # pydantic's ValidationError is a ValueError
        problem = f"it lacks {', '.join(error.args)}" if isinstance(error, LookupError) else str(error)
        problem = name_problems(error) if isinstance(error, ValidationError) else problem
        msg = f"{what} returns a recipe that is not valid: {problem}"
        raise SourceError(msg, hint="the words are those of recipe in the spec (docs/spec.md)") from error


def _with_labels(spec: ModelSpec, labels: Sequence[str] | None) -> ModelSpec:
    """Return the spec as one that has labels, where the function gives them: they are not missing then."""
    return spec if labels is None else spec.model_copy(update={"labels": spec.labels or "index"})


def _load_weights(module: torch.nn.Module, path: Path, what: str) -> None:
    from generator.sources.checkpoint import align_state_dict, load_state_dict, read_state_dict

    state = align_state_dict(read_state_dict(path), module.state_dict(), path)
    load_state_dict(module, state, path, architecture=f"the module of {what}")
