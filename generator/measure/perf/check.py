"""The advised change made in a temporary copy of the configurations, served beside the server at hand, measured."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from generator.errors import PerfError
from generator.measure.perf.measurement import Measurement, Unsettled
from generator.measure.perf.served import read_repository
from generator.measure.perf.sweep import measure
from generator.triton.check import parse_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.measure.perf.images import RequestImages
    from generator.measure.perf.served import MeasuredModel
    from generator.measure.perf.sweep import Load
    from generator.measure.perf.verdict import Change, Verdict

_CONFIG = "config.pbtxt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the advised change brought.

    `predicted` and `found` are factors on the images per second, `share` is the part of the predicted gain that was
    found, `spread` that of both measurements together. `text` says all of it.
    """

    predicted: float
    found: float
    share: float
    spread: float
    images_per_s_before: float
    images_per_s_after: float
    text: str


def check_served(root: Path, models: Sequence[MeasuredModel]) -> None:
    """Refuse a repository that is not the one that the measured server has.

    Raises:
        PerfError: A model is not there, or has another configuration.
    """
    for served, there in zip(models, read_repository(root, models[0].name), strict=False):
        if (served.name, served.members, served.on_cpu) != (there.name, there.members, there.on_cpu) or (
            served.on_cpu and served.instances != there.instances
        ):
            raise PerfError(
                f"the server's {served.name} is not that of the repository {root}",
                hint="give the repository that the server serves",
                fields={"repository": None},
            )


def try_change(
    verdict: Verdict,
    before: Measurement,
    models: Sequence[MeasuredModel],
    images: RequestImages,
    load: Load,
    root: Path,
) -> Check | Unsettled:
    """Make the verdict's change, measure the same model again and return what it brought.

    More requests in flight go to the server at hand. Any other change is served from a copy of the configurations, on
    ports of its own; the repository itself and its server stay as they are.

    Raises:
        TrtgenError: The copy cannot be served, or the measurement failed.
    """
    change, expected = verdict.change, verdict.expected
    assert change is not None
    assert expected is not None
    if change.field == "concurrency":
        after = _measure(models, images, replace(load, concurrencies=[change.after]))
    else:
        assert before.concurrency is not None
        from generator.server.embedded import EmbeddedServer

        with copy_changed(root, [model.name for model in models], change) as copy, EmbeddedServer(copy) as server:
            url = server.http_url if load.protocol == "http" else server.grpc_url
            there = replace(load, url=url, metrics_url=server.metrics_url, concurrencies=[before.concurrency])
            after = _measure(models, images, there)
    return after if isinstance(after, Unsettled) else _conclude(before, after, expected)


@contextlib.contextmanager
def copy_changed(root: Path, names: Sequence[str], change: Change) -> Iterator[Path]:
    """Give a repository of these models of `root` with the change: configurations copied, everything else linked."""
    with tempfile.TemporaryDirectory(prefix="trtgen-perf-") as temporary:
        copy = Path(temporary).resolve() / "model_repository"
        for name in names:
            (copy / name).mkdir(parents=True)
            for entry in (root / name).iterdir():
                if entry.name != _CONFIG:
                    (copy / name / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
            text = (root / name / _CONFIG).read_text(encoding="utf-8")
            changed = _apply(text, change) if name == change.model else text
            (copy / name / _CONFIG).write_text(changed, encoding="utf-8")
        yield copy


def _apply(text: str, change: Change) -> str:
    """Return the configuration with the change."""
    from google.protobuf import text_format

    config = parse_config(change.model, text)
    if change.field == "max_queue_delay_microseconds":
        config.dynamic_batching.max_queue_delay_microseconds = change.after
    else:
        first = config.instance_group[0] if config.instance_group else config.instance_group.add()
        del config.instance_group[1:]
        first.count = change.after // max(len(first.gpus), 1)
    return text_format.MessageToString(config)


def _measure(models: Sequence[MeasuredModel], images: RequestImages, load: Load) -> Measurement | Unsettled:
    (after,) = measure(models[:1], images, load)
    return after


def _conclude(before: Measurement, after: Measurement, predicted: float) -> Check:
    found = after.infer_per_s / before.infer_per_s
    spread = (1 + (before.spread or 0)) * (1 + (after.spread or 0)) - 1
    share = (found - 1) / (predicted - 1)
    text = f"predicted {predicted:.2f}x, found {found:.2f}x: {share:.0%} of the predicted gain"
    if found <= 1 + spread:
        text = f"predicted {predicted:.2f}x, found {found:.2f}x: no gain beyond the spread of {spread:.0%}"
    return Check(
        predicted=predicted,
        found=found,
        share=share,
        spread=spread,
        images_per_s_before=before.infer_per_s,
        images_per_s_after=after.infer_per_s,
        text=text,
    )
