"""docs/spec.md, made from the pydantic models: what models.yaml may say, field by field.

python -m generator.spec.docs > docs/spec.md
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from generator.render import read_static
from generator.spec.config_text import REFUSED, REFUSED_IN_ENSEMBLE
from generator.spec.model import Batch, ModelSpec
from generator.spec.per_member import config_model, instances_model
from generator.spec.plan import BatchProfile, PlanOptions
from generator.spec.recipe import IMAGENET, Recipe, RecipeSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

_INTRODUCTION = """\
<!-- Made by `python -m generator.spec.docs > docs/spec.md` from the models in generator/. -->

# models.yaml

`trtgen build-repo resnet50` needs no file. `trtgen build-repo --spec models.yaml` reads one, for everything that the
command line has no option for. `trtgen init` writes the example below, and `trtgen show --spec models.yaml` prints
what a file comes to: the resolved fields, the recipe and the number of classes.

- One mapping with the key `models`, a list with one entry per model. Only `name` is needed in it.
- Unknown fields are refused with the near spelling, and every wrong field of a file is reported at once.
- Relative paths are relative to the file's folder; `~` is the home directory.
- The `trtgen.json` of a built model can be given as `--spec` too: it builds the same model again.
"""

_RECIPE = """\
How an image file becomes pixels. What is left out comes from the source. An ONNX file says nothing about it, so there
the first five are needed, or `recipe: imagenet`, which a `raw` one of 224x224 pixels gets by itself."""

_CONFIG = """\
What a member's config.pbtxt states besides what trtgen writes, in Triton's own syntax (protobuf text):

```yaml
    config:
      classifier: |
        instance_group [ { kind: KIND_CPU count: 2 } ]
        parameters { key: "intra_op_thread_count" value { string_value: "4" } }
      ensemble: |
        response_cache { enable: true }
```

- A field that is given takes the place of trtgen's as a whole: `instance_group` is not a second group,
  `dynamic_batching { preferred_batch_size: [ 8 ] }` has the queue delay of Triton's default, and beside a plan
  `optimization` without `cuda` ends the CUDA graphs. An empty list (`model_warmup []`) leaves out what trtgen writes.
- `parameters` are added to trtgen's. What the spec sets as well is refused: `instances` and `instance_group`,
  `max_queue_delay_microseconds` and `dynamic_batching`, `plan.cuda_graphs: false` and `optimization.cuda`.
