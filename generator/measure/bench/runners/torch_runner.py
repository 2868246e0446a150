"""A torchvision network in PyTorch: eager FP32, or FP16 in channels-last with a CUDA graph for each input set.

The measured region is what a plan of ours does: uint8 NHWC pixels on the device, cast, normalised and permuted there,
the network, softmax, FP32 out. Imports torch, torchvision and numpy only.
"""

# ruff: noqa: D102 - the methods are described in loop.Runner

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
import torchvision

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# PyTorch's documentation asks for a few iterations on a side stream before a capture; they also let cuDNN choose.
_BEFORE_CAPTURE = 5
# How far a graph's count of numbers may be from the network's: BatchNorm folded or not, scales, constants of shapes.
_SAME_COUNT = (0.8, 1.25)


def open_runner(settings: dict[str, Any]) -> TorchRunner:
    """Build the network that `settings` describe and place it on the device.

    Keys: model, classes, device ("cuda" or "cpu"), precision ("fp32" or "fp16"), channels_last, cuda_graph, state_dict
    (a path or None), seed, height, width; `graph_weights`, the count of numbers in the file `graph`, 0 if not known.

    Raises:
        ValueError: That count is far from the network's, so that the two are different networks.
    """
    return TorchRunner(settings)


class TorchRunner:
    """See `loop.Runner`."""

    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, OSError)

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._cuda = settings["device"] == "cuda"
        if self._cuda and not torch.cuda.is_available():
            msg = f"PyTorch {torch.__version__} finds no GPU"
            raise RuntimeError(msg)
        self.clock = "device" if self._cuda else "host"
        self.copies_clock = "device" if self._cuda else ""
        self._device = torch.device(settings["device"])
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16}[settings["precision"]]
        self._format = torch.channels_last if settings["channels_last"] else torch.contiguous_format
        if self._cuda:
            torch.cuda.set_stream(torch.cuda.Stream())  # type: ignore[no-untyped-call] # for all that follows
        torch.backends.cudnn.benchmark = True  # the fastest kernels for the one shape of each batch
        mean, std = _normalisation(settings["model"])
        self._scale = self._channels([1 / (255 * value) for value in std])
        self._shift = self._channels([-average / value for average, value in zip(mean, std, strict=True)])
        self._network = _load_network(settings).to(self._device, self._dtype)
        self._network.to(memory_format=self._format)
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._host_input = self._host_output = torch.empty(0)

    def about(self) -> dict[str, Any]:
        found = {"torch": torch.__version__, "torchvision": torchvision.__version__, **self._settings}
        if self._cuda:
            found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
            found["cudnn_tf32"] = torch.backends.cudnn.allow_tf32  # PyTorch's own setting: convolutions yes,
            found["matmul_tf32"] = torch.backends.cuda.matmul.allow_tf32  # matrix products no
        else:
            found["threads"] = torch.get_num_threads()
        return found

    @torch.inference_mode()
    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        self._inputs = [torch.from_numpy(pixels).to(self._device) for pixels in sets]
        self._outputs = [self._forward(pixels) for pixels in self._inputs]
        if self._cuda:
            self._host_input = self._inputs[0].cpu().pin_memory()
            self._host_output = self._outputs[0].cpu().pin_memory()
        if self._settings["cuda_graph"]:
            self._capture()
        self.synchronize()

    def enqueue(self, index: int) -> None:
        if self._graphs:
            self._graphs[index].replay()
        else:
            self._outputs[index] = self._forward(self._inputs[index])

    def synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()

    @torch.inference_mode()
    def enqueue_with_copies(self, index: int) -> None:
        self._inputs[index].copy_(self._host_input, non_blocking=True)
        self.enqueue(index)
        self._host_output.copy_(self._outputs[index], non_blocking=True)

    def make_event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def record(self, event: torch.cuda.Event) -> None:
        event.record()

    def elapsed_ms(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        return float(first.elapsed_time(last))

    @torch.inference_mode()
    def scores(self) -> NDArray[np.float32]:
        self._outputs[0].fill_(torch.nan)
        self.enqueue(0)
        self.synchronize()
        result: NDArray[np.float32] = self._outputs[0].float().cpu().numpy()
        return result

    def release(self) -> None:
        self._graphs, self._inputs, self._outputs = [], [], []
        self._host_input = self._host_output = torch.empty(0)
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()

    def close(self) -> None:
        self.release()

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # NHWC permuted is NCHW in channels-last already; `contiguous` moves memory only for the other format
        images = pixels.permute(0, 3, 1, 2).to(self._dtype).contiguous(memory_format=self._format)
        normal = torch.addcmul(self._shift, images, self._scale)
        return torch.softmax(self._network(normal), dim=1, dtype=torch.float32)

    def _capture(self) -> None:
        """Record a graph for each input set; all of them share one pool for what lies between input and output."""
        for _ in range(_BEFORE_CAPTURE):
            self._forward(self._inputs[0])
        self._outputs = []
        self.synchronize()
        pool = torch.cuda.graph_pool_handle()
        for pixels in self._inputs:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
                self._outputs.append(self._forward(pixels))
            self._graphs.append(graph)

    def _channels(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=self._dtype, device=self._device).view(1, 3, 1, 1)


def _load_network(settings: dict[str, Any]) -> torch.nn.Module:
    """The architecture in evaluation mode, with the weights of the state dict, else random ones from the seed."""
    torch.manual_seed(settings["seed"])
    network: torch.nn.Module = torchvision.models.get_model(
        settings["model"], weights=None, num_classes=settings["classes"]
    ).eval()
    _check_count(network, settings)
    path = settings["state_dict"]
    if path is None:
        _set_statistics(network, settings["height"], settings["width"])
    elif path.endswith(".safetensors"):
        from safetensors.torch import load_file

        network.load_state_dict(load_file(path))
    else:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def _check_count(network: torch.nn.Module, settings: dict[str, Any]) -> None:
    """Refuse a network that cannot be the graph's."""
    expected = settings.get("graph_weights", 0)
    # auxiliary heads (aux1, AuxLogits) serve training and are in no graph
    named = network.named_parameters()
    count = sum(one.numel() for name, one in named if not name.lower().startswith("aux"))
    least, most = _SAME_COUNT
    if expected and not least <= expected / count <= most:
        what = f"torchvision's {settings['model']} with {settings['classes']} classes has {count:,} parameters"
        msg = f"{what}, {settings['graph']} holds {expected:,} numbers: they are different networks"
        raise ValueError(msg)


@torch.no_grad()
def _set_statistics(network: torch.nn.Module, height: int, width: int) -> None:
    """Give BatchNorm the statistics of a random batch: with the initial ones activations may leave FP16's range."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.train()
    if norms:
        network(torch.randn(4, 3, height, width))
    network.eval()


def _normalisation(model: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with which torchvision's own weights of `model` were trained."""
    weights = list(torchvision.models.get_model_weights(model))
    transforms: Any = weights[0].transforms() if weights else None
    if hasattr(transforms, "mean") and hasattr(transforms, "std"):
        return tuple(transforms.mean), tuple(transforms.std)
    return _IMAGENET
