"""Image files in, pixels out, decoded on the GPU. Runs inside Triton's Python backend, for `decode: gpu`.

All images of one execute are decoded together. What is taken and what is answered is what the step on the CPU takes and
answers, pixels within one level. These files lie beside this one:

    trtgen_preprocess.py   that step: it reads the configuration, and decodes what the GPU does not
    trtgen_runtime         the decoders on the GPU and, in threads, on the CPU

It needs what the step needs, and nvImageCodec, CV-CUDA and cuda-python.
"""

import json
import os

import numpy as np
import triton_python_backend_utils as pb_utils
import trtgen_preprocess
from trtgen_runtime.runtime.device import EngineError
from trtgen_runtime.runtime.gpu_images import open_gpu_images


class TritonPythonModel(trtgen_preprocess.TritonPythonModel):
    """What Triton calls: initialize once per instance, execute for every batch of requests."""

    def initialize(self, args):
        """Open the GPU and the libraries; raise where there is none, or where they do not fit each other."""
        super().initialize(args)
        groups = json.loads(args["model_config"]).get("instance_group", [])
        instances = sum(int(group.get("count", 1)) for group in groups)
        try:
            self.images = open_gpu_images(
                trtgen_preprocess,
                self.recipe,
                ordinal=int(args["model_instance_device_id"]),
                threads=max(1, len(os.sched_getaffinity(0)) // max(instances, 1)),
                warn=lambda words: pb_utils.Logger.log_warn(f"{args['model_instance_name']}: {words}"),
            )
        except EngineError as error:
            raise pb_utils.TritonModelException(f"unable to load model '{args['model_name']}': {error}") from error

    def execute(self, requests):
        """Return one response per request."""
        files = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy().reshape(-1) for request in requests]
        decoded = self.images.decode([data for one in files for data in one])
        geometry = np.array(decoded.geometry, np.float32).reshape(-1, 6)
        responses, start = [], 0
        for one in files:
            part = slice(start, start + len(one))
            responses.append(self._answer(decoded.pixels[part], geometry[part], decoded.errors[part]))
            start += len(one)
        return responses

    def finalize(self):
        """Give the GPU's memory back."""
        self.images.close()

    def _answer(self, pixels, geometry, errors):
        """Return the answer to one request; the stub copies the pixels from their place when execute has returned."""
        for index, error in enumerate(errors):
            if error is not None:
                message = f"{self.input}[{index}] of {len(errors)}: {error}"
                return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        answers = [pb_utils.Tensor(self.output, pixels)]
        if self.tells_geometry:
            answers.append(pb_utils.Tensor("GEOMETRY", geometry))
        return pb_utils.InferenceResponse(answers)
