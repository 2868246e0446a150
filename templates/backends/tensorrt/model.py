"""Triton's `tensorrt` backend in Python, for a tritonserver that has no native one.

Triton takes `<backend-directory>/tensorrt/model.py` for each model whose config.pbtxt says `backend: "tensorrt"`,
so the same repository runs here and, with the native backend, in the stock container.

Read from config.pbtxt: `default_model_filename` (else model.plan), `cc_model_filenames`, `max_batch_size`, inputs and
outputs, instance groups with `gpus` and `profile`, and of `optimization`: `priority`, `cuda.graphs`, `cuda.graph_spec`
and `cuda.busy_wait_events`. What the native backend refuses is refused in its words.

Every instance is a process of its own, with its own copy of the weights, one execution context per profile, and one
stream: while one instance copies, another computes. The requests of one execute run as one batch; the stub copies the
rows of each from the pinned memory into its answer. `trtgen_runtime`, which lies beside this file, runs the plan. It
needs tensorrt (8.6, 10 or 11), numpy and cuda-python.
"""

import ctypes
import json
import re
import struct
from pathlib import Path
from typing import NamedTuple

import triton_python_backend_utils as pb_utils
from trtgen_runtime.runtime import bindings
from trtgen_runtime.runtime.device import Device, EngineError, call
from trtgen_runtime.runtime.engine import OUT_OF_MEMORY, Engine
from trtgen_runtime.runtime.gpu_array import is_on_gpu, read_capsule, to_host
from trtgen_runtime.runtime.graphs import GraphSpec, record_graphs
from trtgen_runtime.runtime.rows import RequestError, Rows
from trtgen_runtime.runtime.shapes import find_misfit, is_between

