"""docs/spec.md against the models: its tables of fields are made from them, and every rule refuses its example.

python -m tests.test_spec_page writes the tables anew; the rest of the page is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from generator.errors import SpecError
from generator.render import read_static
from generator.spec.config_text import REFUSED, REFUSED_IN_ENSEMBLE
from generator.spec.detection import DetectionOptions
from generator.spec.file import load_spec
from generator.spec.model import Batch, ModelSpec
from generator.spec.per_member import config_model, instances_model
from generator.spec.plan import BatchProfile, PlanOptions
from generator.spec.recipe import IMAGENET, Recipe, RecipeSpec
from generator.spec.serving import QueueOptions, RateLimiter

PAGE = Path(__file__).parents[1] / "docs" / "spec.md"
MODELS: dict[str, type[BaseModel]] = {
    "A model": ModelSpec,
    "batch": Batch,
    "instances": instances_model("classification", None),
    "queue": QueueOptions,
    "rate_limiter": RateLimiter,
    "config": config_model("classification", None),
    "detection": DetectionOptions,
    "instances of a detector": instances_model("detection", None),
    "instances of a fused model": instances_model("classification", "fused"),
    "recipe": RecipeSpec,
    "plan": PlanOptions,
    "plan.profiles": BatchProfile,
}
RULES = re.findall(r"^\| (.*) \| `(\{.*\})` \|$", PAGE.read_text().partition("## Rules across fields")[2], re.MULTILINE)
WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}


def with_tables(page: str) -> str:
    """Return the page with the first table below each heading made anew."""
    for heading, model in MODELS.items():
        table = re.compile(rf"(^## {re.escape(heading)}$.*?\n\n)(?:\|.*?\n)+(?=\n)", re.MULTILINE | re.DOTALL)
        found = table.search(page)
        assert found is not None, heading
        page = page[: found.end(1)] + make_table(model) + page[found.end() :]
    return page


def make_table(model: type[BaseModel]) -> str:
    lines = ["| field | type | default | limits | meaning |", "|---|---|---|---|---|"]
    schema = model.model_json_schema()
    for name, field in schema["properties"].items():
        words, limits = describe(name, field)
        default = (
            "needed" if name in schema.get("required", ()) else describe_default(model, name, field.get("default"))
        )
        cells = (f"`{name}`", words, default, limits, field["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def describe_default(model: type[BaseModel], name: str, value: Any) -> str:
    """The default in YAML's spelling; empty where the description says what happens without the field."""
    if value is None and model is RecipeSpec and name in Recipe.model_fields:
        complete = Recipe.model_fields[name]
        if complete.is_required():
            return "the source's"
        value = complete.get_default()
        value = {1 / 255: "1/255", (0, 0, 0): "[0, 0, 0]"}.get(value, value)
    return "" if value in (None, [], {}) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def describe(name: str, field: dict[str, Any]) -> tuple[str, str]:
    """Return a type and its limits in words, from JSON schema."""
    if "$ref" in field:
        title = "plan.profiles" if name == "profiles" else name
        return f"see [{title}](#{title.replace('.', '')})", ""
    if "anyOf" in field:
        parts = [describe(name, one) for one in field["anyOf"] if one.get("type") != "null"]
        return either([words for words, _ in parts]), "; ".join(dict.fromkeys(limits for _, limits in parts if limits))
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return either([f"`{value}`" for value in values]), ""
    if "prefixItems" in field:
        parts = [describe(name, one) for one in field["prefixItems"]]
        return f"[{', '.join(words for words, _ in parts)}]", parts[0][1]
    if "items" in field:
        words, limits = describe(name, field["items"])
        several = f"list: {words}" if words.startswith("see") else f"list of {words}s"
        least = f"list: at least {field['minItems']} entry" if "minItems" in field else ""
        return several, ", each ".join(part for part in (least, limits) if part)
    return describe_single(name, field)


def describe_single(name: str, field: dict[str, Any]) -> tuple[str, str]:
    by_pattern = field.get("patternProperties", {None: None})  # of the keys
    if isinstance(inner := field.get("additionalProperties", *by_pattern.values()), dict):
        words, limits = describe(name, inner)
        return f"text: {words}", limits
    return "path" if field.get("format") == "path" else WORDS[field["type"]], describe_limits(field)


def either(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def describe_limits(field: dict[str, Any]) -> str:
    if {"minimum", "maximum"} <= field.keys():
        return f"{field['minimum']:,} to {field['maximum']:,}".replace(".0", "")
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return ", ".join(f"{word} {field[key]:,}".removesuffix(".0") for key, word in names.items() if key in field)


def test_the_tables_are_those_of_the_models() -> None:
    assert PAGE.read_text() == with_tables(PAGE.read_text()), "python -m tests.test_spec_page"


@pytest.mark.parametrize(
    "row",
    [
        "| `name` | text | needed |  |",
        "| `seed` | whole number | `0` | 0 to 4,294,967,295 |",
        "| `raw` | `true` or `false` | `false` |  |",
        "| `labels` | path or `index` |  |  |",
        "| `image_size` | whole number or [whole number, whole number] |  | 1 to 8,192 |",
        "| `activation` | `auto`, `softmax`, `sigmoid` or `none` | `auto` |  |",
        "| `batch` | see [batch](#batch) |  |  |",
        "| `versions` | whole number, `all` or list of whole numbers | `1` | 1 to 100; list: at least 1 entry, each 1 ",
        "| `std` | [number, number, number], [number] or number | the source's | above 0, at most 1,000 |",
        "| `max_pixels` | whole number | `50000000` | 500,000 to 1,000,000,000 |",
    ],
)
def test_types_defaults_and_limits_in_words(row: str) -> None:
    assert f"\n{row}" in PAGE.read_text()


def test_what_config_does_not_take_is_on_the_page() -> None:
    rows = dict(re.findall(r"^\| (`.*`(?: \(ensemble\))?) \| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE))
    reasons = {name: reason for names, reason in rows.items() for name in names.split(", ")}
    assert {f"`{name}`": reason for name, reason in REFUSED.items()}.items() <= reasons.items()
    assert {f"`{name}` (ensemble)": reason for name, reason in REFUSED_IN_ENSEMBLE.items()}.items() <= reasons.items()


def test_the_examples_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert f"```yaml\n{read_static('models.yaml').decode()}```\n" in page
    recipe = IMAGENET.model_dump(mode="json", include={"resize", "crop", "interpolation", "mean", "std"})
    assert "```yaml\n" + "\n".join(f"{name}: {value}" for name, value in recipe.items()) + "\n```\n" in page


@pytest.mark.parametrize(("rule", "example"), RULES)
def test_every_rule_refuses_its_example(rule: str, example: str, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(f"models: [{example}]")
    with pytest.raises(SpecError):
        load_spec(path)


def test_the_rules_are_read() -> None:
    assert len(RULES) > 10


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
