"""Times between events on a stream, for runners in the interpreter that has this project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from generator.gpu.memory import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from generator.gpu.memory import Stream

__all__ = ["time_on_device"]


def time_on_device(
    stream: Stream, events: list[Event], start: Callable[[int], None], indices: Sequence[int]
) -> tuple[list[float], float]:
    """Start one iteration per index, each between two events; return each one's time and the whole span, in ms.

    Nothing waits between the iterations, so that the GPU does not either. `events` are kept and reused by the caller.
    """
    while len(events) < 2 * len(indices):
        events.append(Event())
    for step, index in enumerate(indices):
        events[2 * step].record(stream)
        start(index)
        events[2 * step + 1].record(stream)
    stream.synchronize()
    pairs = [(events[2 * step], events[2 * step + 1]) for step in range(len(indices))]
    return [last.elapsed_ms(first) for first, last in pairs], pairs[-1][1].elapsed_ms(pairs[0][0])
