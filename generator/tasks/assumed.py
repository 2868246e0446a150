"""What is taken on trust of a source, whatever the task: its recipe, and what low precision lost before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.graph.model import find_low_precisions, load_proto

if TYPE_CHECKING:
    from generator.sources import Network
    from generator.spec.model import ModelSpec

_MEASURE = "not proved; --labelled DIR measures it"


def list_assumed_of_source(spec: ModelSpec, network: Network, *, guessed: str = "") -> dict[str, str]:
    """Say by its name what nobody can prove here of the source itself.

    `guessed` says what an ONNX file's recipe was guessed from, where the spec gives none.
    """
    from generator.spec.recipe import RecipeSpec

    assumed = {}
    if guessed and spec.recipe == RecipeSpec():
        assumed["recipe"] = f"{guessed}, {_MEASURE}"
    elif spec.source in ("onnx", "factory", "pt2") or spec.recipe != RecipeSpec():
        assumed["recipe"] = f"as given, {_MEASURE}"
    elif spec.source == "checkpoint":
        assumed["recipe"] = f"that of {spec.registry_name}'s own weights, {_MEASURE}"
    elif spec.source == "timm" and spec.weights_file is not None:
        own = f"timm's of {spec.registry_name}, changed by the training arguments in the file where it has any"
        assumed["recipe"] = f"{own}, {_MEASURE}"
    held = find_low_precisions(load_proto(network.onnx, weights=False)) if network.onnx is not None else ()
    if held:
        what = f"the {'quantised' if held[0] in ('int8', 'fp8') else held[0].upper()} graph"
        if "bf16" in held:
            what = f"a copy of {what} in FP32, since onnxruntime has no BF16 on the CPU"
        assumed["precision"] = f"compared with {what}, not with its original; --labelled DIR measures it"
    return assumed
