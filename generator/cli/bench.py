"""`trtgen bench`: the graph and its plans beside PyTorch and onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import say
from generator.cli.options import make_wait_option, parse_numbers
from generator.errors import MissingDependencyError, PerfError

if TYPE_CHECKING:
    from generator.measure.bench.result import BenchResult

SPREAD_WORTH_A_NOTE = 0.05


def bench(  # noqa: PLR0917 - the command line
    onnx: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False, help="The graph, as `export` wrote it.")
    ],
    plan: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="A plan built from it; may be given several times."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="torchvision's name of the same network, to measure PyTorch.  [default: none]"
        ),
    ] = None,
    state_dict: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, metavar="FILE", help="The graph's weights for PyTorch.  [default: random ones]"
        ),
    ] = None,
    torch_python: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="An interpreter with torch and torchvision.  [default: this one]"),
    ] = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="Where to measure; auto takes the GPU if there is one.")
    ] = "auto",
    batches: Annotated[str, typer.Option(metavar="N,N,...", help="Images per iteration.")] = "1,8,32,64,128",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each runner at each batch.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, max=60, metavar="S", help="Least time of a turn.")] = 0.5,
    iterations: Annotated[int, typer.Option(min=1, help="Least number of iterations in a turn.")] = 20,
    energy_seconds: Annotated[
        float, typer.Option(min=0, max=60, metavar="S", help="Length of each turn's energy window; 0 for none.")
    ] = 1.0,
    timeout: Annotated[
        float,
        make_wait_option("Longest wait for one answer of a runner, in seconds."),
    ] = 180,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Leave runners out whose label begins so.")
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for bench.json, bench.html and bench.svg.")
    ] = Path("bench"),
) -> None:
    """Measure latency, throughput, memory and energy of plans, onnxruntime and PyTorch side by side.

    Example: trtgen bench exported/resnet50/model.onnx --plan model.plan --batches 1,8
    """
    from generator.gpu import why_no_gpu
    from generator.graph.model import read_onnx
    from generator.measure.bench.contender import make_contenders
    from generator.measure.bench.measure import Schedule, run_bench
    from generator.measure.bench.method import describe_bench
    from generator.measure.bench.result import BenchResult
    from generator.measure.results import check_folder

    wanted = tuple(sorted(set(parse_numbers(batches))))
    check_folder(output)
    chosen = device if device != "auto" else ("cpu" if why_no_gpu() else "cuda")
    graph = read_onnx(onnx)
    contenders = make_contenders(
        graph,
        plans=plan or [],
        model=model,
        state_dict=state_dict,
        torch_python=torch_python,
        device=chosen,
        skip=skip or [],
    )
    schedule = Schedule(
        batches=wanted,
        rounds=rounds,
        seconds=seconds,
        iterations=iterations,
        energy_s=energy_seconds if chosen == "cuda" else 0.0,
        timeout_s=timeout,
    )
    labels = [one.label for one in contenders]
    reference = next((one for one in labels if one.startswith("torch") and one.endswith("-graph")), labels[0])
    weights = (
        "" if model is None else f"torchvision's {model} with {state_dict.name if state_dict else 'random weights'}"
    )
    about = describe_bench(graph, schedule, device=chosen, weights=weights)
    result = BenchResult(reference=reference, about=about)
    turn_s = schedule.seconds + schedule.energy_s
    least_s = len(labels) * len(wanted) * (rounds * turn_s + schedule.warm_s)
    say(f"measuring {', '.join(labels)} on the {'GPU' if chosen == 'cuda' else 'CPU'}: at least {least_s:.0f} s")
    try:
        run_bench(contenders, schedule, result, on_progress=say, on_batch=lambda: _keep(result, output))
    finally:  # what was measured before Ctrl-C is worth keeping
        if result.usable():
            _report(result, output)
    if not result.usable():
        _refuse(result)
    _refuse_silent(result)


def _keep(result: BenchResult, output: Path) -> None:
    """Write the figures of the batches so far, for an end without a chance to do it."""
    from generator.measure.bench.output import describe_result
    from generator.measure.results import to_json, write_files

    if result.usable():
        write_files({"bench.json": to_json(describe_result(result))}, output)


def _report(result: BenchResult, output: Path) -> None:
    from generator.measure.bench.measure import LEAST_COSINE
    from generator.measure.bench.output import describe_result, format_table, make_page
    from generator.measure.bench.plot import draw_svg
    from generator.measure.results import to_json, write_files

    print(format_table(result))
    files = {"bench.json": to_json(describe_result(result))}
    try:
        files["bench.svg"] = draw_svg(result)
    except MissingDependencyError as error:
        say(f"note: no diagrams: {error.message}\nhint: {error.hint}")
    files["bench.html"] = make_page(result, files.get("bench.svg", ""))
    for path in write_files(files, output):
        say(f"wrote {path}")
    for one in result.agreements:
        if one.worst_cosine < LEAST_COSINE:
            say(
                f"note: {one.second} and {one.first} answer differently at batch {one.batch} (cosine "
                f"{one.worst_cosine:.4f}): are they of the same network?"
            )
    if any(one.spread > SPREAD_WORTH_A_NOTE for one in result.usable()):
        say("note: a large spread between rounds means a busy machine or short turns; raise --seconds, measure again")


def _refuse(result: BenchResult) -> None:
    failures = "\n".join(f"{one.label}, batch {one.batch}: {one.failure}" for one in result.figures)
    raise PerfError(f"no runner could be measured\n{failures}", hint="run with --batches 1 and one runner to see more")


def _refuse_silent(result: BenchResult) -> None:
    """Refuse a run in which a runner measured nothing; what the others measured is written already."""
    heard = {one.label for one in result.usable()}
    silent = {one.label: one for one in reversed(result.figures) if one.label not in heard}  # with its first failure
    if silent:
        failures = "\n".join(f"{label}, batch {one.batch}: {one.failure}" for label, one in sorted(silent.items()))
        msg = f"{len(silent)} of the runners measured nothing\n{failures}"
        raise PerfError(msg, hint=f"leave it out: --skip {min(silent)}")
