"""Random weights of torchvision's detectors that find something, and not the same in every image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.sources.network import find_last_layer
from generator.sources.random_weights import calm_branches, draw_batch, set_statistics

if TYPE_CHECKING:
    import torch

    from generator.spec.recipe import Recipe

# As many drawn images as have so many pixels, but 2: a RetinaNet takes 5 s of one core for one of 640 x 640.
_PIXELS, _MOST_IMAGES = 400_000, 6
# Filters this near to their mean: with random ones each BatchNorm takes away what neighbouring pixels share and widens
# what is left. One level of noise then moves the logits of an SSDlite by 15 % of their range, with these by 1 %.
# Without BatchNorm, noise of 1 % of each convolution's deviation costs an SSD300 1.6 instead of 7 % of its boxes.
_SMOOTHNESS, _SMOOTHNESS_WITHOUT_NORMS = 0.7, 0.3
# Standard deviations of the last layers' outputs.
_LOGITS, _CENTRENESS = 2.0, 1.0
# Boxes are so much smaller than their anchors that neighbours of one class hardly overlap: else NMS keeps one of many
# that are nearly equal, and rounding decides which. Centres move by less than they are from the edge, as a share of
# the anchor's size: boxes beyond the edge have no area, and no rounded one matches them.
_SHRINKAGE, _MOST_MOVED, _MOST_GROWN = 0.3, 0.1, 0.5
# FCOS answers distances from a place to four edges, in strides; those below 0 are cut off.
_DISTANCE, _MOST_FARTHER = 1.0, 0.5
# So many anchors of the median image reach this score. In other images more do than are answered, and which one is the
# last, rounding decides.
_CONFIDENT, _SCORE = 25, 0.35


def calibrate_detector(model: Any, recipe: Recipe) -> None:
    """Set BatchNorm statistics and the last layers from drawn images, in place.

    As built, a detector answers the same score for every anchor, class and image, and its boxes are the anchors.
    """
    import torch

    height, width = recipe.crop
    count = min(max(_PIXELS // (height * width), 2), _MOST_IMAGES)
    # other images for the last layers: those that the statistics are of look tamer than any other
    batch = draw_batch(recipe, 2 * count)
    known, unseen = batch[:count], batch[count:]
    with torch.no_grad():
        calm_branches(model.backbone)
        _smooth_filters(model.backbone)
        set_statistics(model.backbone, known)
        if _has_norms(model.head):  # else the backbone would run for nothing
            set_statistics(model.head, list(model.backbone(known).values()))
        features = list(model.backbone(unseen).values())
        _spread_outputs(model, features)
        _shift_scores(model, features)


def _has_norms(module: Any) -> bool:
    import torch

    return any(isinstance(layer, torch.nn.BatchNorm2d) for layer in module.modules())


def _smooth_filters(backbone: Any) -> None:
    """Make the filters of a backbone look at averages rather than at single pixels."""
    import torch

    smoothness = _SMOOTHNESS if _has_norms(backbone) else _SMOOTHNESS_WITHOUT_NORMS
    for layer in backbone.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.lerp_(layer.weight.mean(dim=(2, 3), keepdim=True), smoothness)


def _spread_outputs(model: Any, features: list[torch.Tensor]) -> None:
    """Give what the head answers, over these images and all anchors, a mean for each channel and a deviation."""
    import math

    import torch

    boxes = model.head.regression_head
    deviations: dict[Any, float] = dict.fromkeys(_find_ends(model.head.classification_head), _LOGITS)
    means: dict[Any, Any] = {}
    most: dict[Any, Any] = {}
    if hasattr(boxes, "bbox_ctrness"):
        deviations[boxes.bbox_ctrness] = _CENTRENESS
        means[boxes.bbox_reg], most[boxes.bbox_reg] = _DISTANCE, torch.full((4,), _MOST_FARTHER)
    else:
        units, smaller = torch.tensor(model.box_coder.weights), math.log(_SHRINKAGE)
        for layer in _find_ends(boxes):
            count = layer.out_channels // 4
            means[layer] = (units * torch.tensor([0, 0, smaller, smaller])).repeat(count)
            most[layer] = (units * torch.tensor([_MOST_MOVED] * 2 + [_MOST_GROWN] * 2)).repeat(count)
    layers = [*deviations, *most]
    seen: dict[Any, list[torch.Tensor]] = {layer: [] for layer in layers}
    hooks = [
        layer.register_forward_hook(lambda of, _, output: seen[of].append(output.transpose(0, 1).flatten(1)))
        for layer in layers
    ]
    model.head(features)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        values = torch.cat(seen[layer], dim=1)
        centre = values.mean(dim=1)
        centred = values - centre[:, None]
        scale = most[layer] / centred.abs().amax(dim=1) if layer in most else deviations[layer] / centred.std()
        scale = scale.expand(layer.out_channels)
        layer.weight.mul_(scale.reshape(-1, 1, 1, 1))
        layer.bias.copy_((layer.bias - centre) * scale + means.get(layer, 0.0))


def _find_ends(head: Any) -> list[Any]:
    """Return the convolutions that a head ends in: one, or one for each feature map."""
    return [block.get_submodule(find_last_layer(block)) for block in getattr(head, "module_list", [head])]


def _shift_scores(model: Any, features: list[torch.Tensor]) -> None:
    """Raise or lower all scores alike, so that as many anchors as are wanted are confident."""
    import math

    from torchvision.models.detection.ssd import SSD

    answers = model.head(features)
    logits = answers["cls_logits"]
    ends = _find_ends(model.head.classification_head)
    # how far each anchor's best score is from being confident; infinite where no shift reaches it
    if isinstance(model, SSD):  # softmax, and the first of the columns is background
        background, classes = logits[..., 0], logits[..., 1:].exp()
        room = (classes.amax(dim=2) - _SCORE * classes.sum(dim=2)).clamp(min=0)
        needed = math.log(_SCORE) + background - room.log()
        for end in ends:
            end.bias[:: logits.shape[2]].sub_(_nth(needed))
        return
    reached = (
        _SCORE**2 / answers["bbox_ctrness"].sigmoid()[..., 0]
        if "bbox_ctrness" in answers
        else logits.new_tensor(_SCORE)
    )
    needed = reached.clamp(max=1).logit() - logits.amax(dim=2)
    ends[0].bias.add_(_nth(needed))


def _nth(needed: torch.Tensor) -> torch.Tensor:
    """Return the shift that makes as many anchors of the median image confident as are wanted."""
    return needed.kthvalue(min(_CONFIDENT, needed.shape[1]), dim=1).values.median()
