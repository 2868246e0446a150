"""How the rows of several requests get through an engine.

They are copied into pinned memory, piece by piece to the GPU, run as one batch (more than one only where they exceed
the profiles), and come back in one copy. Rows that lie on the GPU already are copied there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .device import EngineError
from .engine import MOST_SHAPES
from .gpu_array import GpuArray, is_on_gpu, read_gpu_array
from .shapes import choose_profile, find_misfit, find_row_ranges, split_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .engine import Engine
    from .shapes import Shape, Shapes

# What is staged goes to the GPU in pieces of at least this, so that the copies overlap with the staging of the rest.
_PIECE_BYTES = 2 * 2**20


class RequestError(EngineError):
    """Rows that the plan cannot run."""


class Chunk(NamedTuple):
    """Rows that run as one batch: from, to, in which context, with which shapes."""

    start: int
    stop: int
    context: int
    shapes: Shapes


class Rows:
    """Runs rows through an open engine.

    Args:
        engine: It stays open as it is.
        most: How many rows may run at once; 0 where requests have no batch axis.
    """

    def __init__(self, engine: Engine, *, most: int) -> None:
        self.engine, self.most = engine, most
        self._ranges: dict[Shapes, list[tuple[int, int]]] = {}
        self._outputs: list[NDArray[Any]] = []  # of the rows that `begin` starts on

    def find_ranges(self, rows: Shapes, shapes: Sequence[Shape]) -> list[tuple[int, int]]:
        """Return (least, most) rows of every open profile that takes rows of these shapes; without batching, one row.

        `shapes` are those of the whole arrays, for the message.

        Raises:
            RequestError: There is none.
        """
        found = self._ranges.get(rows)
        if found is None:
            found = find_row_ranges(self.engine.profiles, rows, self.most)
            if not found:
                raise RequestError(self._find_misfit(shapes))
            if len(self._ranges) >= MOST_SHAPES:
                self._ranges.clear()
            self._ranges[rows] = found
        return found

    def _find_misfit(self, shapes: Sequence[Shape]) -> str:
        """Return why no profile takes these shapes: as Triton does, by the example of the first."""
        problem = find_misfit(self.engine.inputs, self.engine.profiles[0], shapes, self.engine.name)
        return (
            problem or f"no optimization profile of {self.engine.name} takes {', '.join(str(list(s)) for s in shapes)}"
        )

    def begin(self, array: Any, first: int, total: int) -> bool:
        """Start on some of the rows that `run` will be given, while others are still made; say whether it was done.

        Args:
            array: Rows on the GPU (`__cuda_array_interface__`), for the only input.
            first: How many rows were begun before.
            total: How many there will be.
        """
        part = read_gpu_array(array)
        count, rows = part.shape[0], (part.shape[1:],)
        try:
            ranges = self.find_ranges(rows, [part.shape])
            if any(split_rows(size, ranges) is None for size in (count, total - first - count) if size):
                return False
            chunks = self._split(count, rows, first)
            if not first:
                self._outputs = self._stage_outputs(chunks, total)
            self._take([[part]], [count], chunks, first)
        except EngineError:
            return False  # `run` will say it
        return True

    def run(self, feeds: Sequence[Sequence[Any]], *, begun: int = 0) -> list[NDArray[Any]]:
        """Run the rows of all feeds as one batch, or as more than one where they exceed the profiles.

        Args:
            feeds: An array per input each, all with rows of the same shape. Without a batch axis there is one feed.
                All lie on the GPU (`GpuArray`, `__cuda_array_interface__`), or none.
            begun: How many of its rows `begin` has started on.

        Returns:
            For each output the rows of all feeds, one after the other. They lie in the staging memory: the next run
            writes over them.

        Raises:
            RequestError: No profile takes these rows.
            EngineError: TensorRT or CUDA fails.
        """
        batched = bool(self.most)
        on_gpu = is_on_gpu(feeds[0][0])
        if on_gpu:
            feeds = [[read_gpu_array(array) for array in arrays] for arrays in feeds]
        rows = tuple(array.shape[1:] if batched else array.shape for array in feeds[0])
        counts = [arrays[0].shape[0] if batched else 1 for arrays in feeds]
        total = sum(counts)
        if not total:
            empty = [(0, *(max(dim, 0) for dim in tensor.shape[1:])) for tensor in self.engine.outputs]
            return [
                np.empty(shape, self.engine.dtypes[one.name])
                for shape, one in zip(empty, self.engine.outputs, strict=True)
            ]
        chunks = self._split(total - begun, rows, begun) if begun < total else []
        outputs = self._outputs if begun else self._stage_outputs(chunks, total)
        try:
            if on_gpu:
                self._take(feeds, counts, chunks)
            else:
                self._feed(feeds, counts, self._stage_inputs(rows, total), chunks)
        finally:
            self.engine.wait()
        return outputs

    def _stage_inputs(self, rows: Shapes, total: int) -> list[NDArray[Any]]:
        """Return the staging memory of each input as an array of so many rows."""
        return [
            self.engine.view(self.engine.host_inputs[number], (total, *row), tensor)
            for number, (row, tensor) in enumerate(zip(rows, self.engine.inputs, strict=True))
        ]

    def _take(
        self, feeds: Sequence[Sequence[GpuArray]], counts: Sequence[int], chunks: Sequence[Chunk], first: int = 0
    ) -> None:
        """Run the chunks on rows that lie on the GPU; the feeds begin with row `first`."""
        for arrays in feeds:
            for tensor, array in zip(self.engine.inputs, arrays, strict=True):
                if array.dtype != self.engine.dtypes[tensor.name]:
                    raise RequestError(f"input '{tensor.name}' of {self.engine.name} lies on the GPU as {array.dtype}")
                self.engine.device.follow(array.stream)
        for chunk in chunks:
            before = first
            for arrays, count in zip(feeds, counts, strict=True):
                start, stop = max(before, chunk.start), min(before + count, chunk.stop)
                for number, array in enumerate(arrays if start < stop else ()):
                    row = array.nbytes // count
                    source = array.address + (start - before) * row
                    self.engine.take(number, (start - chunk.start) * row, source, (stop - start) * row)
                before += count
            self.engine.launch(chunk.context, chunk.shapes)
            self.engine.receive(chunk.start, chunk.context, chunk.shapes)

    def _split(self, total: int, rows: Shapes, first: int = 0) -> list[Chunk]:
        """Return so many rows, of which `first` is the first, as chunks that the profiles take."""
        whole = [(total, *row) for row in rows] if self.most else list(rows)
        parts = split_rows(total, self.find_ranges(rows, whole))
        if parts is None:
            raise RequestError(self._find_misfit(whole))
        chunks = []
        for start, stop in parts:
            shapes = tuple((stop - start, *row) for row in rows) if self.most else rows
            context = choose_profile(self.engine.profiles, shapes)
            assert context is not None, "the ranges are those of the profiles"
            chunks.append(Chunk(first + start, first + stop, context, shapes))
        return chunks

    def _stage_outputs(self, chunks: Sequence[Chunk], total: int) -> list[NDArray[Any]]:
        """Return an array for each output of all chunks, rows first."""
        shapes = [self.engine.find_output_shapes(chunk.context, chunk.shapes) for chunk in chunks]
        arrays = []
        for number, tensor in enumerate(self.engine.outputs):
            row = shapes[0][number][1:] if self.most else shapes[0][number]
            for chunk, found in zip(chunks, shapes, strict=True):
                if self.most and found[number] != (chunk.stop - chunk.start, *row):
                    raise EngineError(
                        f"output '{tensor.name}' has shape {list(found[number])}: "
                        f"expected {chunk.stop - chunk.start} rows, one per row of the inputs"
                    )
            arrays.append(self.engine.view(self.engine.host_outputs[number], (total, *row), tensor))
        return arrays

    def _feed(
        self,
        feeds: Sequence[Sequence[NDArray[Any]]],
        counts: Sequence[int],
        inputs: Sequence[NDArray[Any]],
        chunks: Sequence[Chunk],
    ) -> None:
        """Stage the feeds one after the other; what is staged is sent, and run as soon as a chunk is complete."""
        sizes = [view[:1].nbytes for view in inputs]
        waiting = iter(chunks)
        chunk: Chunk | None = next(waiting)
        staged = sent = 0
        for arrays, count in zip(feeds, counts, strict=True):
            for view, array in zip(inputs, arrays, strict=True):
                np.copyto(view[staged : staged + count], array)
            staged += count
            while chunk is not None:
                stop = min(staged, chunk.stop)
                complete = stop == chunk.stop
                if not complete and (stop - sent) * sum(sizes) < _PIECE_BYTES:
                    break
                for number, size in enumerate(sizes):
                    self.engine.send(number, sent * size, (sent - chunk.start) * size, (stop - sent) * size)
                sent = stop
                if not complete:
                    break
                self.engine.launch(chunk.context, chunk.shapes)
                self.engine.receive(chunk.start, chunk.context, chunk.shapes)
                chunk = next(waiting, None)
