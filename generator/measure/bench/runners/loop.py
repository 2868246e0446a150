"""One runner process: takes requests from stdin, a JSON object a line, and answers each with one line on stdout.

    start     {settings}                          -> {about, clock}       loads what `<kind>_runner.py` beside this runs
    prepare   {batch, sets, seed}                 -> {input_bytes}        random inputs, buffers, CUDA graphs
    warm      {seconds}                           -> {iteration_ms}
    check     {rows}                              -> {finite, shape, scores}   first rows of set 0, base64 of float32
    measure   {seconds, iterations, longest}      -> {times_ms, span_ms}
    copies    {seconds, longest}                  -> {times_ms}, null where nothing has to be copied
    energy    {seconds}                           -> {joules, window_s, iterations}, null without a counter that moves
    release   {}                                  -> {}                   frees what `prepare` took

Every answer also has `gpu_bytes` (device memory that this process has taken so far, its CUDA context included) and
`host_bytes` (its peak resident memory); or it is {error}, and the process lives on. The end of stdin ends it.

Only the standard library and numpy are imported here: the interpreter may be one without this project.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

_NOT_FOUND = 6  # NVML_ERROR_NOT_FOUND
# One stretch of iterations between two synchronisations: long enough to keep a GPU busy, short enough to stop in time.
_STRETCH_S = 0.05
_LONGEST_STRETCH = 200
# How long one reading of the energy counter is from the next: at most so late is a step of it noticed.
_READING_S = 0.02
# Iterations before each measurement that are not counted: another runner has just had the GPU and its caches.
_SETTLE_S = 0.05


class Runner(Protocol):
    """What `open_runner(settings)` of a `<kind>_runner.py` returns."""

    clock: str  # "device" (events on the stream) or "host": then `enqueue` waits for the end
    copies_clock: str  # of `enqueue_with_copies`; empty where input and output are in host memory anyway
    failures: tuple[type[Exception], ...]  # what a request may fail with while the process stays usable

    def about(self) -> dict[str, Any]:
        """Return versions and settings worth recording."""

    def prepare(self, sets: Sequence[NDArray[np.uint8]]) -> None:
        """Place the inputs where the network reads them, and make what one batch needs."""

    def enqueue(self, index: int) -> None:
        """Start one iteration on input set `index`; need not wait for its end."""

    def synchronize(self) -> None:
        """Wait for everything that was started."""

    def enqueue_with_copies(self, index: int) -> None:
        """Do the same with input and output in host memory."""

    def make_event(self) -> Any:
        """Return an event for `record`."""

    def record(self, event: Any) -> None:
        """Let the stream note the time at which everything before is done."""

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Return the time between two events that were recorded and waited for."""

    def scores(self) -> NDArray[np.float32]:
        """Run input set 0 once into outputs filled with NaN and return the scores, (batch, numbers)."""

    def release(self) -> None:
        """Free what `prepare` made."""

    def close(self) -> None:
        """Free everything; the process ends."""


class Nvml:
    """The GPU's energy and memory counters; None from both without NVIDIA's library."""

    def __init__(self, *, wanted: bool) -> None:
        self._library, self._device = None, ctypes.c_void_p()
        if not wanted:
            return
        with contextlib.suppress(OSError):
            library = ctypes.CDLL("libnvidia-ml.so.1")
            if library.nvmlInit_v2() == 0 and self._find(library) == 0:
                self._library = library

    def _find(self, library: ctypes.CDLL) -> int:
        """Take the first visible device, as CUDA does (the parent sets CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if first.startswith("GPU-"):
            return int(library.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(self._device)))
        if first and not first.isdigit():  # part of a GPU (MIG-...): the board's figures would say nothing
            return _NOT_FOUND
        index = ctypes.c_uint(int(first or 0))
        return int(library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device)))

    def joules(self) -> float | None:
        """Return the energy since the driver was loaded."""
        value = ctypes.c_ulonglong()
        if self._library is None:
            return None
        code = self._library.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(value))
        return value.value / 1000 if code == 0 else None

    def used_bytes(self) -> int | None:
        """Return how much of the device's memory is taken, by anybody."""
        value = (ctypes.c_ulonglong * 3)()  # total, free, used
        if self._library is None:
            return None
        return value[2] if self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(value)) == 0 else None


