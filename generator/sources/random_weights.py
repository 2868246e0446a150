"""Random weights that answer differently for different images, so that the gate has something to compare."""

from __future__ import annotations

import io
import operator
from typing import TYPE_CHECKING, Any

from generator.sources.network import find_last_layer

if TYPE_CHECKING:
    import torch

    from generator.spec.recipe import Recipe

# Enough for stable statistics per channel, and 3 s of ResNet-50 on two cores.
_IMAGES = 24
_IMAGES_SEED = 7
# Residual branches at full strength make an untrained ResNet-50 chaotic: one level in 0.5 % of the pixels then turns
# its scores by 11 degrees. At this scale, by less than one. Squeeze-excitation gates multiply: at full strength an
# untrained EfficientNet-B0 gives some images scores 80 times as large as others, and FP16 turns one's by 5 degrees.
_BRANCH_SCALE = 0.2


def calibrate(module: torch.nn.Module, recipe: Recipe, *, seed: int, head: str | None = None) -> None:
    """Set BatchNorm statistics and the last layer, or the one called `head`, from drawn images, in place.

    An untrained network is degenerate: with the initial statistics torchvision's EfficientNet answers 1/1000 for every
    class and image, and its ResNet-50 the same class for all; a vision transformer's head is all zeros. BatchNorm gets
    the statistics of the drawn images, and the head is shifted and scaled so that over these images every class has
    mean 0 and the scores have standard deviation 2. A head without a bias (MaxViT) loses the direction of the mean.
    """
    import torch

    batch = draw_batch(recipe, _IMAGES)
    last: Any = module.get_submodule(head or find_last_layer(module))
    with torch.no_grad():
        if not last.weight.any():
            generator = torch.Generator().manual_seed(seed)
            last.weight.normal_(0, 0.02, generator=generator)
        calm_branches(module)
        set_statistics(module, batch)
        features, scores = _run_head(last, module, batch)
        mean = scores.mean(dim=0)
        scale = 2 / (scores - mean).std()
        if last.bias is None:
            typical = features.mean(dim=0)
            last.weight.sub_(torch.outer(mean, typical / typical.square().sum()))
        else:
            last.bias.copy_((last.bias - mean) * scale)
        last.weight.mul_(scale)


def draw_batch(recipe: Recipe, count: int) -> torch.Tensor:
    """Return drawn images as the network's input, always the same ones."""
    import numpy as np
    import torch
    from PIL import Image

    from generator.demo.draw import draw_set
    from generator.images.training_pixels import make_pixels

    pixels = make_pixels(recipe)
    images = [pixels(Image.open(io.BytesIO(drawn.jpeg))) for drawn in draw_set(count, seed=_IMAGES_SEED)]
    return torch.from_numpy(recipe.normalise(np.stack(images)))


def calm_branches(module: torch.nn.Module) -> None:
    """Scale residual branches and gates down, in place."""
    for end in (*_ends_of_branches(module), *_gates(module)):
        end.weight.mul_(_BRANCH_SCALE)


def _ends_of_branches(module: torch.nn.Module) -> list[Any]:
    """The BatchNorm layers at the end of residual branches: those whose output is added to the block's input."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from torchvision.ops import StochasticDepth

    class Tracer(torch.fx.Tracer):
        """Takes timm's BatchNorm, which holds its activation, for one layer, too."""

        def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    try:
        traced = Tracer().trace(module)
    except (torch.fx.proxy.TraceError, AttributeError, NotImplementedError, TypeError, ValueError, RuntimeError):
        return []
    layers = dict(module.named_modules())
    passing = (StochasticDepth, torch.nn.Dropout, torch.nn.Identity)
    found = []
    for node in traced.nodes:
        if node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add):
            branch = node.args[0]
            while branch.op == "call_module" and isinstance(layers[branch.target], passing):
                branch = branch.args[0]
            if branch.op == "call_module" and isinstance(layers[branch.target], _BatchNorm):
                found.append(layers[branch.target])
    return found


def _gates(module: torch.nn.Module) -> list[Any]:
    """The layers whose output a squeeze-excitation turns into the factors of its channels."""
    from torchvision.ops import SqueezeExcitation

    return [layer.fc2 for layer in module.modules() if isinstance(layer, SqueezeExcitation)]


def set_statistics(module: torch.nn.Module, batch: Any) -> None:
    """Set BatchNorm statistics in place, from one run with everything else (dropout) as when serving."""
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: after one batch, exactly its statistics
        norm.train()
    module(batch)
    module.eval()


def _run_head(layer: Any, module: torch.nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run `module` and return what `layer` took and gave, (N, channels), averaged over the image if these are maps."""
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _layer, inputs, output: seen.extend((inputs[0], output)))
    try:
        module(batch)
    finally:
        handle.remove()
    features, scores = (values.flatten(2).mean(dim=2) if values.dim() > 2 else values for values in seen)
    return features, scores
