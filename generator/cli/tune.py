"""`trtgen tune`: the settings that serve a model best on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from generator.cli.console import say, show_progress
from generator.cli.hints import write_command
from generator.cli.options import RepositoryOption, make_wait_option, parse_numbers

LOAD, SEARCH = "Load", "Search"  # panels of --help


def tune(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The model.  [default: the only one]")] = None,
    *,
    repository: RepositoryOption = Path("model_repository"),
    spec: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="The models.yaml that it was built from.  [default: what its trtgen.json says]",
        ),
    ] = None,
    objective: Annotated[
        Literal["throughput", "latency", "energy"],
        typer.Option(help="What to look for: images per second, the lowest p99, or images per joule of the GPUs."),
    ] = "throughput",
    p99_ms: Annotated[
        float | None,
        typer.Option("--p99-ms", min=0.01, metavar="MS", help="The highest p99 of the latency that is allowed."),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Numbers of requests in flight.  [default: found by doubling; 1 for latency]",
            rich_help_panel=LOAD,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.", rich_help_panel=LOAD)] = 1,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Folder of images.  [default: drawn images]",
            rich_help_panel=LOAD,
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=2, max=256, help="How many settings to try at most.", rich_help_panel=SEARCH)
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Draws other settings to try.", rich_help_panel=SEARCH)] = 0,
    measurement_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Least number of requests in a window of the first round; each round doubles it.",
            rich_help_panel=SEARCH,
        ),
    ] = 50,
    max_spread: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            min=0.1,
            help="How far three windows in a row may differ; else a candidate has failed.",
            rich_help_panel=SEARCH,
        ),
    ] = 20,
    timeout: Annotated[
        float,
        make_wait_option("Longest time of one measurement, in seconds.", panel=SEARCH),
    ] = 300,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the journal and tune.json; a stopped run goes on from it.")
    ] = Path("tune"),
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the spec with the chosen fields goes.  [default: FILE.tuned.yaml beside --spec, else in DIR]",
        ),
    ] = None,
) -> None:
    """Find the layout, instances, queue delay and CUDA graphs that serve a model best here, and write them into a spec.

    Example: trtgen tune resnet50 --p99-ms 50
    """
    from generator.measure.results import write_files
    from generator.measure.tune.report import describe_outcome, format_table, make_document
    from generator.measure.tune.run import Request, prepare
    from generator.measure.tune.search import Schedule, Search
    from generator.measure.tune.spec_file import write_text
    from generator.measure.tune.trial import Goal

    goal = Goal(objective=objective, p99_ms=p99_ms)
    schedule = Schedule(
        concurrencies=None if concurrency is None else tuple(parse_numbers(concurrency)), requests=measurement_requests
    )
    request = Request(
        repository=repository,
        name=name,
        spec=spec,
        goal=goal,
        schedule=schedule,
        candidates=candidates,
        seed=seed,
        batch_size=batch_size,
        images=images,
        max_spread_percent=max_spread,
        timeout_s=timeout,
        folder=output,
        written=write,
    )
    tuning = prepare(request)
    for knob in tuning.knobs:
        say(f"  {knob.field}: {', '.join(map(str, knob.values))}")
    count = len(tuning.drawn)
    minutes = math.ceil(schedule.estimate_s(count) / 60)
    say(
        f"{count} candidates, {schedule.count_servers(count)} servers one after the other: about {minutes} min, or more"
    )
    if done := len(tuning.journal.trials):
        say(f"goes on from {output} (measurements there: {done})")
    try:
        with show_progress() as progress:
            outcome = Search(tuning.candidates, tuning.journal, goal, schedule, progress.draw).run(tuning.drawn)
    except KeyboardInterrupt:
        say(f"the same command goes on from {output} (measurements there: {len(tuning.journal.trials)})")
        raise
    finally:
        if tuning.journal.trials:
            print(format_table(tuning.journal.trials, goal))
    print(describe_outcome(outcome, goal))
    document = make_document(tuning.about, tuning.journal.trials, outcome, goal)
    for path in write_files({"tune.json": document}, output):
        say(f"wrote {path}")
    if outcome.chosen:
        write_text(tuning.make_spec(request, outcome.chosen), tuning.written)
        print(tuning.written)
        replaced = {"replace": True} if "layout" in outcome.chosen else {}  # clients of its members find them no more
        fields = {"spec": tuning.written, "repository": repository, **replaced}
        say(f"build it: {write_command(('build-repo',), fields)}")