def make_pixels(batch: int, height: int, width: int, *, seed: int) -> NDArray[np.uint8]:
    """Return random images (batch, height, width, 3): large patches of colour under noise, so that they differ.

    RandomState's numbers are the same in every version of numpy, so every runner has the same images.
    """
    import numpy as np

    random = np.random.RandomState(seed)
    patches = random.randint(0, 256, (batch, 4, 4, 3)).astype(np.uint16)
    rows, columns = (np.arange(edge) * 4 // edge for edge in (height, width))
    noise = random.randint(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return ((patches[:, rows][:, :, columns] * 3 + noise) // 4).astype(np.uint8)


class Conversation:
    """Answers one request after the other; each request is a method."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._runner: Runner | None = None
        self._settings: dict[str, Any] = {}
        self._sets = 1
        self._next = 0
        self._iteration_s = 1.0
        self._nvml = Nvml(wanted=False)
        self._gpu_bytes = 0
        self._events: list[Any] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked; what the request's method returned, or the error, and the memory."""
        name = request.pop("do")
        if name == "start":
            self._nvml = Nvml(wanted=request["settings"]["device"] == "cuda")
        before = self._nvml.used_bytes()
        try:
            answer = getattr(self, name)(**request)
        except self._failures() as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        after = self._nvml.used_bytes()
        # Only one runner is at work at any time, so the difference is this one's.
        self._gpu_bytes += after - before if after is not None and before is not None else 0
        host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {**answer, "gpu_bytes": self._gpu_bytes if after is not None else None, "host_bytes": host_bytes}

    def start(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Load what runs; the answer says with which versions."""
        path = Path(__file__).with_name(f"{self._kind}_runner.py")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._settings = settings
        runner: Runner = module.open_runner(settings)
        self._runner = runner
        return {"about": {"python": sys.version.split()[0], **runner.about()}, "clock": runner.clock}

    def prepare(self, batch: int, sets: int, seed: int) -> dict[str, Any]:
        """Draw the inputs and hand them over."""
        size = (self._settings["height"], self._settings["width"])
        pixels = [make_pixels(batch, *size, seed=seed + index) for index in range(sets)]
        self._sets, self._next = sets, 0
        self.runner.prepare(pixels)
        return {"input_bytes": sum(one.nbytes for one in pixels)}

    def warm(self, seconds: float) -> dict[str, Any]:
        """Run in ever longer stretches; the last one says how long an iteration takes."""
        begin, count = time.perf_counter(), 1
        while True:
            start = time.perf_counter()
            self._run(count)
            end = time.perf_counter()
            self._iteration_s = (end - start) / count
            if end - begin >= seconds:
                return {"iteration_ms": self._iteration_s * 1000}
            count = min(2 * count, self._fitting(_STRETCH_S))

    def check(self, rows: int) -> dict[str, Any]:
        """Answer with the scores of the first input set."""
        import numpy as np

        scores = np.ascontiguousarray(self.runner.scores(), np.float32)
        first = scores[:rows]
        text = base64.b64encode(first.tobytes()).decode()
        return {"finite": bool(np.isfinite(scores).all()), "shape": list(first.shape), "scores": text}

    def measure(self, seconds: float, iterations: int, longest: float) -> dict[str, Any]:
        """Time each iteration, in stretches without a pause."""
        self._run(self._fitting(_SETTLE_S))
        times: list[float] = []
        span_ms, begin = 0.0, time.perf_counter()
        while not _enough(time.perf_counter() - begin, len(times), seconds, iterations, longest):
            some, span = self._time(self.runner.enqueue, self.runner.clock, self._fitting(_STRETCH_S))
            times += some
            span_ms += span
        return {"times_ms": times, "span_ms": span_ms}

    def copies(self, seconds: float, longest: float) -> dict[str, Any]:
        """Time iterations that begin and end in the host's memory."""
        times: list[float] = []
        begin, clock = time.perf_counter(), self.runner.copies_clock
        if not clock:
            return {"times_ms": None}
        while not _enough(time.perf_counter() - begin, len(times), seconds, 10, longest):
            times += self._time(self.runner.enqueue_with_copies, clock, min(10, self._fitting(_STRETCH_S)))[0]
        return {"times_ms": times}

    def energy(self, seconds: float) -> dict[str, Any]:
        """Work steadily until the counter, which moves in steps, has shown two of them at least `seconds` apart.

        It is read while the device works, for a reading may take long. `iterations` is what is done in the window at
        the rate of the whole run.
        """
        count, done, begin = self._fitting(_READING_S), 0, time.perf_counter()
        first: tuple[float, float] | None = None
        last = self._nvml.joules()
        while last is not None and time.perf_counter() - begin < 3 * seconds + 2:
            for index in self._indices(count):
                self.runner.enqueue(index)
            now, joules = time.perf_counter(), self._nvml.joules()
            self.runner.synchronize()
            done += count
            if joules is None or joules == last:
                continue
            last = joules
            if first is None:
                first = (now, joules)
            elif (window_s := now - first[0]) >= seconds:
                rate = done / (time.perf_counter() - begin)
                return {"joules": joules - first[1], "window_s": window_s, "iterations": rate * window_s}
        return {"joules": None, "window_s": None, "iterations": None}

    def release(self) -> dict[str, Any]:
        """Free what the batch took."""
        self.runner.release()
        return {}

    def close(self) -> None:
        """End in good order."""
        if self._runner is not None:
            self._runner.close()

    @property
    def runner(self) -> Runner:
        """What `start` loaded."""
        assert self._runner is not None, "the first request must be `start`"
        return self._runner

    def _failures(self) -> tuple[type[Exception], ...]:
        return self._runner.failures if self._runner is not None else (ImportError, OSError, RuntimeError, ValueError)

    def _fitting(self, seconds: float) -> int:
        return max(1, min(_LONGEST_STRETCH, int(seconds / self._iteration_s)))

    def _indices(self, count: int) -> list[int]:
        """Take the input sets in turn, from where the last stretch ended."""
        indices = [(self._next + step) % self._sets for step in range(count)]
        self._next = (self._next + count) % self._sets
        return indices

    def _time(self, enqueue: Callable[[int], None], clock: str, count: int) -> tuple[list[float], float]:
        """Run `count` iterations; return the time of each, and from first to last, in ms, by the clock.

        On a device each runs between two events, and nothing waits between them, so that the GPU does not either.
        """
        indices = self._indices(count)
        if clock == "host":
            times = []
            for index in indices:
                begin = time.perf_counter()
                enqueue(index)
                times.append((time.perf_counter() - begin) * 1000)
            return times, sum(times)
        runner, events = self.runner, self._events
        while len(events) < 2 * count:
            events.append(runner.make_event())
        for step, index in enumerate(indices):
            runner.record(events[2 * step])
            enqueue(index)
            runner.record(events[2 * step + 1])
        runner.synchronize()
        times = [runner.elapsed_ms(events[2 * step], events[2 * step + 1]) for step in range(count)]
        return times, runner.elapsed_ms(events[0], events[2 * count - 1])

    def _run(self, count: int) -> None:
        for index in self._indices(count):
            self.runner.enqueue(index)
        self.runner.synchronize()


def _enough(elapsed: float, count: int, seconds: float, iterations: int, longest: float) -> bool:
    return count > 0 and (elapsed >= longest or (elapsed >= seconds and count >= iterations))


def main(kind: str) -> None:
    """Answer until stdin ends. Whatever a library prints to stdout goes to stderr, out of the conversation."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    conversation = Conversation(kind)
    for line in sys.stdin:
        answers.write(json.dumps(conversation.answer(json.loads(line))) + "\n")
        answers.flush()
    conversation.close()


if __name__ == "__main__":
    main(sys.argv[1])
