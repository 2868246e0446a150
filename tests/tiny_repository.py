"""A model repository small enough to build in a blink, whose right answer is known: an image's dominant colour.

`tiny` (ensemble) = `tiny_preprocess` (Python backend: Pillow) -> `tiny_classifier` (ONNX): the same names, tensors and
links as the repositories that trtgen makes, with 8x8 pixels and three classes. Other heads than `softmax`: see `HEADS`.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

LABELS = ("red", "green", "blue")
HEADS = {
    "softmax": LABELS,  # probabilities, the least likely two above 0.01
    "sure": LABELS,  # probabilities, the first above 0.99
    "sigmoid": LABELS,  # independent ones: a noisy picture has a bit of each colour
    "binary": ("red",),  # one probability; the ensemble names what is not red
    "flawed": LABELS,  # scores, NaN for a blue image and minus infinity for a green one
}
SIDE = 8
STARTED = "started"  # the file that a delayed preprocess leaves in its model directory when a request has reached it

_PREPROCESS = """\
import io
import json
import pathlib
import time

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.delay_s = float(parameters["delay_s"]["string_value"])
        self.started = pathlib.Path(args["model_repository"]) / "started"

    def execute(self, requests):
        if self.delay_s:
            self.started.touch()
            time.sleep(self.delay_s)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        pixels = []
        for index, data in enumerate(images):
            try:
                image = Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8))
            except (OSError, ValueError):
                message = f"image {index} of {len(images)} cannot be decoded"
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                )
            pixels.append(np.asarray(image, dtype=np.uint8))
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", np.stack(pixels))])
"""

_PREPROCESS_CONFIG = """\
name: "{name}_preprocess"
backend: "python"
max_batch_size: {max_batch_size}
input [ {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "PIXELS" data_type: TYPE_UINT8 dims: [ {single}8, 8, 3 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters [ {{ key: "delay_s" value {{ string_value: "{delay_s}" }} }} ]
"""

_CLASSIFIER_CONFIG = """\
name: "{name}_classifier"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [ {{ name: "PIXELS" data_type: TYPE_UINT8 dims: [ {single}8, 8, 3 ] }} ]
output [ {{ name: "PROBABILITIES" data_type: TYPE_FP32 dims: [ {single}{classes} ] label_filename: "labels.txt" }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
{batching}
"""

_ENSEMBLE_CONFIG = """\
name: "{name}"
platform: "ensemble"
max_batch_size: {max_batch_size}
input [ {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "PROBABILITIES" data_type: TYPE_FP32 dims: [ {single}{classes} ] label_filename: "labels.txt" }} ]
{parameters}
ensemble_scheduling {{
  step [
    {{
      model_name: "{name}_preprocess"
      model_version: -1
      input_map {{ key: "IMAGE" value: "IMAGE" }}
      output_map {{ key: "PIXELS" value: "PIXELS" }}
    }},
    {{
      model_name: "{name}_classifier"
      model_version: -1
      input_map {{ key: "PIXELS" value: "PIXELS" }}
      output_map {{ key: "PROBABILITIES" value: "PROBABILITIES" }}
    }}
  ]
}}
"""


def build_tiny_repository(
    root: Path, *, name: str = "tiny", max_batch_size: int = 4, delay_s: float = 0.0, head: str = "softmax"
) -> Path:
    """Write the ensemble `name` and its two members below `root` and return `root`.

    Args:
        root: The model repository; made when absent. A second call with another name adds a second ensemble.
        name: The ensemble's name; the members are called `<name>_preprocess` and `<name>_classifier`.
        max_batch_size: The limit of all three models; 0 for models that take one image and no batch axis.
        delay_s: How long the preprocess model waits before it answers; it first touches the file `STARTED`.
        head: What the classifier answers, one of `HEADS`.
    """
    negative = 'parameters { key: "negative_label" value { string_value: "not red" } }'
    values = {
        "name": name,
        "max_batch_size": max_batch_size,
        "delay_s": delay_s,
        "single": "" if max_batch_size else "1, ",
        "batching": "dynamic_batching { }" if max_batch_size else "",
        "classes": len(HEADS[head]),
        "parameters": negative if head == "binary" else "",
    }
    for model, template in (
        (name, _ENSEMBLE_CONFIG),
        (f"{name}_preprocess", _PREPROCESS_CONFIG),
        (f"{name}_classifier", _CLASSIFIER_CONFIG),
    ):
        (root / model / "1").mkdir(parents=True)
        (root / model / "config.pbtxt").write_text(template.format(**values))
        if not model.endswith("_preprocess"):
            (root / model / "labels.txt").write_text("\n".join(HEADS[head]) + "\n")
    (root / f"{name}_preprocess" / "1" / "model.py").write_text(_PREPROCESS)
    (root / f"{name}_classifier" / "1" / "model.onnx").write_bytes(make_colour_classifier(head))
    return root


@contextlib.contextmanager
def serve(root: Path) -> Iterator[dict[str, str]]:
    """Run a real tritonserver on `root`; yield `host:port` for `grpc`, `http` and `metrics`."""
    from generator.server.embedded import EmbeddedServer

    with EmbeddedServer(root) as server:
        urls = {"grpc": server.grpc_url, "http": server.http_url, "metrics": server.metrics_url}
        yield {name: url.rpartition("://")[2].partition("/")[0] for name, url in urls.items()}


def make_colour_classifier(head: str = "softmax") -> bytes:
    """An ONNX graph: PIXELS uint8 [batch, 8, 8, 3] -> mean per channel -> head -> PROBABILITIES [batch, classes]."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    node = helper.make_node
    nodes = [
        node("Cast", ["PIXELS"], ["values"], to=TensorProto.FLOAT),
        node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        node("Mul", ["means", "scale"], ["logits"]),
        *{
            "softmax": [node("Softmax", ["logits"], ["PROBABILITIES"], axis=1)],
            "sure": [
                node("Mul", ["logits", "three"], ["large"]),
                node("Softmax", ["large"], ["PROBABILITIES"], axis=1),
            ],
            "sigmoid": [node("Sigmoid", ["logits"], ["PROBABILITIES"])],
            "binary": [node("MatMul", ["logits", "red"], ["margin"]), node("Sigmoid", ["margin"], ["PROBABILITIES"])],
            "flawed": [
                node("MatMul", ["logits", "not_blue"], ["above_blue"]),
                node("Sqrt", ["above_blue"], ["no_blue"]),
                node("MatMul", ["logits", "red"], ["above_green"]),
                node("Relu", ["above_green"], ["positive"]),
                node("Log", ["positive"], ["no_green"]),
                node("Sum", ["logits", "no_blue", "no_green"], ["PROBABILITIES"]),
            ],
        }[head],
    ]
    constants: dict[str, NDArray[Any]] = {
        "axes": np.array([1, 2], np.int64),
        "scale": np.array(1 / 32, np.float32),
        "three": np.array(3, np.float32),
        "red": np.array([[1], [-1], [0]], np.float32),
        "not_blue": np.array([[1], [1], [-2]], np.float32),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("PROBABILITIES", TensorProto.FLOAT, ["batch", len(HEADS[head])])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def make_image(label: str, *, size: tuple[int, int] = (40, 30), encoding: str = "JPEG", seed: int = 0) -> bytes:
    """Encode a noisy picture in which the colour `label` dominates."""
    import numpy as np
    from PIL import Image

    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 90, (height, width, 3))
    pixels[..., LABELS.index(label)] += 140
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, encoding)
    return stream.getvalue()
