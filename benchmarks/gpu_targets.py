"""What the figures of benchmarks.gpu and benchmarks.gpu_serving must reach, and what they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TORCH = "torch-fp16-graph"
PLAN, INT8 = "plan-fp16-graph", "plan-int8-graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure; `must` and `aim` are the least it should be, or, where `at_most` is set, the most."""

    what: str
    measured: float
    must: float | None = None
    aim: float | None = None
    at_most: bool = False

    def reaches(self, limit: float | None) -> bool:
        """Say whether a limit is kept; a limit that does not exist is."""
        return limit is None or (self.measured <= limit if self.at_most else self.measured >= limit)


def of_bench(results: dict[str, Any]) -> Iterator[Target]:
    """Yield the targets of what gpu.json holds."""
    if "bench resnet50" in results:
        yield from _of_resnet(_by_runner(results["bench resnet50"]))
    if "bench efficientnet_b0" in results:
        figures = _by_runner(results["bench efficientnet_b0"])
        yield from _ratio("EfficientNet-B0, 64 images, against PyTorch FP16", figures, 64, PLAN, TORCH, aim=2.0)
    cache = results.get("timing cache", {})
    if (cache.get("cold"), cache.get("warm")) == ("cold", "warm"):
        yield Target(what="second build with a warm timing cache", measured=cache["ratio"], must=3.0)
    held_out = results.get("held-out", {})
    before, after = (_accuracy(held_out.get(name, {})) for name in ("demo_fp32", "demo_int8"))
    if before is not None and after is not None:
        lost = 100 * (before - after)
        yield Target(what="points lost by INT8 on held-out images", measured=lost, aim=1.0, at_most=True)


def _of_resnet(figures: dict[tuple[str, int], dict[str, Any]]) -> Iterator[Target]:
    yield from _ratio("64 images, against PyTorch FP16", figures, 64, PLAN, TORCH, must=2.0, aim=2.2)
    if one := figures.get((PLAN, 1)):
        yield Target(what="ms for one image", measured=one["median_ms"], aim=0.5, at_most=True)
    yield from _ratio("INT8 against FP16, 128 images", figures, 128, INT8, PLAN, aim=1.5)
    yield from _ratio("the same without CUDA graphs", figures, 128, "plan-int8", "plan-fp16", aim=1.5)
    for runner in (PLAN, INT8):
        for batch in (1, 8, 32, 64, 128):
            what = f"images/J against PyTorch FP16, {runner}, {batch}"
            yield from _ratio(what, figures, batch, runner, TORCH, of="images_per_joule", aim=2.0)


def of_serving(results: dict[str, Any]) -> Iterator[Target]:
    """Yield the targets of what gpu_serving.json holds, for each configuration that was measured."""
    for row in results.get("measure", []):
        which = f"{row['preprocess']}:{row['classifier']}"
        yield Target(what=f"{which} JPEG, 1 per request, of bare", measured=row["singles_share"], must=0.6, aim=0.8)
        yield Target(what=f"{which} JPEG, 8 per request, of bare", measured=row["eights_share"], must=0.7, aim=0.9)
        yield Target(what=f"{which} pixels, of the bare plan", measured=row["raw_share"], must=0.4, aim=0.6)


def describe(targets: Iterable[Target]) -> Iterator[str]:
    """Yield a line for each target."""
    for one in targets:
        limits = [f"{word} {limit:g}" for word, limit in (("must", one.must), ("aim", one.aim)) if limit is not None]
        missed = "MISSED" if not one.reaches(one.must) else "aim missed" if not one.reaches(one.aim) else "reached"
        yield f"{one.what:60} {one.measured:6.2f}  {', '.join(limits):18} {missed}"


def _by_runner(bench: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["runner"], one["batch"]): one for one in bench["figures"] if not one["failure"]}


def _ratio(
    what: str,
    figures: dict[tuple[str, int], dict[str, Any]],
    batch: int,
    runner: str,
    other: str,
    *,
    of: str = "images_per_s",
    must: float | None = None,
    aim: float | None = None,
) -> Iterator[Target]:
    one, two = (figures.get((name, batch), {}).get(of) for name in (runner, other))
    if one and two:
        yield Target(what=what, measured=one / two, must=must, aim=aim)


def _accuracy(found: dict[str, Any]) -> float | None:
    """Return the accuracy of the plan run directly, if that was measured."""
    stages = {stage["stage"]: stage for stage in found.get("stages", [])}
    accuracy: float | None = stages.get("labelled plan", {}).get("accuracy")
    return accuracy
