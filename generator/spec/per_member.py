"""The spec's fields that have one entry per member: `instances` and `config`, made from the roles of the task."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from generator.spec.config_text import check_text
from generator.task import Role, find_roles, find_task

if TYPE_CHECKING:
    from collections.abc import Mapping


def keep_own(given: Mapping[str, Any], task: str, layout: str | None) -> dict[str, Any]:
    """Return the entries but for those that are None and belong to a member of the other layout.

    Raises:
        ValueError: One of those is stated; names the members that there are.
    """
    own = [role.key for role in find_roles(task, layout)]
    others = {role.key for role in (*find_task(task).roles, find_task(task).fused) if role is not None} - {*own}
    if wrong := [key for key, value in given.items() if key in others and value is not None]:
        msg = f"{wrong[0]} is no member with layout: {layout or 'ensemble'}, which has {', '.join(own)}"
        raise ValueError(msg)
    return {key: value for key, value in given.items() if key not in others}


@cache
def instances_model(task: str, layout: str | None) -> type[BaseModel]:
    """Return the model of `instances`: how many instances serve each member; None follows from the usable cores."""
    fields: dict[str, Any] = {
        role.key: (
            int | None,
            Field(default=None, ge=1, le=role.most_instances, description=role.about_instances),
        )
        for role in find_roles(task, layout)
        if role.default_instances is not None
    }
    return create_model("Instances", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


@cache
def config_model(task: str, layout: str | None) -> type[BaseModel]:
    """Return the model of `config`: what each config.pbtxt states beside or in place of trtgen's, as protobuf text."""

    def checked(role: Role, text: str) -> str:
        if text:
            check_text(text, role)
        return text

    fields: dict[str, Any] = {}
    for role in find_roles(task, layout):
        text = Annotated[str, AfterValidator(partial(checked, role))]
        what = ", the ensemble that clients call." if role.default_instances is None else ", with `layout: fused`."
        about = f"For `NAME{role.suffix}`" + ("." if role.suffix else what)
        fields[role.key] = (text | None, Field(default=None, description=about))
    return create_model("ConfigTexts", __config__=ConfigDict(extra="forbid", frozen=True), **fields)
