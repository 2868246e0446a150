"""A plan opened on this host, without a server: with the checks that TensorRT leaves out, and failures in plain words.

    with open_engine(Path("model.plan")) as engine:
        scores = engine.run_rows(pixels)

It is run by the code that serves it, `generator.runtime`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.errors import DeviceError, PlanError
from generator.gpu import find_gpu, hold_context, load_driver
from generator.plan.compatibility import Host, find_misfits
from generator.plan.header import read_header
from generator.plan.library import import_tensorrt, open_log
from generator.plan.load_errors import explain_failure
from generator.plan.passport import passport_path, read_passport
from generator.plan.profiles import describe_profiles
from generator.runtime.device import Device, EngineError
from generator.runtime.engine import Engine
from generator.runtime.gpu_array import is_on_gpu, read_gpu_array, to_host
from generator.runtime.rows import RequestError, Rows
from generator.runtime.shapes import choose_profile, split_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from generator.gpu import Gpu
    from generator.plan.passport import Passport
    from generator.runtime.shapes import Shapes
    from generator.tensor import Tensor

_LOG = logging.getLogger(__name__)
_TAKE_ANOTHER = "take a batch that a profile covers, or build the plan with a profile for it"


@contextlib.contextmanager
def open_engine(path: Path, *, index: int = 0) -> Iterator[PlanEngine]:
    """Load a plan onto a GPU; what fails on it inside the block is raised in plain words, too.

    Its header and, where there is one, its passport are compared with this host first: TensorRT would say less.

    Args:
        path: The plan.
        index: The GPU.

    Raises:
        PlanError: No plan, another plan than its passport's, or one that does not run here; the fix is in the hint.
        DeviceError: No GPU, or its memory is exhausted.
        MissingDependencyError: TensorRT or cuda-python is not installed.
    """
    header = read_header(path)
    passport = read_passport(path, check_hash=True) if passport_path(path).is_file() else None
    gpu = find_gpu(index)
    trt, log = import_tensorrt(), open_log()
    if passport is None:
        _LOG.info("%s has no passport; its header says TensorRT %s, this is %s", path, header.version, trt.__version__)
    else:
        _refuse_misfits(path, passport, Host(tensorrt=trt.__version__, gpu=gpu, source="this host"))
    code = passport is not None and passport.is_version_compatible
    with contextlib.ExitStack() as stack:
        try:
            hold_context(index)
            device = Device(load_driver(), index, spin=True)
            stack.callback(device.close)
            engine = PlanEngine(path, gpu, device, trt=trt, log=log, host_code=code)
            stack.callback(engine.close)
            yield engine
        except RequestError as error:
            raise PlanError(f"{path}: {error}", hint=_TAKE_ANOTHER) from error
        except EngineError as error:
            what = f"{path} does not run here"
            if error.needs:
                what += f" (it needs at least {error.needs / 2**20:,.0f} MiB of GPU memory)"
            said = [*log.errors, str(error)]
            if str(error).startswith("cu"):  # a function of the driver
                hint = "run nvidia-smi; a fault earlier in this process may be the cause"
                raise explain_failure(what, said, otherwise=DeviceError, hint=hint) from error
            raise explain_failure(what, said) from error


class PlanEngine(Engine):
    """An engine with the plan's path and the GPU that it is on."""

    _rows: Rows | None = None  # while run_rows has all profiles open

    def __init__(self, path: Path, gpu: Gpu, device: Device, **options: Any) -> None:
        self.path, self.gpu = path, gpu
        super().__init__(device, path.read_bytes(), name=str(path), **options)

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

    def run_rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the only output for any number of rows; see `run_outputs`.

        Raises:
            PlanError: As there; or the engine has several outputs.
        """
        name = self.output.name
        return self.run_outputs(rows)[name]

    def begin(self, rows: Any, first: int, total: int) -> bool:
        """Start on some of the rows on the GPU that `run_outputs` will be given; see `Rows.begin`."""
        return self._open_rows().begin(rows, first, total)

    def run_outputs(self, rows: Any, begun: int = 0) -> dict[str, NDArray[Any]]:
        """Return every output, by its name, for any number of rows, in as few batches as the profiles allow.

        Rows that are too few for every profile are run together with rows of zeros.

        Args:
            rows: The input's data type; axis 0 is the row, the other axes are the input's. They may lie on the GPU
                (`__cuda_array_interface__`), and stay there unless they need rows of zeros.
            begun: How many of them `begin` has started on.

        Raises:
            PlanError: Another data type or shape, or no row.
        """
        given = read_gpu_array(rows) if is_on_gpu(rows) else rows
        check_rows(self.input, given.shape, str(given.dtype))
        opened = self._open_rows()
        ranges = opened.find_ranges((given.shape[1:],), [given.shape])
        names = [tensor.name for tensor in self.outputs]
        if is_on_gpu(rows):
            if split_rows(given.shape[0], ranges) is not None:
                answers = [answer.copy() for answer in opened.run([[rows]], begun=begun)]
                return dict(zip(names, answers, strict=True))
            rows = to_host(self.device, rows)
        largest_batch = max(most for _, most in ranges)
        parts: list[list[NDArray[Any]]] = []
        for start in range(0, len(rows), largest_batch):
            part = rows[start : start + largest_batch]
            count = next(size for size in itertools.count(len(part)) if split_rows(size, ranges) is not None)
            padding = np.zeros((count - len(part), *part.shape[1:]), part.dtype)
            answers = opened.run([[np.concatenate([part, padding]) if len(padding) else part]])
            parts.append([answer[: len(part)].copy() for answer in answers])
        return {name: np.concatenate(of_one) for name, of_one in zip(names, zip(*parts, strict=True), strict=True)}

    def _open_rows(self) -> Rows:
        """Open all profiles, unless they are."""
        if self._rows is None:
            largest = [tuple(one.max for one in profile.values()) for profile in self.all_profiles]
            self.open(range(len(largest)), largest)
            self._rows = Rows(self, most=max(shape[0] for (shape,) in largest))
        return self._rows

    def open_batch(self, batch: int) -> tuple[Shapes, int]:
        """Open the profile that was chosen for the nearest batch, for batches of exactly this size.

        Returns:
            The input's shape, alone in a tuple, and the profile's place in `all_profiles`.

        Raises:
            PlanError: No profile has this batch, or the engine has several inputs.
        """
        shapes = ((batch, *self.input.shape[1:]),)
        number = choose_profile(self.all_profiles, shapes)
        if number is None:
            asked = f"{self.input.name} {list(shapes[0])}"
            msg = f"{self.path}: no optimization profile takes {asked}: {describe_profiles(self.all_profiles)}"
            raise PlanError(msg, hint=_TAKE_ANOTHER)
        self.open([number], [shapes])
        return shapes, number

    def release(self) -> None:
        """Give back graphs, contexts and buffers; the engine stays, and can be opened again."""
        super().release()
        self._rows = None

    def _only(self, tensors: Sequence[Tensor], what: str) -> Tensor:
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors) or "none"
            msg = f"{self.path} has {len(tensors)} {what}s ({names}), one was expected"
            raise PlanError(msg, hint="build it from a graph with one image input and one output")
        return tensors[0]


def check_rows(tensor: Tensor, shape: tuple[int, ...], data_type: str) -> None:
    """Refuse rows that are not what the input takes.

    Raises:
        PlanError: Another data type or shape, or no row.
    """
    wanted = "x".join(str(edge) for edge in tensor.shape[1:])
    if len(shape) != len(tensor.shape) or any(
        edge not in (-1, given) for edge, given in zip(tensor.shape[1:], shape[1:], strict=True)
    ):
        msg = f"input {tensor.name} takes rows of {wanted}, the array has the shape {list(shape)}"
        raise PlanError(msg, hint="prepare the pixels with the model's own recipe")
    if data_type != tensor.data_type.numpy:
        msg = f"input {tensor.name} takes {tensor.data_type.numpy}, the array is {data_type}"
        raise PlanError(msg, hint=f"convert it: array.astype({tensor.data_type.numpy!r})")
    if shape[0] < 1:
        msg = f"input {tensor.name} got no row"
        raise PlanError(msg, hint="give at least one image")


def _refuse_misfits(path: Path, passport: Passport, host: Host) -> None:
    for misfit in find_misfits(passport, host):
        if misfit.severity == "refuse":
            raise PlanError(f"{path} does not run here: {misfit}", hint=misfit.hint)
        _LOG.warning("%s: %s; %s", path, misfit, misfit.hint)
