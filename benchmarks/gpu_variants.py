"""Ways for raw tensors between client and engine, beside each other in one run: `gpu_serving --steps variants`.

Each variant is a server of its own on the same repository, and all of them take turns, so that a GPU that gets slower
shows. What is measured is the network alone with requests of 8 uint8 images, through system and through CUDA shared
memory and inside the request, against the bare plan before and after each turn.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.gpu_load import MODEL, with_instances
from generator.server.configs import find_options
from generator.server.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

# What glibc keeps instead of giving it back to the system; the stubs inherit it from the server.
_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}
_POOLS = ("--pinned-memory-pool-byte-size=1073741824", "--cuda-memory-pool-byte-size=0:1073741824")
_TO_CPU = 'parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "yes" } }\n'
WAYS = ("none", "system", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A server: its environment, further options, further lines of the network's config.pbtxt, and whether with MPS."""

    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    config: str = ""
    mps: bool = False


VARIANTS = {
    "as-it-is": Variant(),
    "malloc-keeps": Variant(environment=_KEPT),
    "larger-pools": Variant(options=_POOLS),
    "inputs-to-cpu": Variant(config=_TO_CPU),
    "mps": Variant(mps=True),
}


def measure_variants(
    work: Path,
    repository: Path,
    *,
    names: Sequence[str],
    turns: int,
    instances: int,
    measure_plan: Callable[[], float],
    perf: Callable[..., list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each turn, variant and way of the tensors: images/s, and their share of the bare plan's."""
    before = measure_plan()
    for turn in range(turns):
        for name in names:
            variant = VARIANTS[name]
            tree = with_instances(repository, work / "served", preprocess=1, classifier=instances)
            with (tree / f"{MODEL}_classifier" / "config.pbtxt").open("a", encoding="utf-8") as config:
                config.write(variant.config)
            found: dict[str, float | str] = {}
            log = work / f"variant-{name}.log"
            with serve(tree, variant, log) as server:
                for way in WAYS:
                    arguments = ["--model", f"{MODEL}_classifier", "--shared-memory", way, "--batch-size", "8",
                                 "--concurrency", "64", "--measurement-requests", "3000"]  # fmt: skip
                    try:
                        rows = perf(work, server, *arguments)
                        found[way] = max((one["infer_per_s"] for one in rows), default="not settled")
                    except SystemExit as error:  # one that does not run must not end the others
                        found[way] = str(error)
            after = measure_plan()
            for way, images in found.items():
                bare = statistics.mean((before, after))
                share = {"share": images / bare} if isinstance(images, float) else {}
                yield {"turn": turn, "variant": name, "way": way, "images_per_s": images, "bare": bare, **share}
            before = after


@contextlib.contextmanager
def serve(tree: Path, variant: Variant, log: Path) -> Iterator[EmbeddedServer]:
    """Run a server of this variant."""
    with (
        mock.patch.dict(os.environ, variant.environment),
        mock.patch("generator.server.embedded.find_options", lambda root: [*find_options(root), *variant.options]),
        EmbeddedServer(tree, log_path=log, mps=variant.mps) as server,
    ):
        yield server


def summarise(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each variant: the median share of the bare plan, and the lowest and the highest, by way."""
    yield f"{'variant':20}" + "".join(f"{way:>24}" for way in WAYS)
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for way in WAYS:
            own = [row for row in rows if (row["variant"], row["way"]) == (name, way)]
            shares = [row["share"] for row in own if "share" in row]
            spread = f" ({min(shares):.2f}..{max(shares):.2f})" if shares else ""
            cells.append(
                f"{statistics.median(shares):.2f}{spread}" if shares else own[0]["images_per_s"] if own else ""
            )
        yield f"{name:20}" + "".join(f"{cell:>24}" for cell in cells)
