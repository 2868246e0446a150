"""`trtgen show`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from generator.cli.console import say
from generator.cli.options import (
    ArchitectureOption,
    CalibrationOption,
    ClassesOption,
    ImageSizeOption,
    LabelsOption,
    MaxBatchOption,
    NamesArgument,
    PrecisionOption,
    RecipeOption,
    SpecOption,
    TargetOption,
    WeightsOption,
    specs_from,
)


def show(
    names: NamesArgument = None,
    *,
    spec: SpecOption = None,
    weights: WeightsOption = None,
    architecture: ArchitectureOption = None,
    classes: ClassesOption = None,
    labels: LabelsOption = None,
    recipe: RecipeOption = None,
    image_size: ImageSizeOption = None,
    max_batch: MaxBatchOption = None,
    target: TargetOption = None,
    precision: PrecisionOption = None,
    calibration: CalibrationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of YAML.")] = False,
) -> None:
    """Print the resolved spec and the recipe of each model; nothing is downloaded or built.

    Example: trtgen show efficientnet_b0 --image-size 300
    """
    import yaml

    from generator.sources import describe_source
    from generator.spec.config_text import given_fields
    from generator.target import choose_target

    specs = specs_from(
        names,
        spec,
        weights=weights,
        architecture=architecture,
        classes=classes,
        labels=labels,
        recipe=recipe,
        image_size=image_size,
        max_batch=max_batch,
        target=target,
        precision=precision,
        calibration=calibration,
    )
    models: list[dict[str, Any]] = []
    for asked in specs:
        choice = choose_target(asked)
        model = choice.spec
        if choice.reason:
            say(f"* target    {model.name}: {choice.reason}")
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
