"""torchvision's detectors that look once: SSD, RetinaNet and FCOS, for a fixed size and without their post-processing.

What is exported is their backbone, their head and the decoding of its boxes; images are resized by the preprocessing
step, and NMS comes after the network.
"""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import SourceError, near
from generator.sources.network import Network, check_channels, find_last_layer, resolve_recipe, torch_runner
from generator.sources.torchvision import choose_weights, download, is_own_file
from generator.spec.recipe import Recipe
from generator.task import find_task

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from generator.spec.model import ModelSpec

_LOG = logging.getLogger(__name__)
_OUTPUTS, _OUTPUTS_OF_SSD = ("boxes", "scores"), ("boxes", "logits")
_LEAST_NORM = 2.0**-14  # FP16's least normal number
# For networks without a size of their own, which torchvision runs at the image's: shorter edge 800, longer up to 1333.
_SIZE = 640
# Its weights of COCO were trained without what keeps a normalisation from dividing by 0, torchvision's builder says.
_WITHOUT_EPSILON = "retinanet_resnet50_fpn"


def load(spec: ModelSpec) -> Network:
    """Load the detector `spec.architecture` with the weights the spec asks for, in evaluation mode.

    Raises:
        SourceError: Unknown architecture or weights, one with NMS in its middle, no download, a checkpoint that does
            not fit, or an image size that the architecture does not take.
    """
    outline, recipe, categories = _look_up(spec)
    check_channels(spec, recipe)
    state = None
    classes = len(categories)
    if spec.source == "checkpoint":
        state, classes = _read_checkpoint(spec, outline)
    elif spec.weights == "random":
        classes = spec.classes or classes
    labels = find_task(spec.task).resolve_labels(spec, categories, classes)
    columns = classes + _count_background(outline)
    if state is not None:
        model = _load_checkpoint(spec, columns, state)
        origin = f"checkpoint {Path(spec.weights).name}"
    elif spec.weights == "random":
        from generator.sources.random_detectors import calibrate_detector

        model = _build(spec, columns)
        calibrate_detector(model, recipe)
        origin = f"random weights, seed {spec.seed}"
    else:
        weights = choose_weights(spec)
        model = download(spec, weights)
        origin = str(weights)
    outputs = _OUTPUTS_OF_SSD if _count_background(model) else _OUTPUTS
    detector = wrap_detector(model.eval(), recipe.crop, columns)
    return Network(
        description=f"torchvision {spec.registry_name}, {origin}",
        recipe=recipe,
        labels=labels,
        run=torch_runner(detector, recipe, outputs=outputs),
        module=detector,
        outputs=outputs,
    )


