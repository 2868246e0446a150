"""A plan in memory: opened with the checks that TensorRT leaves out, and run on rows of pixels.

    with open_engine(Path("model.plan")) as engine:
        scores = engine.run(pixels)

An engine and its sessions belong to one thread at a time. They share one stream, and the sessions of one optimization
profile share one execution context: TensorRT 8.6 and 10 refuse a profile to a second one. For work at the same time
open the plan twice.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from generator.errors import DeviceError, PlanError
from generator.plan.compatibility import Host, find_misfits
from generator.plan.header import read_header
from generator.plan.load_errors import explain_failure
from generator.plan.passport import Passport, passport_path, read_passport
from generator.plan.profiles import describe_profiles
from generator.plan.tensors import read_profiles, read_tensors
from generator.runtime.shapes import check_rows, choose_profile, contains, split_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from generator.gpu.device import Gpu
    from generator.runtime.session import Session
    from generator.tensor import Tensor

_LOG = logging.getLogger(__name__)
_KEPT_SESSIONS = 2  # of `run`: the full batch and the last remainder


def open_engine(path: Path, *, index: int = 0) -> Engine:
    """Load a plan onto a GPU.

    Its header and, where there is one, its passport are compared with this host first: TensorRT would say less.

    Args:
        path: The plan.
        index: The GPU.

    Raises:
        PlanError: No plan, another plan than its passport's, or one that does not run here; the fix is in the hint.
        DeviceError: No GPU, or its memory is exhausted.
        MissingDependencyError: TensorRT or cuda-python is not installed.
    """
    from generator.gpu.device import find_gpu, use_gpu
    from generator.plan.library import import_tensorrt, open_log

    header = read_header(path)
    passport = read_passport(path, check_hash=True) if passport_path(path).is_file() else None
    gpu = find_gpu(index)
    trt = import_tensorrt()
    if passport is None:
        _LOG.info("%s has no passport; its header says TensorRT %s, this is %s", path, header.version, trt.__version__)
    else:
        _refuse_misfits(path, passport, Host(tensorrt=trt.__version__, gpu=gpu, source="this host"))
    use_gpu(index)
    log = open_log()
    log.clear()
    try:
        runtime = trt.Runtime(log.logger)
    except TypeError as error:  # pybind's word for a constructor that returned nothing
        why = explain_failure("TensorRT does not start", log.all_errors(), otherwise=DeviceError, hint="run nvidia-smi")
        raise why from error
    if passport is not None and passport.is_version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise explain_failure(f"{path} cannot be loaded", log.all_errors())
    return Engine(path, trt=trt, runtime=runtime, engine=engine, gpu=gpu)


class Engine:
    """An engine, its inputs, outputs and profiles; made by `open_engine`, given back by `close` or `with`.

    Attributes:
        path: The plan.
        gpu: The GPU it is on.
        trt: The module tensorrt.
        engine: TensorRT's ICudaEngine.
        inputs: What it takes.
        outputs: What it makes.
        profiles: The shapes it takes; a static engine has one, in which min, opt and max are equal.
        device_memory_bytes: GPU memory of one execution context, weights not included.
        stream: The one stream of all its sessions.
    """

    def __init__(self, path: Path, *, trt: Any, runtime: Any, engine: Any, gpu: Gpu) -> None:
        from generator.gpu.memory import Stream

        self.path, self.gpu = path, gpu
        self.trt, self.engine, self._runtime = trt, engine, runtime
        self.inputs, self.outputs = read_tensors(path, trt, engine)
        self.profiles = read_profiles(path, engine, self.inputs)
        self.device_memory_bytes = int(
            engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
        )
        self.stream = Stream(gpu.index)
        self._contexts: dict[int, Any] = {}
        self._prepared: dict[int, Session] = {}  # by profile: whose shapes and addresses the context has
        self._sessions: list[Session] = []
        self._running: dict[int, Session] = {}  # of `run`, by batch

    @property
    def input(self) -> Tensor:
        """The only input.

        Raises:
            PlanError: There are several.
        """
        return self._only(self.inputs, "input")

    @property
    def output(self) -> Tensor:
        """The only output.

        Raises:
            PlanError: There are several.
        """
        return self._only(self.outputs, "output")

    def run(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return what the engine makes of any number of rows, in as few batches as the profiles allow.

        Args:
            rows: The input's data type; axis 0 is the row, the other axes are the input's.

        Raises:
            PlanError: Another data type or shape, or no row.
            DeviceError: The GPU fails, or its memory is exhausted.
        """
        import numpy as np

        check_rows(self.input, rows.shape, str(rows.dtype))
        parts, start = [], 0
        for count, batch in split_rows(len(rows), self._batch_ranges()):
            session = self._session_for(batch)
            session.input[:count] = rows[start : start + count]
            session.input[count:] = 0
            session.copy_in()
            session.enqueue()
            session.copy_out()
            session.synchronize()
            parts.append(session.output[:count].copy())
            start += count
        return np.concatenate(parts)

    def session(self, batch: int, *, profile: int | None = None, cuda_graph: bool = False) -> Session:
        """Return buffers and an execution context for batches of exactly this size.

        Args:
            batch: Rows.
            profile: Index of the optimization profile; default: the one that was chosen for the nearest batch.
            cuda_graph: Record the work once and launch it as a CUDA graph.

        Raises:
            PlanError: No profile has this batch, or the engine has several inputs or outputs.
            DeviceError: The GPU's memory is exhausted.
        """
        from generator.gpu.device import use_gpu
        from generator.runtime.session import Session

        self._check_open()
        use_gpu(self.gpu.index)
        shapes = {self.input.name: (batch, *self.input.shape[1:])}
        if profile is None:
            profile = choose_profile(self.profiles, shapes)
        elif not 0 <= profile < len(self.profiles):
            msg = f"{self.path} has no optimization profile {profile}, it has {len(self.profiles)}"
            raise PlanError(msg, hint=f"take one from 0 to {len(self.profiles) - 1}")
        elif not contains(self.profiles[profile], shapes):
            msg = f"profile {profile} of {self.path} has no batch of {batch}: {describe_profiles(self.profiles)}"
            raise PlanError(msg, hint="leave the profile to be chosen, or take another batch")
        session = Session(self, batch=batch, profile=profile, cuda_graph=cuda_graph)
        self._sessions.append(session)
        return session

    def close(self) -> None:
        """Close every session, then give back contexts, engine and runtime, in this order; twice is harmless."""
        for session in list(reversed(self._sessions)):  # each takes itself off the list
            session.close()
        self._sessions.clear()
        self._running.clear()
        self._prepared.clear()
        # TensorRT's objects free their memory when nothing refers to them any more
        self._contexts.clear()
        self.engine = None
        self._runtime = None
        self.stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def context_for(self, session: Session) -> Any:
        """Return the execution context of the session's profile with the session's shapes and addresses.

        Raises:
            DeviceError: The GPU's memory is exhausted.
            PlanError: TensorRT refuses the profile, the shapes or the addresses.
        """
        from generator.gpu.device import use_gpu

        self._check_open()
        if self._prepared.get(session.profile) is session:
            return self._contexts[session.profile]
        use_gpu(self.gpu.index)
        context = self.bare_context(session.profile)
        session.prepare(context)
        self._prepared[session.profile] = session
        return context

    def bare_context(self, profile: int) -> Any:
        """Return the profile's execution context without shapes and addresses of a session.

        Raises:
            DeviceError: The GPU's memory is exhausted.
            PlanError: TensorRT refuses the profile.
        """
        self._prepared.pop(profile, None)
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._make_context(profile)
        return context

    def forget(self, session: Session) -> None:
        """Take a session that closes itself off the books."""
        if self._prepared.get(session.profile) is session:
            del self._prepared[session.profile]
        if session in self._sessions:
            self._sessions.remove(session)

    def _make_context(self, profile: int) -> Any:
        from generator.gpu.memory import mib
        from generator.plan.library import open_log

        log = open_log()
        log.clear()
        context = self.engine.create_execution_context()
        if context is None:
            needs = f"{self.path}: an execution context needs {mib(self.device_memory_bytes)} of GPU memory"
            raise explain_failure(
                needs,
                log.all_errors(),
                otherwise=DeviceError,
                hint="end what else uses the GPU, or take smaller batches",
            )
        chosen = context.active_optimization_profile == profile
        if not chosen and not context.set_optimization_profile_async(profile, self.stream.handle):
            raise explain_failure(f"{self.path}: optimization profile {profile} is refused", log.all_errors())
        self.stream.synchronize()
        return context

    def _session_for(self, batch: int) -> Session:
        session = self._running.pop(batch, None)
        if session is None:
            while len(self._running) >= _KEPT_SESSIONS:
                self._running.pop(next(iter(self._running))).close()
            session = self.session(batch)
        self._running[batch] = session
        return session

    def _batch_ranges(self) -> tuple[tuple[int, int], ...]:
        return tuple(profile[self.input.name].batches for profile in self.profiles)

    def _only(self, tensors: Sequence[Tensor], what: str) -> Tensor:
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors) or "none"
            msg = f"{self.path} has {len(tensors)} {what}s ({names}), one was expected"
            raise PlanError(msg, hint="build it from a graph with one image input and one output")
        return tensors[0]

    def _check_open(self) -> None:
        if self.engine is None:
            msg = f"the engine of {self.path} is closed"
            raise ValueError(msg)


def _refuse_misfits(path: Path, passport: Passport, host: Host) -> None:
    for misfit in find_misfits(passport, host):
        if misfit.severity == "refuse":
            raise PlanError(f"{path} does not run here: {misfit}", hint=misfit.hint)
        _LOG.warning("%s: %s; %s", path, misfit, misfit.hint)
