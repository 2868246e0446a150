"""`trtgen show`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from generator.cli.console import say
from generator.cli.options import takes_models

if TYPE_CHECKING:
    from generator.spec.model import ModelSpec


@takes_models
def show(
    specs: list[ModelSpec],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the resolved spec and the recipe of each model; nothing is downloaded or built.

    Example: trtgen show efficientnet_b0 --image-size 300
    """
    import yaml

    from generator.sources import describe_source
    from generator.spec.config_text import given_fields
    from generator.target import choose_target

    models: list[dict[str, Any]] = []
    for asked in specs:
        model, reason = choose_target(asked)
        if reason:
            say(f"* target    {model.name}: {reason}")
        resolved, categories = describe_source(model)
        data = model.model_dump(mode="json")
        data["batch"]["opt"] = model.batch.optimum
        # a default holds where `config` does not state the same
        for role in model.roles:
            given = given_fields(getattr(model.config, role.key))
            if role.default_instances is not None and "instance_group" not in given:
                data["instances"][role.key] = model.instance_counts()[role.key]
            if role.holds_network and "dynamic_batching" not in given:
                data["max_queue_delay_microseconds"] = model.queue_delay_microseconds()
        data["recipe"] = resolved.model_dump(mode="json")
        data["classes"] = len(categories)
        models.append(data)
    if as_json:
        print(json.dumps({"models": models}, indent=2))
    else:
        print(yaml.safe_dump({"models": models}, sort_keys=False), end="")