def describe(spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe and the class names without downloading anything.

    Where nothing else tells the number of classes, a checkpoint's head does.

    Raises:
        SourceError: Unknown architecture or weights, or labels that do not fit.
    """
    outline, recipe, categories = _look_up(spec)
    classes = spec.classes or len(categories)
    if spec.source == "checkpoint" and spec.classes is None and not is_own_file(spec, choose_weights(spec)):
        _, classes = _read_checkpoint(spec, outline)
    return recipe, find_task(spec.task).resolve_labels(spec, categories, classes)


def wrap_detector(model: Any, size: tuple[int, int], columns: int) -> torch.nn.Module:
    """Return a module from normalised FP32 NCHW to boxes [N, A, 4] and scores [N, A, C], of SSD logits [N, A, 1 + C].

    Boxes are corners in pixels of an input of `size` (height, width), and end at its edges; the anchors of that size
    are constants. The head answers `columns` of logits.
    """
    import torch
    from torchvision.models.detection.fcos import FCOS
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.ssd import SSD

    class Detector(torch.nn.Module):
        centres: torch.Tensor
        sizes: torch.Tensor
        limits: torch.Tensor
        moved: torch.Tensor
        resized: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.answer = _join(model)
            images = torch.zeros(1, 3, *size)
            with torch.no_grad():
                features = list(model.backbone(images).values())
                anchors = model.anchor_generator(ImageList(images, [size]), features)[0]
            low, high = anchors[:, :2], anchors[:, 2:]
            self.register_buffer("centres", (low + high) / 2)
            self.register_buffer("sizes", high - low)
            height, width = size
            self.register_buffer("limits", torch.tensor([width, height, width, height], dtype=torch.float32))
            coder = model.box_coder
            if not isinstance(model, FCOS):
                self.register_buffer("moved", torch.tensor(coder.weights[:2], dtype=torch.float32))
                self.register_buffer("resized", torch.tensor(coder.weights[2:], dtype=torch.float32))

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            """Return corners: FCOS answers distances to the four edges, the others a shift and a change of size."""
            first, last = codes[..., :2], codes[..., 2:]
            coder = model.box_coder
            if isinstance(model, FCOS):
                unit = self.sizes if coder.normalize_by_size else 1.0
                return torch.cat([self.centres - first * unit, self.centres + last * unit], dim=2)
            centres = first / self.moved * self.sizes + self.centres
            halves = (last / self.resized).clamp(max=coder.bbox_xform_clip).exp() * self.sizes / 2
            return torch.cat([centres - halves, centres + halves], dim=2)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            answers = self.answer(images)
            # as constants: in what tracing makes of the heads, both sizes are computed
            boxes = self.decode(answers["bbox_regression"].reshape(-1, len(self.sizes), 4))
            boxes = torch.minimum(boxes.clamp(min=0), self.limits)
            logits = answers["cls_logits"].reshape(-1, len(self.sizes), columns)
            if isinstance(model, SSD):
                return boxes, logits  # class 0 is background; the Softmax is for the few anchors that are kept
            if isinstance(model, FCOS):
                return boxes, (logits.sigmoid() * answers["bbox_ctrness"].sigmoid()).sqrt()
            return boxes, logits.sigmoid()

    return Detector().eval()


def _join(model: Any) -> torch.nn.Module:
    """Return backbone and head in one module, which answers what torchvision's head does.

    SSD300's has one convolution for both heads of a feature map. On its own, the one for boxes takes a quarter of the
    time of the one for classes, for a twentieth of the work (TensorRT 8.6, H100).
    """
    import torch
    from torchvision.models.detection.ssd import SSDFeatureExtractorVGG

    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            answers: dict[str, torch.Tensor] = self.model.head(list(self.model.backbone(images).values()))
            return answers

    class Ssd300(Joined):
        def __init__(self) -> None:
            super().__init__()
            self.merged = torch.nn.ModuleList()
            self.widths: list[tuple[int, int]] = []
            heads = (model.head.regression_head.module_list, model.head.classification_head.module_list)
            for boxes, classes in zip(*heads, strict=True):
                weight = torch.cat([boxes.weight, classes.weight]).detach()
                if not self.merged:  # the first reads conv4_3, which _find_vgg_features leaves unscaled
                    weight = weight * model.backbone.scale_weight.detach().view(1, -1, 1, 1)
                both = torch.nn.Conv2d(boxes.in_channels, len(weight), boxes.kernel_size, padding=boxes.padding)
                both.load_state_dict({"weight": weight, "bias": torch.cat([boxes.bias, classes.bias]).detach()})
                self.merged.append(both)
                self.widths.append((boxes.out_channels, classes.out_channels))

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            batch = images.shape[0]
            features = _find_vgg_features(self.model.backbone, images)
            rows: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
            # Reshape each part, not their concatenation: behind that, TensorRT 8.6 needs 2 ms for the best of each row.
            for layer, feature, widths in zip(self.merged, features, self.widths, strict=True):
                for part, width, found in zip(layer(feature).split(widths, dim=1), widths, rows, strict=True):
                    found.append(part.permute(0, 2, 3, 1).reshape(batch, -1, 4 * width // widths[0]))
            boxes, logits = (torch.cat(found, dim=1) for found in rows)
            return {"bbox_regression": boxes, "cls_logits": logits}

    return Ssd300() if isinstance(model.backbone, SSDFeatureExtractorVGG) else Joined()


def _find_vgg_features(backbone: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Do what SSD300's backbone does, but without F.normalize, and without the scales behind it.

    F.normalize expands the norm, which TensorRT 8.6 writes to memory, and its least norm is 0 in FP16.
    """
    found = [backbone.features(images)]
    for block in backbone.extra:
        found.append(block(found[-1]))
    norm = found[0].norm(dim=1, keepdim=True).clamp(min=_LEAST_NORM)
    return [found[0] / norm, *found[1:]]


def _look_up(spec: ModelSpec) -> tuple[Any, Recipe, list[str]]:
    """Return the architecture without memory for its weights, the recipe, and the names of the weights' own classes."""
    import torch

    _check_architecture(spec.registry_name)
    categories = list(choose_weights(spec).meta["categories"])
    with torch.device("meta"):
        outline = _build(spec, len(categories))
    recipe = resolve_recipe(spec, _read_recipe(outline.transform))
    _check_size(spec, outline.transform, recipe)
    return outline, recipe, categories[_count_background(outline) :]


def _check_architecture(name: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models.detection)
    usable = [one for one in known if "rcnn" not in one]
    if name in usable:
        return
    if name in known:
        msg = f"{name} looks twice: NMS and RoIAlign in its middle do not become a graph that takes every batch"
        raise SourceError(msg, hint=f"use a detector that looks once: {', '.join(usable)}")
    similar = near(name, usable)
    listed = f"did you mean {', '.join(similar)}?" if similar else f"known are {', '.join(usable)}"
    msg = f"torchvision has no detector {name!r}; {listed}"
    raise SourceError(msg, hint="use a name of that list, a checkpoint with `architecture`, or an ONNX file")


def _read_recipe(transform: Any) -> Recipe:
    """Return what the detector's own transform does, for a fixed size.

    SSD stretches. The others keep the image's proportions and fill with 0 behind the normalisation, the mean colour.
    """
    fixed = transform.fixed_size is not None
    size = tuple(reversed(transform.fixed_size)) if fixed else (_SIZE, _SIZE)
    return Recipe.model_validate(
        {
            "fit": "stretch" if fixed else "letterbox-corner",
            "resize": size,
            "crop": size,
            "interpolation": "linear",
            "fill": (0, 0, 0) if fixed else [round(255 * value) for value in transform.image_mean],
            "mean": transform.image_mean,
            "std": transform.image_std,
        }
    )


def _check_size(spec: ModelSpec, transform: Any, recipe: Recipe) -> None:
    """Refuse a size that torchvision does not run the network at.

    Raises:
        SourceError: SSD has one size; the others take multiples of what their smallest feature maps need.
    """
    height, width = recipe.crop
    own, unit = transform.fixed_size, transform.size_divisible
    msg = f"{spec.registry_name} does not take images of {height} x {width} pixels"
    if own is not None and (width, height) != tuple(own):
        hint = f"leave image_size and crop out for {own[1]} x {own[0]}"
        raise SourceError(msg, hint=hint, fields={"image_size": None})
    if height % unit or width % unit:
        hint = f"set image_size to multiples of {unit}, such as {_SIZE}"
        raise SourceError(msg, hint=hint, fields={"image_size": _SIZE})


def _count_background(model: Any) -> int:
    """Return how many columns of the scores come before those of the classes: SSD has one for background."""
    from torchvision.models.detection.ssd import SSD

    return int(isinstance(model, SSD))


def _build(spec: ModelSpec, columns: int) -> Any:
    """An untrained model with `columns` of scores; the initial weights follow from the seed alone."""
    import torch
    import torchvision

    name = spec.registry_name
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(spec.seed)
        return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=columns).eval()