_MIB = 1024 * 1024
# glibc's names for what mallopt sets; the largest value that it takes for the first is 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class TritonPythonModel:
    """One instance of one model: an engine, and how the requests get in and out of it."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Return the configuration as it is: Triton does not say here where the plan lies, so nothing can be read."""
        return auto_complete_model_config

    def initialize(self, args):
        """Load the plan and compare it with the configuration; every disagreement is named in one exception."""
        self.engine = self.device = None
        try:
            self._open(args, json.loads(args["model_config"]))
        except EngineError as error:
            memory = self._explain_memory(error.needs) if error.needs else ""
            raise pb_utils.TritonModelException(f"{error}{memory}") from error

    def _open(self, args, config):
        self.model, self.instance = args["model_name"], args["model_instance_name"]
        if args["model_instance_kind"] != "GPU":
            raise EngineError(f"unable to load model '{self.model}', TensorRT backend supports only GPU device")
        keep_freed_memory()
        ordinal = int(args["model_instance_device_id"])
        self.device = open_device(import_driver(self.model), ordinal, config, model=self.model)
        self.free_before, _ = self.device.free_memory()
        folder = Path(args["model_repository"], args["model_version"])
        self._load(find_plan(config, folder, self.device, instance=self.instance))
        limit = self.use_engine(config)
        numbers = find_profiles(config, self.instance, ordinal)
        profiles = [self.engine.all_profiles[number] for number in numbers]
        largest = [limit.cut_all(profile) for profile in profiles]
        for profile, shapes in zip(profiles, largest, strict=True):
            if problem := find_misfit(self.engine.inputs, profile, shapes, self.instance):
                words = "model configuration specified invalid shape for input"
                raise EngineError(problem.replace("request specifies invalid shape for input", words, 1))
        self.engine.open(numbers, largest)
        self.rows = Rows(self.engine, most=limit.rows)
        warnings = []
        if config.get("optimization", {}).get("cuda", {}).get("graphs"):
            batches = find_graph_batches(config)
            specs = [make_graph_specs(batches, self.engine.inputs, profile, limit) for profile in profiles]
            warnings = record_graphs(self.engine, specs)
        pb_utils.Logger.log_info(f"{self.instance}: {self._describe(numbers)}")
        for message in [*warnings, *(f"{self.instance}: {text}" for text in self.engine.log.warnings)]:
            pb_utils.Logger.log_warn(message)

    def _load(self, path):
        """Load the plan whole: what happens to the file later does not matter."""
        trt = import_tensorrt()
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineError(f"unable to read '{path}': {error.strerror}") from error
        log, code = bindings.TensorRTLog(trt), is_version_compatible(path)
        try:
            self.engine = Engine(self.device, plan, trt=trt, log=log, name=self.instance, host_code=code)
        except EngineError as error:
            why = explain_plan(path, plan, trt.__version__)
            raise EngineError(f"{error}{why}", needs=error.needs) from error

    def use_engine(self, config):
        """Take on the configuration, or raise where it does not fit the engine; return what it allows."""
        engine = self.engine
        most = int(config["max_batch_size"])
        self.batched = most > 0
        problems = [
            *compare(config["input"], engine.inputs, batched=self.batched, instance=self.instance, kind="input"),
            *compare(config["output"], engine.outputs, batched=self.batched, instance=self.instance, kind="output"),
        ]
        named = name_profiles(config)
        problems += check_profiles(named, len(engine.all_profiles), model=self.model)
        if not problems and self.batched:
            problems += check_max_batch(most, [engine.all_profiles[number] for number in named], model=self.model)
        if problems:
            raise EngineError("; ".join(dict.fromkeys(problems)))
        self.names = [tensor.name for tensor in engine.inputs]
        dims = {tensor["name"]: read_dims(tensor, batched=self.batched) for tensor in config["input"]}
        return Limit(most, [dims[name] for name in self.names])

    def execute(self, requests):
        """Answer every request; one that does not fit the plan gets its own error and leaves the others alone."""
        responses = [None] * len(requests)
        groups = {}  # requests that may share a batch: same shape of a row
        for index, request in enumerate(requests):
            try:
                arrays = self._read(request)
                rows = tuple(array.shape[1:] if self.batched else array.shape for array in arrays)
                self.rows.find_ranges(rows, [array.shape for array in arrays])
            except EngineError as error:
                responses[index] = self._refuse(error, 1)
                continue
            key = (rows, is_on_gpu(arrays[0]), -1 if self.batched else index)
            groups.setdefault(key, []).append((index, arrays))
        for group in groups.values():
            try:
                answers = self._run([arrays for _, arrays in group], last=len(groups) == 1)
            except EngineError as error:
                for index, _ in group:
                    responses[index] = self._refuse(error, len(group))
                continue
            for (index, _), tensors in zip(group, answers, strict=True):
                # The stub leaves out what the request did not ask for.
                responses[index] = pb_utils.InferenceResponse(tensors)
        return responses

    def finalize(self):
        """Release the engine and all memory."""
        if self.engine is not None:
            self.engine.close()
            self.device.close()
        self.engine = None

    def _refuse(self, error, count):
        """Return the answer to each of `count` requests that shared a run which failed."""
        among = f" in a batch of {count} requests" if count > 1 else ""
        if isinstance(error, RequestError):
            return make_error(f"{error}{among}", pb_utils.TritonError.INVALID_ARG)
        return make_error(f"TensorRT failed on model '{self.model}'{among}: {error}", pb_utils.TritonError.INTERNAL)

    def _read(self, request):
        """Return one array per input of the plan."""
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        missing = [name for name in self.names if name not in tensors]
        if missing:
            raise RequestError(f"missing input {', '.join(map(repr, missing))} for model '{self.model}'")
        arrays = [self._read_tensor(tensors[name]) for name in self.names]
        if len({is_on_gpu(array) for array in arrays}) > 1:
            arrays = [to_host(self.device, array) if is_on_gpu(array) else array for array in arrays]
        if self.batched and len({array.shape[:1] for array in arrays}) > 1:
            rows = ", ".join(f"'{name}' has {a.shape[0]}" for name, a in zip(self.names, arrays, strict=True))
            raise RequestError(f"the inputs of one request differ in batch size for model '{self.model}': {rows}")
        return arrays

    def _read_tensor(self, tensor):
        """Return the array of a tensor; one that a client put into the GPU's memory stays there."""
        return tensor.as_numpy() if tensor.is_cpu() else read_capsule(tensor.to_dlpack())

    def _run(self, feeds, *, last):
        """Run `feeds` as one batch and return the output tensors of each of them.

        The arrays of the tensors lie in the staging memory, which the stub copies from when execute has returned;
        unless it is the `last` run of this execute they are copied here.
        """
        outputs = self.rows.run(feeds)
        answers, start = [], 0
        for arrays in feeds:
            count = arrays[0].shape[0] if self.batched else 1
            views = [view[start : start + count] if self.batched else view[start, ...] for view in outputs]
            views = views if last else [view.copy() for view in views]
            tensors = zip(self.engine.outputs, views, strict=True)
            answers.append([pb_utils.Tensor(one.name, view) for one, view in tensors])
            start += count
        return answers

    def _describe(self, numbers):
        """Return what was opened, for the log."""
        engine, device = self.engine, self.device
        free, _ = device.free_memory()
        names = "".join(f"{'default' if number == 0 else number}[{number}];" for number in numbers)
        return (
            f"TensorRT {engine.trt.__version__} on GPU {device.ordinal} with stream priority {device.priority} "
            f"and optimization profile {names} {sum(map(len, engine.graphs))} CUDA graphs; "
            f"{engine.needs // _MIB} MiB of GPU memory for this instance's own copy of the plan, "
            f"its contexts and buffers, besides the CUDA context; {free // _MIB} MiB are free"
        )

    def _explain_memory(self, needs):
        try:
            free, total = self.device.free_memory()
        except EngineError:
            free = total = 0
        return explain_memory(needs, min(free, self.free_before), total, gpu=self.device.ordinal)


