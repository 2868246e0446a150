"""Several plans of one model, for different compute capabilities: their names, and which of them a GPU takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The only plan of a model; beside others the one for every GPU that has none of its own.
PLAN_FILE = "model.plan"


def name_plan(capability: str) -> str:
    """Return the file of the plan for one compute capability: `model.sm90.plan` for 9.0."""
    return f"model.sm{capability.replace('.', '')}.plan"


def choose_plan(folder: Path, for_capability: Mapping[str, str], default: str, capability: str) -> Path:
    """Return the plan that Triton takes on a GPU, as its backends do.

    Args:
        folder: The version directory.
        for_capability: `cc_model_filenames`, the names of files by compute capability.
        default: The file for every other capability.
        capability: That of the GPU, such as `9.0`.

    Raises:
        PlanError: There is no plan for this GPU.
    """
    plan = folder / for_capability.get(capability, default)
    if plan.is_file():
        return plan
    if capability in for_capability:
        msg = f"{plan}, the plan for compute capability {capability}, is missing"
        raise PlanError(msg, hint="copy it there from where it was built, or merge the builds again")
    msg = f"{folder} has no plan for a GPU of compute capability {capability}: there are plans for "
    msg += ", ".join(sort_capabilities(for_capability))
    raise PlanError(msg, hint="build the model on such a GPU, and merge that build with the others")


def sort_capabilities(capabilities: Mapping[str, object]) -> list[str]:
    """Return compute capabilities in the order of their numbers: 8.9 before 10.0."""
    return sorted(capabilities, key=lambda text: tuple(int(part) for part in text.split(".") if part.isdecimal()))
