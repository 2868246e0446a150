"""A detector in PyTorch on a GPU: FP16, channels-last, a CUDA graph; top-K included, as in the plan.

    python -m benchmarks.torch_detector ssd300_vgg16 --batches 1,8,32

UINT8 NHWC pixels on the device, cast, normalised and permuted there, the network with its decoding (FP16), the best
1000 scores of every image and their boxes, FP32 out. Prints JSON: images per second by batch, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch

from generator.sources import load_network
from generator.spec.file import make_spec

_BEFORE_CAPTURE = 5
_REPLAYS = 50
_ROUNDS = 7


def measure(network: Any, batch: int) -> float:
    """Return the images per second of a CUDA graph of the whole step."""
    recipe = network.recipe
    scale, shift = (
        torch.from_numpy(values).to("cuda", torch.float16).reshape(1, -1, 1, 1)
        for values in recipe.as_scale_and_shift()
    )
    module = network.module.to("cuda", torch.float16).to(memory_format=torch.channels_last)
    # as torchvision does it, not as the graph for TensorRT
    model = module.answer.model
    module.answer.forward = lambda images: model.head(list(model.backbone(images).values()))
    pixels = torch.randint(0, 256, (batch, *recipe.shape), dtype=torch.uint8, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        images = pixels.permute(0, 3, 1, 2).to(torch.float16)
        boxes, scores = module(torch.addcmul(shift, images, scale))
        if "logits" in network.outputs:
            scores = scores.softmax(dim=2)[..., 1:]
        values, places = scores.flatten(1).float().topk(1000)
        rows = (places // scores.shape[2]).unsqueeze(2).expand(-1, -1, 4)
        return boxes.float().gather(1, rows), values, places % scores.shape[2]

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(_BEFORE_CAPTURE):
            step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        rates = []
        for _ in range(_ROUNDS):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            for _ in range(_REPLAYS):
                graph.replay()
            last.record()
            stream.synchronize()
            rates.append(batch * _REPLAYS / first.elapsed_time(last) * 1000)
    return float(statistics.median(rates))


def main() -> None:
    """Measure each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batches", default="1,8,32")
    arguments = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    network = load_network(make_spec([arguments.name], weights="random")[0])
    rates = {batch: measure(network, batch) for batch in map(int, arguments.batches.split(","))}
    print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "images_per_s": rates}))


if __name__ == "__main__":
    main()
