"""Image files in, answers out: decoding and the network in one process. Runs inside Triton's Python backend.

All images of one execute are decoded together, then run as one batch. IMAGE is BYTES [N, 1], as for the preprocessing
step of an ensemble, and what is answered is what the ensemble would answer. Nothing of that is written here anew; these
files lie beside this one, each a copy of what serves an ensemble:

    trtgen_preprocess.py            the preprocessing step: what an image is, limits, resizing and cropping
    trtgen_onnxruntime.py or        the pip server's backend, which runs the network: model.onnx on the CPU,
    trtgen_tensorrt.py              model.plan on the GPU
    trtgen_postprocess.py           for detectors: from the network's rows to the boxes that count
    trtgen_runtime                  decoding in threads; a plan on a GPU

Read from config.pbtxt: what these files read there; `network_backend`, and `network_input`, what the network calls its
input; `profile`, the numbers of the plan's profiles, which Triton refuses in instance_group of a model that is no
plan's own; `decode`, gpu where images are decoded on the GPU of the plan; `decode_threads`, how many images an instance
decodes at once on the CPU: without it, the usable cores shared out among the instances.

What passes from decoding to the network, PIXELS and GEOMETRY, and before post-processing the network's rows, can be
asked for, too: `trtgen verify` does. It is answered to requests that ask for nothing else.

Each request is answered for itself: one with an image that cannot be decoded gets INVALID_ARG with the image's index
and the reason, the others of the same execution get their answers.
"""

import functools
import importlib
import json
import os
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
import trtgen_preprocess
from trtgen_runtime.runtime.cpu_images import CpuImages

PIXELS, GEOMETRY = "PIXELS", "GEOMETRY"


class OnnxNetwork:
    """The graph in onnxruntime, as trtgen's backend of that name opens it."""

    def __init__(self, args):
        self.backend = importlib.import_module("trtgen_onnxruntime")
        self.errors = self.backend._RUN_ERRORS  # noqa: SLF001 - our own file
        self.model = self.backend.TritonPythonModel()
        self.model.initialize(args)
        (self.input,) = self.model.input_shapes

    def run(self, pixels, _begun):
        """Return the outputs by their names, a row per image."""
        outputs = self.model.session.run(self.model.outputs, {self.input: pixels})
        return dict(zip(self.model.outputs, outputs, strict=True))

    def to_host(self, pixels):
        """Return the pixels as a numpy array."""
        return pixels


class PlanNetwork:
    """The plan on the GPU, as trtgen's backend for the pip server opens it."""

    def __init__(self, args):
        self.backend = importlib.import_module("trtgen_tensorrt")
        self.errors = (self.backend.EngineError,)
        self.model = self.backend.TritonPythonModel()
        self.model.initialize(args)

    def begin(self, pixels, first, total):
        """Start on some of the pixels on the GPU that `run` will be given; say whether it was done."""
        return self.model.rows.begin(pixels, first, total)

    def run(self, pixels, begun):
        """Return the outputs by their names, a row per image; the next run writes over them."""
        names = [tensor.name for tensor in self.model.engine.outputs]
        return dict(zip(names, self.model.rows.run([[pixels]], begun=begun), strict=True))

    def to_host(self, pixels):
        """Return the pixels, which may lie on the GPU, as a numpy array."""
        on_gpu = importlib.import_module("trtgen_runtime.runtime.gpu_array")
        return on_gpu.to_host(self.model.device, pixels) if on_gpu.is_on_gpu(pixels) else pixels


NETWORKS = {"onnxruntime": OnnxNetwork, "tensorrt": PlanNetwork}


class Rows:
    """The rows of one request, as post-processing gets them as a model of its own."""

    def __init__(self, tensors):
        self._tensors = tensors

    def inputs(self):
        """Return its input tensors."""
        return self._tensors


