"""What values the tensors of a graph take: the graph is run on images with the tensors as additional outputs.

onnxruntime's own calibrators keep every activation of every image; here one batch is in memory at a time, and what
stays of it is a histogram of 4096 counts per tensor.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

BINS = 4096
# Activations of ResNet-50's size take 35 MB an image.
_BATCH = 4


@dataclass(slots=True)
class Histogram:
    """The absolute values of a tensor: `counts` of BINS equal bins between 0 and `top`, and the exact largest value.

    `top` is a power of two and doubles as larger values come, so the result does not depend on how images are batched.
    """

    largest: float = 0.0
    top: float = 0.0
    finite: bool = True
    counts: NDArray[np.int64] | None = field(default=None)

    def add(self, values: NDArray[Any], *, count: bool = True) -> None:
        """Count the values of one batch."""
        import numpy as np

        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):
            self.finite = False
            return
        self.largest = max(self.largest, largest)
        if not count or largest == 0:
            return
        if self.counts is None:
            self.top = float(2.0 ** np.ceil(np.log2(largest)))
            self.counts = np.zeros(BINS, np.int64)
        while self.top < largest:
            pairs = self.counts.reshape(BINS // 2, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
            self.top *= 2
        scaled = np.abs(values.reshape(-1)) * np.float32(BINS / self.top)
        bins = np.minimum(scaled.astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)


def collect_histograms(
    model: onnx.ModelProto, tensors: Sequence[str], pixels: NDArray[np.uint8], *, count: bool = True
) -> dict[str, Histogram]:
    """Run all images through the graph and return what values `tensors` took.

    With `count` false only the largest and lowest values are taken, which is several times faster.

    Raises:
        ExportError: onnxruntime cannot run the graph on these pixels.
    """
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (state.Fail, state.InvalidGraph, state.InvalidArgument, state.NotImplemented, state.RuntimeException)
    names = list(dict.fromkeys(tensors))
    outputs = {tensor.name for tensor in model.graph.output}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in names:
        if name not in outputs:
            probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options, run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = run_options.log_severity_level = 4
    found = {name: Histogram() for name in names}
    with tempfile.TemporaryDirectory(prefix="trtgen-precision-") as folder:
        path = Path(folder) / "observed.onnx"
        large = probe.ByteSize() > 1_900_000_000
        onnx.save(probe, path, save_as_external_data=large)
        del probe
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for start in range(0, len(pixels), _BATCH):
                feed = {session.get_inputs()[0].name: pixels[start : start + _BATCH]}
                for name, values in zip(names, session.run(names, feed, run_options), strict=True):
                    found[name].add(values, count=count)
        except failures as error:
            msg = f"onnxruntime cannot run the graph on pixels {list(pixels.shape)}: {' '.join(str(error).split())}"
            raise ExportError(msg, hint="give pixels of the size that the graph takes: (N, H, W, 3), uint8") from error
    return found
