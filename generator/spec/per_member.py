"""The spec's fields that have one entry per member: `instances` and `config`, made from the roles of the task."""

from __future__ import annotations

from functools import cache, partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from generator.spec.config_text import check_text
from generator.task import Role, find_task


@cache
def instances_model(task: str) -> type[BaseModel]:
    """Return the model of `instances`: how many instances serve each member; None follows from the usable cores."""
    fields: dict[str, Any] = {
        role.key: (
            int | None,
            Field(default=None, ge=1, le=role.most_instances, description=role.about_instances),
        )
        for role in find_task(task).roles
        if role.default_instances is not None
    }
    return create_model("Instances", __config__=ConfigDict(extra="forbid", frozen=True), **fields)


@cache
def config_model(task: str) -> type[BaseModel]:
    """Return the model of `config`: what each config.pbtxt states beside or in place of trtgen's, as protobuf text."""

    def checked(role: Role, text: str) -> str:
        if text:
            check_text(text, role)
        return text

    fields: dict[str, Any] = {}
    for role in find_task(task).roles:
        text = Annotated[str, AfterValidator(partial(checked, role))]
        about = f"For `NAME{role.suffix}`" + ("." if role.suffix else ", the ensemble that clients call.")
        fields[role.key] = (text | None, Field(default=None, description=about))
    return create_model("ConfigTexts", __config__=ConfigDict(extra="forbid", frozen=True), **fields)
