"""Kill the builder at every step of publishing and see what a server makes of the repository.

    python -m benchmarks.crash --repositories 100

For each situation (first publish, new version, other configuration, --replace) a child process publishes what a build
has staged and gets SIGKILL at its n-th call that changes the disk, for every n. Twice the repository is then served by
a real tritonserver and asked: as it lies there, without recovery, where no answer is allowed and a wrong one is not;
and after the next command, where the answer must be there and right. Equal trees are served once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from generator.errors import ServerError
from generator.gate.client import GrpcAddress, ServedModel, as_bytes
from generator.images.reference import load_reference
from generator.pipeline import BuildOptions, build_repository
from generator.repository import Layout, journal, publish, read_record, recover
from generator.repository.publish import hash_tree
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec
from tests.tiny_onnx import write_tiny_onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from generator.spec.model import ModelSpec

NAME = "tiny"
RECIPE = {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3}
# What changes the disk; fsync stands for the moments at which the machine may lose power.
STEPS = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync")
SITUATIONS: dict[str, dict[str, Any]] = {
    "first": {},
    "version": {"seed": 1},
    "configuration": {"max_queue_delay_microseconds": 9},
    "replace": {"classes": 5},
}


@dataclass(slots=True)
class Tally:
    """What was seen. `wrong` and `dead` must stay empty."""

    killed: int = 0
    silent: int = 0
    served: int = 0
    recovered: int = 0
    wrong: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)


def tiny(folder: Path, *, seed: int = 0, classes: int = 4, **options: Any) -> ModelSpec:
    """Return a spec of a small ONNX file whose answers follow from `seed` and `classes`."""
    path = write_tiny_onnx(folder / f"{NAME}.onnx", seed=seed, classes=classes)
    return make_spec([str(path)], labels="index", recipe=RECIPE, instances={"preprocess": 1}, **options)[0]


def run_until_killed(work: Callable[[], object], *, step: int) -> bool:
    """Do `work` in a child that is killed at its `step`-th change of the disk; say if it was."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        msg = f"publishing failed in the child with exit code {os.WEXITSTATUS(status)}"
        raise RuntimeError(msg)
    return os.WIFSIGNALED(status)


def kill_everywhere(build: Callable[[], object], folder: Path) -> list[Path]:
    """Run `build` once, and publish a copy of what it staged again and again, each time killed one step later.

    Return the repositories that were left so, below `folder`.
    """
    carry_out = journal.carry_out
    left: list[Path] = []

    def finish(root: Path, moves: Sequence[journal.Move]) -> None:
        carry_out(root, moves)
        shutil.rmtree(journal.staging_folder(root), ignore_errors=True)  # as `journal.staging` ends

    def publish_copies(root: Path, moves: Sequence[journal.Move]) -> None:
        for step in itertools.count():
            copy = folder / str(step) / root.name
            shutil.copytree(root.parent, copy.parent)  # with the staging folder beside it
            if not run_until_killed(partial(finish, copy, moves), step=step):
                break
            left.append(copy)
        carry_out(root, moves)

    with mock.patch.object(sys.modules[publish.__module__], "carry_out", publish_copies):
        build()
    return left


def answer_of(root: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Serve `root` and return (the served scores, what the graph of the newest version must answer), or None."""
    if not (root / NAME).exists():
        return None
    classifier = root / f"{NAME}_classifier"
    versions = [int(entry.name) for entry in classifier.glob("[0-9]*")] if classifier.is_dir() else []
    try:
        with EmbeddedServer(root, models=[NAME]) as server:
            members = {"preprocess": f"{NAME}_preprocess", "classifier": classifier.name, "ensemble": NAME}
            layout = Layout(members=members, network=classifier.name, version=max(versions))
            reference = load_reference(root / layout.reference)
            with ServedModel(GrpcAddress(url=server.grpc_url), layout, max_batch_size=8) as served:
                (scores,) = served.ask("ensemble", as_bytes(reference.files[:4])).values()
    except ServerError:
        return None
    logits = reference.answers["scores"][:4]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores, exponentials / exponentials.sum(axis=1, keepdims=True)


def is_right(answer: tuple[NDArray[np.float32], NDArray[np.float32]]) -> bool:
    """Say whether the served scores are those of the source (pixels may differ by one level of 255)."""
    scores, expected = answer
    return scores.shape == expected.shape and bool(np.abs(scores - expected).max() < 0.02)


def crash(folder: Path, situations: list[str], *, limit: int) -> Iterator[tuple[str, Tally]]:
    """Yield after each kill what was seen so far, until every step was hit or `limit` repositories were killed."""
    tally = Tally()
    options = BuildOptions(verify=False)
    known: dict[str, bool | None] = {}

    def judge(root: Path) -> bool | None:
        key = str(sorted(hash_tree(root).items()))
        if key not in known:
            answer = answer_of(root)
            known[key] = None if answer is None else is_right(answer)
        return known[key]

    for situation in situations:
        before = folder / situation / "before"
        if situation != "first":
            build_repository(tiny(folder), before, options)
        spec = tiny(folder, **SITUATIONS[situation])
        how = BuildOptions(verify=False, replace=situation == "replace")
        start = folder / situation / "start" / "repo"
        if before.exists():
            shutil.copytree(before, start)
        left = kill_everywhere(partial(build_repository, spec, start, how), folder / situation)
        for step, root in enumerate(left[: limit - tally.killed]):
            home = root.parent
            tally.killed += 1
            torn = home / "torn" / "repo"  # without the staging folder beside it, nothing can be recovered
            shutil.copytree(root, torn)
            verdict = judge(torn)
            tally.silent += verdict is None
            tally.served += verdict is True
            tally.wrong += [f"{situation}, step {step}"] if verdict is False else []
            recover(root)
            build_repository(spec, root, how)
            record = read_record(root, NAME)
            if record is None or judge(root) is not True or journal.staging_folder(root).exists():
                tally.dead.append(f"{situation}, step {step}")
            else:
                tally.recovered += 1
            shutil.rmtree(home)
            yield situation, tally


def main() -> int:
    """Print the tally; exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=int, default=100, help="how many builders to kill at most")
    parser.add_argument("--situations", nargs="+", choices=list(SITUATIONS), default=list(SITUATIONS))
    options = parser.parse_args()
    start = time.monotonic()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="trtgen-crash-") as folder:
        for situation, seen in crash(Path(folder), options.situations, limit=options.repositories):
            tally = seen
            print(f"{situation:14} {tally.killed} killed", end="\r", file=sys.stderr)
    print(f"killed builders              {tally.killed}")
    print(f"without recovery: no answer  {tally.silent}, right answer {tally.served}, wrong answer {len(tally.wrong)}")
    print(f"after the next command       {tally.recovered} of {tally.killed} load and answer right")
    print(f"seconds                      {time.monotonic() - start:.0f}")
    for problem in (*tally.wrong, *tally.dead):
        print(f"problem: {problem}")
    return 1 if tally.wrong or tally.dead else 0


if __name__ == "__main__":
    sys.exit(main())