class Limit(NamedTuple):
    """What the configuration allows: rows of a batch (0: no batches) and dims of each input, -1 where open."""

    rows: int
    dims: list

    def cut_all(self, profile):
        """Return the largest shapes of the inputs that a profile takes and the configuration lets through."""
        return tuple(self._cut(*pair) for pair in zip(profile.values(), self.dims, strict=True))

    def _cut(self, range_, dims):
        fixed = [most if dim == -1 else dim for most, dim in zip(range_.max, dims, strict=True)]
        if self.rows:
            fixed[0] = max(range_.min[0], min(range_.max[0], self.rows))
        return tuple(fixed)


def keep_freed_memory():
    """Let malloc keep what is freed, for the next execute.

    The stub copies each input into a new array. Where glibc gives the memory of a batch back to the system after every
    execute, which depends on what lies above it in the heap, the next batch pays a page fault per 4 KiB: 7.5 instead of
    14 thousand images per second (requests of 8 images of 224x224, on two cores, with a network that does nothing).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * _MIB)


def import_driver(model):
    """Return the module of the CUDA driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineError(f"the Python that serves '{model}' lacks cuda-python: pip install cuda-python") from error
    return driver


def import_tensorrt():
    """Return the module tensorrt."""
    try:
        return bindings.import_tensorrt()
    except (ImportError, OSError) as error:
        raise EngineError(
            f"the Python that serves plans has no working tensorrt ({error}): install trtgen's extra 'tensorrt' there, "
            "or rebuild the model with --target onnxruntime"
        ) from error


def open_device(driver, ordinal, config, *, model):
    """Return the GPU, with a stream as the configuration wants it."""
    settings = config.get("optimization", {})
    try:
        call(driver, "cuInit", 0)
        count = int(call(driver, "cuDeviceGetCount"))
        why = "" if ordinal < count else f"GPU {ordinal} was asked for, there are {count}"
    except (EngineError, RuntimeError) as error:
        why = str(error)
    if why:
        raise EngineError(no_gpu(model, why))
    spin = bool(settings.get("cuda", {}).get("busy_wait_events"))
    try:
        return Device(driver, ordinal, priority=settings.get("priority", ""), spin=spin)
    except EngineError as error:
        if not OUT_OF_MEMORY.search(str(error)):
            raise
        raise EngineError(
            f"{error}; out of memory on GPU {ordinal}: not even the CUDA context of another process fits: "
            "lower `count` in the model's instance_group, or end what else uses the GPU"
        ) from error


def no_gpu(model, why):
    """Return the refusal of a host without a usable GPU."""
    return (
        f"no GPU for model '{model}' ({why}): a TensorRT plan runs on an NVIDIA GPU only; "
        "rebuild with --target onnxruntime for this host"
    )


