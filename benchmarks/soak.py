"""A long run against the demo model: every answer right, memory flat, nothing left.

    python -m benchmarks.soak --requests 20000 --concurrency 8

JPEG files of mixed sizes and 1 % bad ones (garbage, truncated, text, empty) go to the ensemble over gRPC. Each answer
is compared with the scores that the published graph gives for that image alone, each refusal with its words. After
every tenth of the requests the memory of tritonserver and its stubs is read, while nothing is under way.

Memory is the sum of PSS (proportional set size): libraries and the shared memory between tritonserver and its stubs
are counted once. A sum of RSS would count them for each process.

Exit code 1: an unexpected answer, more memory at the end than allowed, or something left behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.load import Load, Tally, make_bad_questions, make_questions, mix
from benchmarks.machine import describe_machine
from generator.pipeline import BuildOptions, build_repository
from generator.server.embedded import EmbeddedServer
from generator.spec.file import make_spec

PHASES = 10
BAD_SHARE = 0.01
_MIB = 2**20
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend puts its regions


@dataclass(slots=True)
class Soak:
    """What a run came to; `memory_bytes` has one value for each phase."""

    tally: Tally = field(default_factory=Tally)
    memory_bytes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """Return how much more memory there is at the end than after the first phase, as a share of that."""
        return self.memory_bytes[-1] / self.memory_bytes[0] - 1

    def find_problems(self, *, growth_limit: float) -> list[str]:
        """Return every limit that was missed, in words."""
        problems = [f"unexpected: {problem}" for problem in self.tally.problems]
        if self.growth() > growth_limit:
            problems.append(f"memory grew by {self.growth():.1%}, at most {growth_limit:.0%} is allowed")
        return problems + [f"left behind: {thing}" for thing in self.left]


def measure_memory(pid: int) -> int:
    """Return the PSS of tritonserver and all its stubs, in bytes."""
    server = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in (server, *server.children(recursive=True)))


def soak(repository: Path, *, requests: int, concurrency: int) -> Soak:
    """Serve the demo model of `repository` and ask it `requests` times."""
    result = Soak()
    good, bad = make_questions(repository), make_bad_questions()
    with EmbeddedServer(repository) as server:
        identifier = find_identifier(server.pid)
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        for phase in range(PHASES):
            questions = mix(good, bad, requests // PHASES, bad_share=BAD_SHARE, seed=phase)
            started = time.monotonic()
            with Load("grpc", server.grpc_url, questions, concurrency=concurrency) as load:
                pass
            result.seconds += time.monotonic() - started
            result.tally.count(load.answers)
            result.memory_bytes.append(measure_memory(server.pid))
            print(f"{(phase + 1) * len(questions)} requests", end="\r", file=sys.stderr)
    result.left += [str(path) for path in _SHARED_MEMORY.glob(f"{identifier}*")]
    result.left += [f"process {process.pid}" for process in processes if process.is_running()]
    return result


def find_identifier(pid: int) -> str:
    """Return what the names of this tritonserver's shared memory begin with."""
    prefix = "shm-region-prefix-name="
    return next(word.rpartition(prefix)[2] for word in psutil.Process(pid).cmdline() if prefix in word)


def main() -> int:
    """Print what was seen as the page docs/benchmarks.md keeps it; exit 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="a multiple of 1000")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--growth-limit", type=float, default=0.05, help="of the memory after a tenth of the requests")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trtgen-soak-") as folder:
        repository = Path(folder) / "model_repository"
        build_repository(make_spec(["demo"])[0], repository, BuildOptions(verify=False))
        seen = soak(repository, requests=options.requests, concurrency=options.concurrency)
    tally = seen.tally
    total = tally.right + tally.refused + len(tally.problems)
    problems = seen.find_problems(growth_limit=options.growth_limit)
    print(f"{describe_machine()}\n")
    print(
        "| requests | right scores | right refusals | unexpected | images/s | memory first, last (MiB PSS) | growth |"
    )
    print("|---|---|---|---|---|---|---|")
    memory = f"{seen.memory_bytes[0] / _MIB:.0f}, {seen.memory_bytes[-1] / _MIB:.0f}"
    counts = f"{total} | {tally.right} | {tally.refused} | {len(tally.problems)}"
    print(f"| {counts} | {total / seen.seconds:.0f} | {memory} | {seen.growth():+.1%} |")
    print(f"\nmemory after each tenth (MiB): {', '.join(f'{size / _MIB:.0f}' for size in seen.memory_bytes)}")
    for problem in problems[:20]:
        print(f"problem: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
