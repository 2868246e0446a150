"""docs/spec.md, made from the pydantic models: what models.yaml may say, field by field.

python -m generator.spec.docs > docs/spec.md
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from generator.render import read_static
from generator.spec.config_text import REFUSED, REFUSED_IN_ENSEMBLE
from generator.spec.members import config_model, instances_model
from generator.spec.model import Batch, ModelSpec
from generator.spec.plan import BatchProfile, PlanOptions
from generator.spec.recipe import IMAGENET, Recipe, RecipeSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["RULES", "render_page"]

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
    ("`bf16` is experimental: it needs `experimental: true`.", "{name: a, target: tensorrt-10, precision: bf16}"),
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

# Fields whose model follows from the task.
_BY_MEMBER = ("instances", "config")
_WORDS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}


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
    for name, field in model.model_fields.items():
        if not field.description:
            msg = f"{model.__name__}.{name} has no description"
            raise ValueError(msg)
        words, limits = (
            (f"see [{name}](#{name})", "") if name in _BY_MEMBER else _describe(field.annotation, field.metadata)
        )
        cells = (f"`{name}`", words, _default(model, name), limits, field.description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(model: type[BaseModel], name: str) -> str:
    """The default in YAML's spelling; empty where the description says what happens without the field."""
    field = model.model_fields[name]
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None and model is RecipeSpec:
        complete = Recipe.model_fields[name]
        return "the source's" if complete.is_required() else _spell(complete.get_default())
    return "" if value in (None, ()) or isinstance(value, BaseModel) else _spell(value)


def _spell(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`"


def _describe(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[str, str]:
    """Return a type and its limits in words; TypeError for a kind of type that no field has had yet."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], [*_constraints(arguments[1:]), *metadata])
    if origin is Literal:
        return _either(f"`{value}`" for value in arguments), ""
    if origin is tuple and arguments[1:] == (...,):  # any number of one type
        words, inner = _describe(arguments[0])
        several = f"list of {words}s" if arguments[0] in _WORDS else f"list: {words}"
        return several, _join([_limits(metadata), inner])
    if origin is not None:
        return _describe_several(origin, arguments, metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        title = next(title for model, title, _ in _SECTIONS if model is annotation)
        return f"see [{title}](#{title.replace('.', '')})", ""
    if annotation not in _WORDS:
        msg = f"no words for the type {annotation!r}"
        raise TypeError(msg)
    return _WORDS[annotation], _limits(metadata)


def _describe_several(origin: Any, arguments: tuple[Any, ...], metadata: Iterable[Any]) -> tuple[str, str]:
    parts = [_describe(one) for one in arguments if one is not types.NoneType]
    inner = _join(limits for _, limits in parts)
    if origin in (Union, types.UnionType):
        return _either(words for words, _ in parts), _join([_limits(metadata), inner])
    if origin is tuple:
        return f"[{', '.join(words for words, _ in parts)}]", inner
    if origin is list:
        return f"list of {parts[0][0]}s", f"list: {_limits(metadata)}, each {inner}"
    msg = f"no words for the type {origin!r}"
    raise TypeError(msg)


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _constraints(notes: Iterable[Any]) -> Iterator[Any]:
    for note in notes:
        yield from note.metadata if isinstance(note, FieldInfo) else (note,)


def _limits(metadata: Iterable[Any]) -> str:
    found: dict[str, Any] = {}
    for note in metadata:
        for kind in ("ge", "gt", "le", "lt", "min_length"):
            if (value := getattr(note, kind, None)) is not None:
                found[kind] = value
    if "min_length" in found:
        return f"at least {found['min_length']} entry"
    if {"ge", "le"} <= found.keys():
        return f"{_number(found['ge'])} to {_number(found['le'])}"
    names = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{name} {_number(found[kind])}" for kind, name in names.items() if kind in found)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _join(limits: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(part for part in limits if part))


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