def explain_memory(needs, free, total, *, gpu):
    """Return what an instance needs, what is there, and how many would fit on an empty GPU."""
    fit = f"at most {total // needs} of them fit on this GPU even when it is empty"
    return (
        f"; out of memory on GPU {gpu}: an instance needs at least {needs // _MIB} MiB, {free // _MIB} MiB of "
        f"{total // _MIB} MiB are free; {fit}: lower `count` in the model's instance_group"
    )


def find_plan(config, folder, device, *, instance):
    """Return the path of the plan: the file for this GPU's compute capability, or the default."""
    for_capability = config.get("cc_model_filenames") or {}
    name = for_capability.get(device.compute_capability()) if for_capability else None
    path = folder / (name or config.get("default_model_filename") or "model.plan")
    if not path.is_file():
        why = ""
        if for_capability and name is None:
            capabilities = ", ".join(sorted(for_capability, key=lambda text: (len(text), text)))
            why = f"; GPU {device.ordinal} has compute capability {device.compute_capability()}, "
            why += f"and cc_model_filenames has {capabilities}"
        raise EngineError(f"unable to find '{path}' for model instance '{instance}'{why}")
    return path


def explain_plan(path, plan, version):
    """Return what the first bytes of the plan say about a failure to load it, or nothing."""
    if plan[:4] == b"vtrt":
        return f"; '{path}' is a plan of TensorRT-RTX, which TensorRT cannot load"
    if plan[:4] != b"ftrt" or len(plan) < 28:
        return f"; '{path}' ({len(plan)} bytes) is no TensorRT plan"
    size = struct.unpack_from("<Q", plan, 16)[0]
    if len(plan) < size < 2**40:
        return f"; '{path}' is truncated: {len(plan)} of {size} bytes"
    digits = re.match(r"[\d.]*", version)[0]  # 8.6.1.post1 says nothing of the fourth number
    built, here = plan[24:28], tuple(int(part) for part in re.findall(r"\d+", digits)[:4])
    compared = tuple(built[: len(here)])
    if compared > here or (compared < here and not is_version_compatible(path)):
        words = f"built by TensorRT {'.'.join(map(str, built))} and this is TensorRT {version}"
        return f"; '{path}' was {words}: build the plan again with this one"
    return ""


def find_profiles(config, instance, ordinal):
    """Return the numbers of the profiles of the instance group that the instance belongs to.

    Triton names instances `<group>_<index>`, and groups without a name `<model>_<index>`.
    """
    name, _, _ = instance.rpartition("_")
    groups = config.get("instance_group", [])
    mine = [group for group in groups if group.get("name") == name] or groups
    on_gpu = [group for group in mine if ordinal in map(int, group.get("gpus", []))] or mine
    found = {tuple(dict.fromkeys(read_profiles(group))) for group in on_gpu}
    if len(found) > 1:
        raise EngineError(f"instance groups of one name ('{name}') list different profiles: give each its own name")
    return found.pop() if found else (0,)


def name_profiles(config):
    """Return the numbers of all profiles that any instance group lists."""
    return sorted({number for group in config.get("instance_group", []) for number in read_profiles(group)} or {0})


def read_profiles(group):
    """Return the profiles of a group; none listed means the first."""
    return [int(number) for number in group.get("profile", [])] or [0]


def check_profiles(named, count, *, model):
    """Return a sentence for each profile that the plan does not have."""
    return [
        f"unable to autofill for '{model}', configuration specified invalid profile {number} . "
        f"Number of profiles supported by TensorRT engine: {count}"
        for number in named
        if not 0 <= number < count
    ]


def check_max_batch(most, profiles, *, model):
    """Return the refusal of a max_batch_size above what the profiles take, if it is."""
    supported = max(min(range_.max[0] for range_ in profile.values()) for profile in profiles)
    words = f"specified max-batch {most} but TensorRT engine only supports max-batch {supported}"
    return [f"autofill failed for model '{model}': configuration {words}"] if most > supported else []


