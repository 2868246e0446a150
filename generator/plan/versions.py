"""What differs between TensorRT 8.6, 10.12 and later, 11, and TensorRT-RTX. Everything else calls this one class.

8.6     explicit batch is asked for; precision is a flag of the builder; no progress; parser errors lack names
10, 11  strongly typed networks: precision is the graph's own; flags were renumbered, so only names are kept
RTX     the same API as 11, builds without a GPU, and has no timing cache
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from generator.errors import PlanError
from generator.plan.hints import advise, explain
from generator.plan.library import TensorRTVersion, import_tensorrt, open_log
from generator.runtime.device import EngineError
from generator.runtime.tensors import read_tensor, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from generator.plan.progress import Progress
    from generator.plan.timing_cache import CacheState
    from generator.runtime.bindings import TensorRTLog
    from generator.spec.plan import PlanOptions
    from generator.tensor import Profile, Tensor

_LOG = logging.getLogger(__name__)
_OLDEST_10 = (10, 12)
_SHOWN_ERRORS = 3
_GIVE_FP32 = "build the plan from a graph with UINT8 or FP32 input and FP32 output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One reason why a graph does not become a plan. `node` and `operator` are empty where TensorRT names none."""

    node: str
    operator: str
    text: str

    @property
    def hint(self) -> str:
        """The fix, as far as it is known."""
        return explain(self.text)

    def __str__(self) -> str:
        """Return `node conv1 (Conv): what TensorRT said`."""
        where = f"node {self.node or '?'} ({self.operator or '?'}): " if self.node or self.operator else ""
        return where + self.text


def open_adapter(name: str = "tensorrt") -> Adapter:
    """Return the adapter of the installed `tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingDependencyError: Not installed.
        PlanError: A version that is not supported, or one that does not load.
    """
    trt = import_tensorrt(name)
    version = TensorRTVersion.parse(trt.__version__)
    rtx = name == "tensorrt_rtx"
    if not rtx and (version[:2] < (8, 6) or (8, 6) < version[:2] < _OLDEST_10):
        msg = f"TensorRT {version} is installed; 8.6, 10.12 and later, or 11 was expected"
        raise PlanError(msg, hint="in trtgen's checkout: pip install -e '.[tensorrt]'")
    return Adapter(trt, open_log(name), version, rtx=rtx)


