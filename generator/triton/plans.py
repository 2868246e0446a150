"""The part of config.pbtxt that names a plan for each compute capability; it stands at the end of a published text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.render import render

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEMPLATE = "network/plans.pbtxt.j2"


def state_plans(text: str, for_capability: Mapping[str, str], *, has_default: bool) -> str:
    """Return the configuration with `cc_model_filenames` in place of what it says of them.

    Nothing else is rendered again: the rest is what was proved, with the instances and the Pillow of that host.

    Args:
        text: What config.pbtxt says.
        for_capability: Names of files in the version directory, by compute capability, in the order of these.
        has_default: Whether the default file is there, which runs on other GPUs, too.
    """
    return leave_plans_out(text) + render(_TEMPLATE, plans=for_capability, has_default=has_default)


def leave_plans_out(text: str) -> str:
    """Return the configuration as it was before `state_plans`."""
    first_line = render(_TEMPLATE, plans={}, has_default=False).strip().partition("\n")[0]
    before, found, _ = text.partition(first_line)
    return before.rstrip("\n") + "\n" if found else text