def compare(configured, tensors, *, batched, instance, kind):
    """Return what is wrong with the inputs or outputs of the configuration, one sentence each."""
    plan = {tensor.name: tensor for tensor in tensors}
    problems = []
    for tensor in configured:
        name = tensor["name"]
        if name not in plan:
            problems.append(f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(plan)}")
            continue
        if plan[name].data_type.triton != tensor["data_type"]:
            problems.append(
                f"unexpected datatype {plan[name].data_type.triton} for inference {kind} '{name}', "
                f"expecting {tensor['data_type']} for {instance}"
            )
        problems += compare_dims(tensor, list(plan[name].shape), batched=batched, instance=instance)
    absent = [name for name in plan if name not in {tensor["name"] for tensor in configured}]
    return problems + [f"expected configuration for {kind} '{name}' for {instance}" for name in absent]


def compare_dims(tensor, shape, *, batched, instance):
    """Return at most one sentence: the rank or a dimension that differs."""
    dims = read_dims(tensor, batched=batched)
    if len(dims) == len(shape) and all(-1 in pair or pair[0] == pair[1] for pair in zip(dims, shape, strict=True)):
        return []
    note = f"(shape {dims})"
    if batched:
        note = "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, "
        note += f"making complete shape {dims})"
    expected = f"the model expects {len(shape)} dimensions (shape {shape})"
    specified = f"the model configuration specifies {len(dims)} dimensions {note}"
    return [f"model instance '{instance}', tensor '{tensor['name']}': {expected} but {specified}"]


def read_dims(tensor, *, batched):
    """Return the full shape that the configuration gives to a tensor of the plan."""
    dims = [int(dim) for dim in (tensor.get("reshape") or {}).get("shape", tensor["dims"])]
    return [-1, *dims] if batched else dims


def is_version_compatible(path):
    """Tell whether the passport beside the plan says that it carries code for later versions of TensorRT."""
    try:
        passport = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
        return passport["options"]["version_compatible"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def find_graph_batches(config):
    """Return the specs of `optimization.cuda.graph_spec` as (batch, dims, lower batch), or those that Triton assumes.

    `dims` gives the dims of the inputs that the spec names. A batch of 0 stands for a model without batching.
    """
    most = int(config["max_batch_size"])
    specs = config["optimization"]["cuda"].get("graph_spec") or []
    if not specs:
        if not most:
            return [(0, {}, 0)]
        batcher = config.get("dynamic_batching")
        sizes = [1, 2, 3, 4, 6, 8, 12, 16] if batcher is None else [1, *batcher.get("preferred_batch_size", [])]
        return [(size, {}, size) for size in sorted({int(size) for size in sizes if int(size) <= most} | {most})]
    found = []
    for spec in specs:
        batch = int(spec.get("batch_size", 0))
        if most and not 1 <= batch <= most:
            raise EngineError(f"graph spec expects 'batch_size' to be >= 1 and <= {most}")
        if not most and batch:
            raise EngineError("graph spec expects 'batch_size' to be 0 if 'max_batch_size' is 0")
        lower = int((spec.get("graph_lower_bound") or {}).get("batch_size", 0)) or batch
        if lower > batch:
            raise EngineError("graph lower bound spec expects 'batch_size' to be <= graph spec 'batch_size'")
        dims = {name: tuple(int(dim) for dim in value["dim"]) for name, value in (spec.get("input") or {}).items()}
        found.append((batch, dims, lower))
    return found


def make_graph_specs(batches, inputs, profile, limit):
    """Return the specs with full shapes that the profile and the buffers take.

    What a spec leaves open is what the configuration says, or else the profile's optimum.
    """
    batched, specs = bool(limit.rows), []
    most = limit.cut_all(profile)
    for batch, given, lower in batches:
        rows = []
        for tensor, range_, dims in zip(inputs, profile.values(), limit.dims, strict=True):
            best = range_.opt[batched:]
            assumed = tuple(dim if dim >= 0 else opt for dim, opt in zip(dims[batched:], best, strict=True))
            rows.append(given.get(tensor.name, assumed))
        shapes = tuple((batch, *row) if batched else tuple(row) for row in rows)
        least = tuple((lower, *row) if batched else tuple(row) for row in rows)
        if all(is_between(shape, r.min, m) for shape, r, m in zip(shapes, profile.values(), most, strict=True)):
            specs.append(GraphSpec(shapes, least))
    return specs


def make_error(message, code):
    """Return a response that carries an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