class TritonPythonModel:
    """What Triton calls: initialize once per instance, execute for every batch of requests."""

    def initialize(self, args):
        """Open the network and start the threads that decode."""
        config = json.loads(args["model_config"])
        self.name = args["model_name"]
        threads = count_threads(config, self.name)
        step = trtgen_preprocess.TritonPythonModel()
        step.initialize(args)
        self.input = step.input
        self.finish = open_postprocessing(args)
        network = make_network_config(config, self.finish)
        self.network = NETWORKS[read_text(config, "network_backend")]({**args, "model_config": json.dumps(network)})
        self.decoder, self.begin = CpuImages(trtgen_preprocess, step.recipe, threads=threads), None
        if read_text(config, "decode", "cpu") == "gpu":
            warn = functools.partial(log_warning, args["model_instance_name"])
            self.decoder = open_gpu_decoder(self.network, step.recipe, self.decoder, warn)
            self.begin = self.network.begin
        rows = [tensor["name"] for tensor in network["output"]] if self.finish else []
        self.inner = {PIXELS, GEOMETRY, *rows}
        pb_utils.Logger.log_info(f"{args['model_instance_name']}: images are decoded in {threads} threads")

    def execute(self, requests):
        """Return one response per request."""
        files = [pb_utils.get_input_tensor_by_name(request, self.input).as_numpy().reshape(-1) for request in requests]
        wanted = [set(request.requested_output_names()) for request in requests]
        images = [data for one in files for data in one]
        begin = self.begin if any(names - {PIXELS, GEOMETRY} for names in wanted) else None
        decoded = self.decoder.decode(images, begin) if begin else self.decoder.decode(images)
        parts, start = [], 0
        for one in files:
            parts.append(slice(start, start + len(one)))
            start += len(one)
        bad = [self._find_error(decoded.errors[part]) for part in parts]
        values = {}
        if any(PIXELS in names and names <= self.inner for names in wanted):
            values[PIXELS] = self.network.to_host(decoded.pixels)
        values[GEOMETRY] = np.array(decoded.geometry, np.float32).reshape(-1, 6)
        problem = None
        if any(why is None and names - {PIXELS, GEOMETRY} for why, names in zip(bad, wanted, strict=True)):
            try:
                values.update(self.network.run(decoded.pixels, decoded.begun))
            except self.network.errors as error:
                problem = f"the network of model '{self.name}' failed in a batch of {len(requests)} requests: {error}"
        responses = []
        for part, why, names in zip(parts, bad, wanted, strict=True):
            if why is not None:
                responses.append(make_error(why, pb_utils.TritonError.INVALID_ARG))
            elif problem is not None and names - {PIXELS, GEOMETRY}:
                responses.append(make_error(problem, pb_utils.TritonError.INTERNAL))
            else:
                responses.append(self._respond({name: rows[part] for name, rows in values.items()}, names))
        return responses

    def finalize(self):
        """End the threads and release the network."""
        self.decoder.close()
        self.network.model.finalize()

    def _find_error(self, errors):
        """Return what is wrong with the first bad image of a request, or None."""
        for index, error in enumerate(errors):
            if error is not None:
                return f"{self.input}[{index}] of {len(errors)}: {error}"
        return None

    def _respond(self, rows, names):
        """Return the answer to one request from its rows; what it did not ask for, the stub leaves out."""
        if names <= self.inner:
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, rows[name]) for name in names])
        tensors = [pb_utils.Tensor(name, values) for name, values in rows.items() if name != PIXELS]
        if self.finish:
            return self.finish.execute([Rows(tensors)])[0]
        return pb_utils.InferenceResponse([tensor for tensor in tensors if tensor.name() != GEOMETRY])


def open_gpu_decoder(network, recipe, on_cpu, warn):
    """Return what decodes on the GPU of the plan, beside the network: pixels go from one to the other there."""
    gpu_images = importlib.import_module("trtgen_runtime.runtime.gpu_images")
    device = network.model.device
    try:
        return gpu_images.GpuImages(recipe, on_cpu, device.driver, device.ordinal, warn=warn, to_host=False)
    except network.errors as error:
        raise pb_utils.TritonModelException(f"unable to open the decoder: {error}") from error


def log_warning(instance, words):
    """Write a warning into the server's log."""
    pb_utils.Logger.log_warn(f"{instance}: {words}")


def open_postprocessing(args):
    """Return the step behind the network, None for a model without one."""
    if not Path(__file__).with_name("trtgen_postprocess.py").is_file():
        return None
    step = importlib.import_module("trtgen_postprocess").TritonPythonModel()
    step.initialize(args)
    return step


def make_network_config(config, has_postprocessing):
    """Return the configuration that the network would have as a model of its own."""
    outputs = {tensor["name"]: tensor for tensor in config["output"]}
    pixels = outputs.pop(PIXELS)
    outputs.pop(GEOMETRY, None)
    if has_postprocessing:
        taken = importlib.import_module("trtgen_postprocess").INPUTS
        outputs = {name: tensor for name, tensor in outputs.items() if name in taken}
    groups = config.get("instance_group", [])
    if profiles := read_text(config, "profile", ""):
        groups = [{**group, "profile": profiles.split(",")} for group in groups]
    return {
        **config,
        "instance_group": groups,
        "default_model_filename": "",
        "input": [{**pixels, "name": read_text(config, "network_input")}],
        "output": list(outputs.values()),
    }


def count_threads(config, model):
    """Return how many images an instance decodes at once."""
    text = read_text(config, "decode_threads", "0").strip()
    if not text.isdecimal():
        raise pb_utils.TritonModelException(
            f"parameter 'decode_threads' of model '{model}' is '{text}': expected a whole number, 0 or more"
        )
    groups = config.get("instance_group", [])
    instances = sum(int(group.get("count", 1)) * max(len(group.get("gpus", [])), 1) for group in groups)
    return int(text) or max(1, len(os.sched_getaffinity(0)) // max(instances, 1))


def read_text(config, key, default=None):
    """Return a parameter of the configuration."""
    return config["parameters"].get(key, {"string_value": default})["string_value"]


def make_error(message, code):
    """Return a response that carries an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