- It is parsed with Triton's protobuf as tritonclient brings it, checked together with the rest, and the gate runs with
  it. A change of it is a change of the configuration: no new version."""

_SECTIONS: tuple[tuple[type[BaseModel], str, str], ...] = (
    (ModelSpec, "A model", "The fields of one entry of `models`."),
    (Batch, "batch", "How many images one execution takes."),
    (instances_model("classification"), "instances", "How many copies of each member run side by side."),
    (config_model("classification"), "config", _CONFIG),
    (RecipeSpec, "recipe", _RECIPE),
    (PlanOptions, "plan", "How TensorRT builds the plan, for the targets `tensorrt-*`."),
    (BatchProfile, "plan.profiles", "One entry is one optimization profile."),
)

# What no single field says. The second part is a model that is refused for it; tests/test_docs.py tries each.
RULES = (
    ("A name is made of letters, digits, `_`, `-` and single `.`, at most 100, and starts with a letter or digit.",
     "{name: 'my model'}"),
    ("`source: onnx` needs `onnx`, and no other source takes it.", "{name: a, source: onnx}"),
    ("`raw` goes with `source: onnx` only.", "{name: a, raw: true}"),
    ("`source: checkpoint` needs `weights` to be a file with one of the endings of a checkpoint.",
     "{name: a, source: checkpoint}"),
    ("`batch`: min <= opt <= max, and min is 1.", "{name: a, batch: {opt: 9, max: 8}}"),
    ("`source: export` needs `onnx`, and takes nothing that was settled when the graph was exported.",
     "{name: a, source: export, onnx: model.onnx, classes: 3}"),
    ("The one precision of `onnxruntime` is `fp32`.", "{name: a, target: onnxruntime, precision: fp16}"),
    ("`bf16` needs TensorRT 10 or later.", "{name: a, target: tensorrt-8.6, precision: bf16}"),
    ("`calibration` goes with `precision: int8`, `keep` with `fp16` and `int8`.", "{name: a, calibration: images}"),
    ("`plan.profiles` together cover every batch from 1 to `batch.max`.",
     "{name: a, plan: {profiles: [{min: 2, opt: 8, max: 32}]}}"),
    ("`config` states nothing that other fields set: `instances`, `max_queue_delay_microseconds`, `plan.cuda_graphs`.",
     "{name: a, instances: {classifier: 2}, config: {classifier: 'instance_group { count: 3 }'}}"),
    ("`config` does not give the `parameters` that trtgen writes: the recipe's, and `negative_label` of the ensemble.",
     "{name: a, config: {preprocess: 'parameters { key: \"resize\" value { string_value: \"9\" } }'}}"),
    ("No two models may need the same directory: a model needs `NAME`, `NAME_preprocess` and `NAME_classifier`.",
     "{name: a}, {name: a_classifier}"),
)  # fmt: skip

_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}


def render_page() -> str:
    """Return the text of docs/spec.md."""
    parts = [_INTRODUCTION, "## Example\n", f"```yaml\n{read_static('models.yaml').decode()}```\n"]
    for model, title, sentence in _SECTIONS:
        parts += [f"## {title}\n", f"{sentence}\n", _table(model)]
        if title == "config":
            parts.append(_refused())
    parts += [_imagenet(), "## Rules across fields\n", _rules()]
    return "\n".join(parts)


def _table(model: type[BaseModel]) -> str:
    lines = ["| field | type | default | limits | meaning |", "|---|---|---|---|---|"]
    schema = model.model_json_schema()
    for name, field in schema["properties"].items():
        words, limits = _describe(name, field)
        default = "needed" if name in schema.get("required", ()) else _default(model, name, field.get("default"))
        cells = (f"`{name}`", words, default, limits, field["description"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(model: type[BaseModel], name: str, value: Any) -> str:
    """The default in YAML's spelling; empty where the description says what happens without the field."""
    if value is None and model is RecipeSpec:
        complete = Recipe.model_fields[name]
        if complete.is_required():
            return "the source's"
        value = complete.get_default()
    return "" if value in (None, []) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _describe(name: str, field: dict[str, Any]) -> tuple[str, str]:
    """Return a type and its limits in words, from JSON schema."""
    if "$ref" in field:
        title = "plan.profiles" if name == "profiles" else name
        return f"see [{title}](#{title.replace('.', '')})", ""
    if "anyOf" in field:
        parts = [_describe(name, one) for one in field["anyOf"] if one.get("type") != "null"]
        return _either([words for words, _ in parts]), "; ".join(dict.fromkeys(limits for _, limits in parts if limits))
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return _either([f"`{value}`" for value in values]), ""
    if "prefixItems" in field:
        parts = [_describe(name, one) for one in field["prefixItems"]]
        return f"[{', '.join(words for words, _ in parts)}]", parts[0][1]
    if "items" in field:
        words, limits = _describe(name, field["items"])
        several = f"list: {words}" if words.startswith("see") else f"list of {words}s"
        least = f"list: at least {field['minItems']} entry" if "minItems" in field else ""
        return several, ", each ".join(part for part in (least, limits) if part)
    return "path" if field.get("format") == "path" else _WORDS[field["type"]], _limits(field)


def _either(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _limits(field: dict[str, Any]) -> str:
    if {"minimum", "maximum"} <= field.keys():
        return f"{field['minimum']:,} to {field['maximum']:,}".replace(".0", "")
    names = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
    return ", ".join(f"{word} {field[key]:,}".removesuffix(".0") for key, word in names.items() if key in field)


def _imagenet() -> str:
    recipe = IMAGENET.model_dump(mode="json", include={"resize", "crop", "interpolation", "mean", "std"})
    lines = [f"{name}: {value}" for name, value in recipe.items()]  # a list prints as it is written in YAML
    return "`recipe: imagenet` stands for\n\n```yaml\n" + "\n".join(lines) + "\n```\n"


def _refused() -> str:
    lines = ["| not given in `config` | why |", "|---|---|"]
    by_reason: dict[str, list[str]] = {}
    for name, reason in {**REFUSED, **REFUSED_IN_ENSEMBLE}.items():
        by_reason.setdefault(reason, []).append(f"`{name}`" + " (ensemble)" * (name in REFUSED_IN_ENSEMBLE))
    return "\n".join([*lines, *(f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items())]) + "\n"


def _rules() -> str:
    lines = ["| rule | refused |", "|---|---|"]
    return "\n".join([*lines, *(f"| {rule} | `{example}` |" for rule, example in RULES)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render_page())
