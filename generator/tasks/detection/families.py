"""How images are prepared for the families that ONNX detectors come from, as far as a file tells its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.errors import SourceError
from generator.spec.recipe import IMAGENET, RECIPES, Recipe
from generator.tasks.detection.file import DetectorFile
from generator.tasks.detection.guess import choose_layout, find_yolox, read_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from generator.spec.model import ModelSpec

_YOLO = RECIPES["yolo"]
_YOLOX = Recipe.model_validate({**_YOLO.model_dump(), "fit": "letterbox-corner", "channels": "BGR", "scale": 1.0})
_STRETCHED = Recipe.model_validate(
    {**_YOLO.model_dump(exclude={"fill"}), "fit": "stretch", "interpolation": "bilinear"}
)
# Ultralytics resizes as OpenCV does, without antialiasing
_OF_ULTRALYTICS = _STRETCHED.model_copy(update={"interpolation": "linear"})
_RF_DETR = _STRETCHED.model_copy(update={"mean": IMAGENET.mean, "std": IMAGENET.std})


def guess_recipe(spec: ModelSpec, path: Path) -> tuple[Recipe, str] | None:
    """Return the recipe and the family's name, with the size that the file has or says; None where nothing tells it.

    Raises:
        SourceError: It is no detector that is served.
    """
    file = DetectorFile.read(path)
    size = file.choose_size(spec)
    outputs = file.find_outputs(size)
    reading = read_outputs(spec, file, outputs)
    names = set(reading.tensors)
    if reading.layout == "objectness" and find_yolox(spec, file, choose_layout(spec, file, outputs)):
        recipe, family = _YOLOX, "YOLOX"
    elif reading.layout in ("raw", "objectness"):
        recipe, family = _YOLO, "YOLO"
    elif reading.layout == "end2end" and len(names) > 1:
        recipe, family = _STRETCHED, "RT-DETR and D-FINE"
    elif reading.layout == "end2end":
        recipe, family = (_YOLO, "YOLO") if reading.units == "pixels" else (_OF_ULTRALYTICS, "RT-DETR of Ultralytics")
    elif names == {"pred_boxes", "logits"}:
        recipe, family = _STRETCHED, "RT-DETR and D-FINE of transformers"
    elif names == {"dets", "labels"}:
        recipe, family = _RF_DETR, "RF-DETR"
    else:
        _ask_for_recipe(spec, path)
        return None
    return recipe.with_image_size(size), family


def _ask_for_recipe(spec: ModelSpec, path: Path) -> None:
    """Refuse a spec that leaves open what the file does not tell."""
    if spec.raw:
        return
    try:
        spec.recipe.apply_to(None)
    except LookupError as error:
        msg = f"{path}: nothing tells how its images were prepared; recipe lacks {', '.join(error.args)}"
        hint = "set recipe: yolo where it was trained like YOLO, else fit, crop, interpolation, mean and std"
        raise SourceError(msg, hint=hint, fields={"recipe": "yolo"}) from error
    except ValueError:
        return  # not valid, which is said where it is resolved