class Adapter:
    """One installed TensorRT: `trt` its module, `log` its messages, `name` what to call it."""

    def __init__(self, trt: Any, log: TensorRTLog, version: TensorRTVersion, *, rtx: bool) -> None:
        self.trt = trt
        self.log = log
        self.version = version
        self.rtx = rtx
        self.name = f"TensorRT{'-RTX' if rtx else ''} {version}"
        self._kept: list[Any] = []
        # up to 8.6 the builder chooses precision; from 10 on the graph states it
        self.weakly_typed = not rtx and version.major < 10

    def check_request(self, *, graph: str, precision: str, options: PlanOptions, opset: int) -> None:
        """Refuse what this version cannot do, before anything is started.

        Raises:
            PlanError: Lists every problem: precision against what the graph holds, opset, options.
        """
        problems = [*self._precision_problems(graph, precision), *self._option_problems(options, opset)]
        if problems:
            message = "; ".join(found for found, _ in problems)
            hint = "; ".join(dict.fromkeys(hint for _, hint in problems))
            fields = {"precision": None} if "precision" in hint else {}
            raise PlanError(message, hint=hint, fields=fields)

    def _precision_problems(self, graph: str, precision: str) -> Iterable[tuple[str, str]]:
        convert = "export the model again with it"
        if not self.weakly_typed:
            if precision != graph:
                found = (
                    f"precision {precision} was asked for; the graph holds {graph}, which {self.name} builds as it is"
                )
                yield found, f"set precision: {graph}, or {convert}"
            return
        possible = {"fp32": ("fp32", "fp16"), "fp16": ("fp16",), "int8": ("int8",)}.get(graph, ())
        if missing := next((one for one in ("bf16", "fp8") if one in (graph, precision)), None):
            yield f"precision {missing} was asked for; {self.name} has none", "use fp16, or TensorRT 10.12 or later"
        elif precision not in possible:
            found = f"precision {precision} was asked for; of a graph that holds {graph}, {self.name} makes "
            yield found + " or ".join(possible), f"set precision: {possible[-1]}, or {convert}"

    def _option_problems(self, options: PlanOptions, opset: int) -> Iterable[tuple[str, str]]:
        from generator.graph.names import NEWEST_OPSET_OF_8

        if self.weakly_typed and opset > NEWEST_OPSET_OF_8:
            found = f"the graph has opset {opset}; {self.name} reads {NEWEST_OPSET_OF_8} at most"
            yield found, f"export it again with target: tensorrt-8.6, which means opset {NEWEST_OPSET_OF_8}"
        level = options.hardware_compatibility
        if level != "none" and _enum_name(level) not in self.trt.HardwareCompatibilityLevel.__members__:
            yield f"hardware_compatibility {level} was asked for; {self.name} has none", "use ampere-plus or none"
        if self.rtx and level != "none":
            yield f"hardware_compatibility {level} was asked for; {self.name} has none", "leave it at none"
        if self.rtx and options.version_compatible:
            yield f"version_compatible was asked for; {self.name} has no such plans", "leave version_compatible out"

    def create_builder(self) -> Any:
        """Return a builder.

        Raises:
            PlanError: No usable GPU, or not enough of its memory.
        """
        self._kept.clear()  # what configurations refer to must live until their build is over
        try:
            return self.trt.Builder(self.log.logger)
        except TypeError as error:  # pybind11's words for a null pointer
            raise self._failure("does not start") from error

    def create_network(self, builder: Any) -> tuple[Any, list[str]]:
        """Return an empty network, and the names of the flags it was made with."""
        flags = self.trt.NetworkDefinitionCreationFlag.__members__
        name = "STRONGLY_TYPED" if "STRONGLY_TYPED" in flags else "EXPLICIT_BATCH"
        return builder.create_network(1 << int(flags[name])), [name]

    def parse(self, network: Any, path: Path) -> list[Fault]:
        """Read the ONNX file into the network and return every error of the parser."""
        parser = self.trt.OnnxParser(network, self.log.logger)
        # the parser finds weights beside the file only if it opens the file itself
        if parser.parse_from_file(str(path.resolve())):
            return []
        faults = [self._fault(parser.get_error(index), path) for index in range(parser.num_errors)]
        return faults or [Fault(node="", operator="", text=self.log.last_error("the parser gave no reason"))]

    def _fault(self, error: Any, path: Path) -> Fault:
        node, operator = "", ""
        if hasattr(error, "node_name"):
            node, operator = error.node_name(), error.node_operator()
        if not operator and error.node() >= 0:
            node, operator = _node_of(path, error.node())
        # on a machine without a GPU, RTX adds a line about that to errors of another cause
        lines = [line for line in error.desc().splitlines() if "CUDA driver version" not in line]
        return Fault(node=node, operator=operator, text=f"{error.code().name}: {' '.join(' '.join(lines).split())}")

    def configure(self, builder: Any, *, precision: str, options: PlanOptions) -> Any:
        """Return a builder configuration for `precision` and `options`, which `check_request` has accepted.

        Raises:
            PlanError: TensorRT does not take an option on this platform.
        """
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it inspect sees names only
        if self.weakly_typed and precision in ("fp16", "int8"):
            config.set_flag(trt.BuilderFlag.FP16)
        if self.weakly_typed and precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatibility != "none":
            level = trt.HardwareCompatibilityLevel.__members__[_enum_name(options.hardware_compatibility)]
            config.hardware_compatibility_level = level
            if config.hardware_compatibility_level != level:
                raise self._failure(f"does not take hardware_compatibility {options.hardware_compatibility}")
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        return config

    def hold_fp32(self, network: Any, config: Any, *, precision: str, keep: Sequence[str] = ()) -> None:
        """Hold layers in FP32 where the builder would choose for itself: the Softmax, and those named in `keep`.

        Of a layer with several outputs, as TopK, those are meant that are floats.

        In FP16 a probability below 6e-8 becomes 0, which says something else than the 1e-7 that it was. `keep` holds
        patterns of layer names, which are those of the ONNX nodes.
        """
        if not self.weakly_typed or precision not in ("fp16", "int8"):
            return
        held = 0
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            named = any(fnmatchcase(layer.name, pattern) for pattern in keep)
            if not named and layer.type != self.trt.LayerType.SOFTMAX:
                continue
            floats = [number for number in range(layer.num_outputs) if self._is_float(layer.get_output(number))]
            if not floats:
                continue  # indices, shapes and what is quantised have no other precision to take
            layer.precision = self.trt.DataType.FLOAT
            for number in floats:
                layer.set_output_type(number, self.trt.DataType.FLOAT)
            held += 1
        if held:
            config.set_flag(self.trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)

    def _is_float(self, tensor: Any) -> bool:
        return tensor.dtype in (self.trt.DataType.FLOAT, self.trt.DataType.HALF) and not tensor.is_shape_tensor

    def add_profiles(self, builder: Any, config: Any, profiles: Sequence[Profile]) -> None:
        """Add the profiles, which `check_profiles` has accepted, in their order.

        Raises:
            PlanError: TensorRT refuses one of them.
        """
        for number, shapes in enumerate(profiles):
            profile = builder.create_optimization_profile()
            for name, one in shapes.items():
                profile.set_shape(name, one.min, one.opt, one.max)
            if config.add_optimization_profile(profile) < 0:
                raise self._failure(f"does not take optimization profile {number}")

    def flags_of(self, config: Any) -> list[str]:
        """Return the names of the flags that are set; numbers mean other flags in other versions."""
        members = self.trt.BuilderFlag.__members__
        return sorted({flag.name for flag in members.values() if config.get_flag(flag)})

    def watch(self, config: Any, progress: Progress) -> bool:
        """Let TensorRT report to `progress` and ask it whether to go on; False where it has no monitor (8.6)."""
        if not hasattr(config, "progress_monitor"):
            return False
        trt = self.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                progress.phase_start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return progress.step_complete(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                progress.phase_finish(phase_name)

        monitor = Monitor()
        self._kept.append(monitor)
        config.progress_monitor = monitor
        return True

    def load_cache(self, config: Any, data: bytes | None) -> CacheState:
        """Give the builder the measured times in `data`; return "warm", "cold" where there are none, or "off"."""
        if self.rtx:
            return "off"
        if data is not None:
            self.log.clear()
            cache = config.create_timing_cache(data)
            # what cannot be read comes back as an empty cache, with a warning
            readable = cache is not None and not any("timing cache" in text for text in self.log.warnings)
            if readable and config.set_timing_cache(cache, False):
                self._kept.append(cache)
                return "warm"
            _LOG.warning(
                "%s does not take the timing cache: it is of another device or version; starting with an empty one",
                self.name,
            )
        cache = config.create_timing_cache(b"")
        self._kept.append(cache)
        return "cold" if cache is not None and config.set_timing_cache(cache, False) else "off"

    def cache_bytes(self, config: Any, other: bytes | None = None) -> bytes:
        """Return the measured times of this build, together with those in `other`; empty where there are none."""
        cache = config.get_timing_cache()
        if cache is None:
            return b""
        if other is not None:
            theirs = config.create_timing_cache(other)
            if theirs is not None and not cache.combine(theirs, False):
                _LOG.warning("the timing cache that another build wrote meanwhile does not fit; replacing it")
        return bytes(cache.serialize())

    def build(self, builder: Any, network: Any, config: Any) -> bytes | Fault:
        """Return the plan, or why there is none."""
        self.log.clear()
        plan = builder.build_serialized_network(network, config)
        if plan is not None:
            return bytes(plan)
        return Fault(node="", operator="", text=self._reason())

    def network_tensors(self, network: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parsed network's inputs and outputs."""
        inputs = [self._tensor(network.get_input(index)) for index in range(network.num_inputs)]
        return inputs, [self._tensor(network.get_output(index)) for index in range(network.num_outputs)]

    def _tensor(self, tensor: Any) -> Tensor:
        try:
            shape = tuple(tensor.shape)
        except ValueError:  # not even the number of axes is known before run time
            shape = ()
        with self._in_words():
            return read_tensor(tensor.name, tensor.dtype, shape, self.name)

    def plan_tensors(self, plan: bytes) -> tuple[Sequence[Tensor], Sequence[Tensor], int]:
        """Load a plan that was built just now; return its inputs, its outputs and its number of profiles.

        Raises:
            PlanError: It does not load.
        """
        self.log.clear()
        runtime = self.trt.Runtime(self.log.logger)
        runtime.engine_host_code_allowed = True  # plans that later versions load carry code, here our own
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failure("built a plan that it does not load")
        with self._in_words():
            return *read_tensors(self.trt, engine, self.name), engine.num_optimization_profiles

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except EngineError as error:
            raise PlanError(f"{error}, which Triton cannot carry", hint=_GIVE_FP32) from error

    def _reason(self) -> str:
        # the cause often stands before the last one: memory that ran out, then a node without implementation
        said = list(dict.fromkeys(self.log.errors or self.log.warnings))
        return "; ".join(said[-_SHOWN_ERRORS:]) or "no reason given"

    def _failure(self, what: str) -> PlanError:
        reason = self._reason()
        return PlanError(f"{self.name} {what}: {reason}", **advise([explain(reason)]))


def _enum_name(word: str) -> str:
    return word.replace("-", "_").upper()


def _node_of(path: Path, index: int) -> tuple[str, str]:
    """Return name and operator of a node by its place, for parsers that only tell that."""
    from generator.graph.model import load_proto

    nodes = load_proto(path, weights=False).graph.node
    return (nodes[index].name, nodes[index].op_type) if index < len(nodes) else ("", "")