def _read_checkpoint(spec: ModelSpec, outline: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Return the checkpoint's weights under the architecture's names, and how many classes its head has."""
    from generator.sources.checkpoint import align_state_dict, read_state_dict

    path = Path(spec.weights)
    wanted = outline.state_dict()
    aligned = align_state_dict(read_state_dict(path), wanted, path)
    state = {_name_now(name, wanted): tensor for name, tensor in aligned.items()}
    layer = f"{_find_class_layer(outline)}.weight"
    anchors = outline.anchor_generator.num_anchors_per_location()[0]
    return state, len(state.get(layer, wanted[layer])) // anchors - _count_background(outline)


def _name_now(name: str, wanted: Mapping[str, torch.Tensor]) -> str:
    """Return what a weight of RetinaNet's head is called since each convolution is in a block of its own."""
    before = re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.(weight|bias)", name)
    if before is None or name in wanted:
        return name
    return f"{before[1]}.{int(before[2]) // 2}.0.{before[3]}"


def _find_class_layer(model: Any) -> str:
    """Return the name of the convolution that answers the scores, the first one where each feature map has its own."""
    name = "head.classification_head" + (".module_list.0" if _count_background(model) else "")
    return f"{name}.{find_last_layer(model.get_submodule(name))}".rstrip(".")


def _load_checkpoint(spec: ModelSpec, columns: int, state: dict[str, torch.Tensor]) -> Any:
    import torch

    from generator.sources.checkpoint import load_state_dict

    path = Path(spec.weights)
    model = _build(spec, columns)
    # torchvision freezes the normalisation of pretrained backbones, which then counts no batches
    counts = {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}
    if spec.registry_name == _WITHOUT_EPSILON and not counts.keys() & state.keys():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.eps = 0.0
        if not is_own_file(spec, choose_weights(spec)):
            _LOG.warning(
                "%s is taken for one that was fine-tuned from torchvision's weights of COCO, whose normalisation has "
                "eps=0; export one that was trained from ImageNet's backbone to ONNX",
                path,
            )
    classes = columns - _count_background(model)
    named = f"{spec.registry_name} with {classes} classes"
    load_state_dict(model, {**counts, **state}, path, architecture=named, layer=_find_class_layer(model))
    return model
