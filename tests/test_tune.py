"""trtgen tune: the halving with planted figures, its journal, the spec that it writes, and a short real run."""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from generator.cli import main
from generator.errors import PerfError, ServerError, SpecError, TrtgenError
from generator.events import Doing, Done
from generator.measure.tune import served
from generator.measure.tune.journal import JOURNAL_FILE, Journal
from generator.measure.tune.knobs import Knob, Settings, apply_settings, describe_settings, draw_candidates, find_knobs
from generator.measure.tune.report import describe_outcome, format_table
from generator.measure.tune.run import Request, prepare
from generator.measure.tune.search import SPEC, Outcome, Schedule, Search
from generator.measure.tune.spec_file import make_text, write_text
from generator.measure.tune.trial import Figure, Goal, Trial
from generator.pipeline import BuildOptions, build_repository
from generator.repository.publish import hash_tree
from generator.server import stubs
from generator.spec.file import load_spec, make_spec
from generator.spec.model import ModelSpec
from tests.test_disk_full import Disk, fill
from tests.test_perf import ANSWER_VERSION, make_program
from tests.tiny_onnx import write_tiny_onnx

ABOUT = {"format": 1, "model": "a version 1", "machine": {"cores": 2}, "p99_ms": None}
THROUGHPUT = Goal(objective="throughput")
ONE_LOAD = Schedule(concurrencies=(4,))
DRAWN: list[Settings] = [SPEC, *({"instances.preprocess": count} for count in range(2, 9))]
BEST = DRAWN[5]


def choose(settings: Settings, concurrency: int) -> Figure:
    """A planted model: BEST serves most, and requests above what it serves at once wait."""
    speed = 200.0 if settings == BEST else 100.0 + len(str(settings))
    served_per_s = min(speed, 50.0 * concurrency)
    return Figure(infer_per_s=served_per_s, p99_ms=1000 * concurrency / served_per_s, shares={"a_preprocess": 0.7})


class Planted:
    """Candidates whose figures are planted; remembers what was served and measured."""

    def __init__(self, plan: Callable[[Settings, int], Figure] = choose) -> None:
        self.plan = plan
        self.opened: list[Settings] = []
        self.measured: list[tuple[Settings, int, int]] = []

    @contextlib.contextmanager
    def open(self, settings: Settings) -> Iterator[Any]:
        self.opened.append(settings)

        def probe(concurrency: int, requests: int) -> Figure:
            self.measured.append((settings, concurrency, requests))
            return self.plan(settings, concurrency)

        yield probe


def search(
    folder: Path,
    planted: Planted,
    goal: Goal = THROUGHPUT,
    schedule: Schedule = ONE_LOAD,
    drawn: Sequence[Settings] = DRAWN,
    events: list[Doing | Done] | None = None,
) -> Outcome:
    journal = Journal(folder / JOURNAL_FILE, ABOUT)
    return Search(planted, journal, goal, schedule, (events if events is not None else []).append).run(drawn)


# --- the halving


def test_better_half_is_measured_longer_and_the_best_wins(tmp_path: Path) -> None:
    planted, events = Planted(), list[Doing | Done]()
    outcome = search(tmp_path, planted, events=events)
    assert outcome.chosen == BEST
    assert outcome.verdict is not None
    assert outcome.verdict.wins
    assert outcome.verdict.value == choose(BEST, 4).infer_per_s
    assert [requests for _, _, requests in planted.measured] == [50] * 8 + [100] * 4 + [200] * 2 + [400] * 6
    assert planted.opened[-6:] == [SPEC, BEST] * 3
    assert len(planted.opened) == ONE_LOAD.count_servers(8)
    assert all(event.fraction < 1 for event in events if isinstance(event, Doing))
    table = format_table(Journal(tmp_path / JOURNAL_FILE, ABOUT).trials, THROUGHPUT).splitlines()
    assert table[0].split() == ["settings", "stage", "in", "flight", "images/s", "p99"]
    assert len(table) == 1 + 8 + 4 + 2 + 6
    line = describe_outcome(outcome, THROUGHPUT)
    assert line.startswith("chosen: instances.preprocess: 6: better than the spec as it is in 3 turns side by side (")
    assert line.endswith("(200.0 images/s against 102.0 images/s: +96%, spread 0%)")


@pytest.mark.parametrize("seed", range(20))
def test_noise_changes_nothing(tmp_path: Path, seed: int) -> None:
    """All are alike but for noise, so that whichever came out of the halving must not win: in 20 of 20 runs."""
    noise = random.Random(seed)

    def plan(settings: Settings, concurrency: int) -> Figure:
        return Figure(infer_per_s=100 * noise.uniform(0.9, 1.1), p99_ms=10)

    assert search(tmp_path, Planted(plan)).chosen == SPEC


@pytest.mark.parametrize(("ours", "wins"), [((104, 101, 107), False), ((108, 110, 112), True)])
def test_only_a_gain_above_the_spread_wins(tmp_path: Path, ours: tuple[int, ...], wins: bool) -> None:
    turns = {True: iter([150, *ours]), False: iter([100, 98, 100, 102])}

    def plan(settings: Settings, concurrency: int) -> Figure:
        return Figure(infer_per_s=next(turns[bool(settings)]), p99_ms=10)

    outcome = search(tmp_path, Planted(plan), drawn=DRAWN[:2])
    assert bool(outcome.chosen) == wins
    assert outcome.tried == DRAWN[1]
    assert ("does not win by more than the spread" in outcome.why) != wins


@pytest.mark.parametrize("objective", ["throughput", "latency", "energy"])
def test_objective_decides_within_the_limit(tmp_path: Path, objective: Any) -> None:
    figures = {
        2: Figure(infer_per_s=900, p99_ms=51, images_per_joule=90),  # best at all but the limit
        3: Figure(infer_per_s=300, p99_ms=50, images_per_joule=2),
        4: Figure(infer_per_s=150, p99_ms=20, images_per_joule=3),
        5: Figure(infer_per_s=200, p99_ms=40, images_per_joule=4),
    }
    spec = Figure(infer_per_s=100, p99_ms=45, images_per_joule=1)
    planted = Planted(lambda settings, _: figures[settings["instances.preprocess"]] if settings else spec)
    outcome = search(tmp_path, planted, Goal(objective=objective, p99_ms=50), drawn=DRAWN[:5])
    assert outcome.chosen == {"instances.preprocess": {"throughput": 3, "latency": 4, "energy": 5}[objective]}


def test_limit_that_nothing_keeps(tmp_path: Path) -> None:
    with pytest.raises(PerfError, match=r"nothing that was tried keeps p99 within 5 ms; the nearest was 20\.0 ms") as e:
        search(tmp_path, Planted(), Goal(objective="throughput", p99_ms=5), Schedule())
    assert "with 1 in flight (the spec as it is); a_preprocess takes 70% of it" in e.value.message
    assert e.value.fields == {"p99_ms": 22}


def test_candidate_that_keeps_a_limit_the_spec_misses_wins(tmp_path: Path) -> None:
    slow, fast = Figure(infer_per_s=100, p99_ms=60), Figure(infer_per_s=90, p99_ms=40)
    planted = Planted(lambda settings, _: fast if settings == BEST else slow)
    assert search(tmp_path, planted, Goal(objective="throughput", p99_ms=50)).chosen == BEST


def test_winner_that_misses_the_limit_beside_the_spec_is_not_chosen(tmp_path: Path) -> None:
    planted = Planted()

    def plan(settings: Settings, concurrency: int) -> Figure:
        late = planted.opened.count(BEST) > 4  # but for one of its turns
        return Figure(infer_per_s=200 if settings == BEST else 100, p99_ms=60 if settings == BEST and late else 40)

    planted.plan = plan
    outcome = search(tmp_path, planted, Goal(objective="throughput", p99_ms=50))
    assert (outcome.chosen, outcome.tried) == (SPEC, BEST)
    assert "misses the limit" in outcome.why


def test_load_is_found_by_doubling(tmp_path: Path) -> None:
    planted = Planted()
    outcome = search(tmp_path, planted, schedule=Schedule())
    first = [(settings, load) for settings, load, requests in planted.measured if requests == 50]
    assert [load for settings, load in first if settings == SPEC] == [1, 2, 4]
    assert [load for settings, load in first if settings == BEST] == [2, 4, 8]  # from half of the spec's
    assert (outcome.chosen, outcome.concurrency) == (BEST, 4)

    lowest = Planted()
    search(tmp_path / "latency", lowest, Goal(objective="latency"), Schedule())
    assert {load for _, load, _ in lowest.measured} == {1}


def test_load_goes_down_to_keep_the_limit(tmp_path: Path) -> None:
    def plan(settings: Settings, concurrency: int) -> Figure:
        """The spec scales; the other one answers one request after the other."""
        return Figure(
            infer_per_s=10.0 * (1 if settings else min(concurrency, 16)),
            p99_ms=100.0 * (concurrency if settings else 1),
        )

    planted = Planted(plan)
    assert search(tmp_path, planted, Goal(objective="throughput", p99_ms=250), Schedule(), DRAWN[:2]).chosen == SPEC
    assert [load for settings, load, _ in planted.measured if settings] == [8, 4, 2]


# --- what fails


def test_failing_candidate_is_left_out_with_its_reason(tmp_path: Path) -> None:
    def plan(settings: Settings, concurrency: int) -> Figure:
        if settings == DRAWN[2]:
            raise ServerError("tritonserver has ended", hint="read its log")
        return choose(settings, concurrency)

    planted, events = Planted(plan), list[Doing | Done]()
    assert search(tmp_path, planted, events=events).chosen == BEST
    assert planted.opened.count(DRAWN[2]) == 1
    failed = "failed: instances.preprocess: 3: tritonserver has ended"
    assert failed in [event.detail for event in events if isinstance(event, Done)]
    assert "failed: tritonserver has ended" in format_table(Journal(tmp_path / JOURNAL_FILE, ABOUT).trials, THROUGHPUT)


def test_winner_that_fails_beside_the_spec_is_not_chosen(tmp_path: Path) -> None:
    planted = Planted()

    def plan(settings: Settings, concurrency: int) -> Figure:
        if settings == BEST and planted.opened.count(BEST) > 4:
            raise ServerError("a Python process has ended", hint="read its log")
        return choose(settings, concurrency)

    planted.plan = plan
    outcome = search(tmp_path, planted)
    assert (outcome.chosen, outcome.tried) == (SPEC, BEST)
    assert "failed when it was measured again" in outcome.why


def test_three_failures_in_a_row_end_it_and_are_tried_again(tmp_path: Path) -> None:
    broken = True

    def plan(settings: Settings, concurrency: int) -> Figure:
        if broken and settings in DRAWN[2:5]:
            raise ServerError("no GPU memory", hint="free some")
        return choose(settings, concurrency)

    planted = Planted(plan)
    with pytest.raises(PerfError, match=r"(?s)3 candidates in a row failed.*instances.preprocess: 5\): no GPU memory"):
        search(tmp_path, planted)
    assert planted.opened == DRAWN[:5]
    broken = False
    planted.opened.clear()
    assert search(tmp_path, planted).chosen == BEST
    assert planted.opened[:3] == DRAWN[2:5]


def test_failures_that_are_not_in_a_row_end_nothing(tmp_path: Path) -> None:
    def plan(settings: Settings, concurrency: int) -> Figure:
        if settings in (DRAWN[1], DRAWN[2], DRAWN[4], DRAWN[6]):
            raise ServerError("no GPU memory", hint="free some")
        return choose(settings, concurrency)

    assert search(tmp_path, Planted(plan)).chosen == BEST


# --- the journal


def test_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", Planted())
    for stop in (1, 6, 11, 17):
        folder = tmp_path / f"stopped{stop}"
        planted = Planted()

        def plan(settings: Settings, concurrency: int, planted: Planted = planted, stop: int = stop) -> Figure:
            if len(planted.measured) == stop:
                raise KeyboardInterrupt
            return choose(settings, concurrency)

        planted.plan = plan
        with pytest.raises(KeyboardInterrupt):
            search(folder, planted)
        with (folder / JOURNAL_FILE).open("ab") as stream:
            stream.write(b'{"stage": "round')  # as if the machine had ended meanwhile
        rest = Planted()
        assert search(folder, rest) == whole
        assert len(rest.measured) == ONE_LOAD.count_servers(8) - stop + 1
        assert (folder / JOURNAL_FILE).read_bytes() == (tmp_path / "whole" / JOURNAL_FILE).read_bytes()
    nothing = Planted()
    assert search(tmp_path / "whole", nothing) == whole
    assert nothing.opened == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({**ABOUT, "model": "a version 2"}), "of another run: model was a version 2 and is a version 1"),
        (json.dumps({**ABOUT, "machine": {"cores": 16}}), "of another run: machine is another"),
        (json.dumps({**ABOUT, "p99_ms": 5, "more": 1}), "more was 1 and is None; p99_ms was 5 and is None"),
        (json.dumps({**ABOUT, "format": 0}), "is not the journal of a tuning by this version"),
        ("[]", "is not the journal of a tuning by this version"),
        (json.dumps(ABOUT) + "\n{}", "line 2 of .* is not a measurement"),
        (json.dumps(ABOUT) + '\n{"stage": 1', "line 2 of .* is not a measurement"),
    ],
)
def test_journal_of_something_else_is_refused_and_kept(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / JOURNAL_FILE
    path.write_text(text + "\n")
    with pytest.raises(PerfError, match=message):
        Journal(path, ABOUT)
    assert path.read_text() == text + "\n"


def test_full_disk_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        fill(patched, Disk(tmp_path, 600))
        with pytest.raises(PerfError, match=r"No space left on device; its [1-7] measurements are kept"):
            search(tmp_path, Planted())
    kept = len(Journal(tmp_path / JOURNAL_FILE, ABOUT).trials)
    rest = Planted()
    assert search(tmp_path, rest).chosen == BEST
    assert 0 < kept == ONE_LOAD.count_servers(8) - len(rest.measured)


# --- what is tried


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec(name="a", **{"target": "onnxruntime", "precision": "fp32", **fields})


def test_values_follow_from_the_machine_and_the_spec() -> None:
    knobs = {knob.field: knob.values for knob in find_knobs(spec_of(), cores=8, p99_ms=1)}
    now = spec_of().instance_counts()["preprocess"]
    assert set(knobs["instances.preprocess"]) == {now, 1, 2, 4, 6, 8}
    assert knobs["instances.preprocess"][0] == now
    assert knobs["instances.classifier"] == (1, 2, 4)
    assert knobs["max_queue_delay_microseconds"] == (500, 0, 100)  # the others alone would exceed the limit
    assert knobs["layout"] == ("ensemble", "fused")
    assert not {"plan.cuda_graphs", "decode"} & knobs.keys()
    for knob in find_knobs(spec_of(instances={"preprocess": 1, "classifier": 1}), cores=1, p99_ms=None):
        assert knob.field in ("max_queue_delay_microseconds", "layout")
    plan = spec_of(target="tensorrt-10", precision="fp16", plan={"cuda_graphs": [1, 2]})
    knobs = {knob.field: knob.values for knob in find_knobs(plan, cores=2, p99_ms=None)}
    assert knobs["plan.cuda_graphs"] == ([1, 2], True, [1, 2, 4, 8], False)
    assert set(knobs["instances.classifier"]) == {1, 2, 3, 4, 6, 8}
    given = spec_of(
        config={"classifier": "instance_group { count: 1 } dynamic_batching {}", "preprocess": "instance_group []"}
    )
    drawn = draw_candidates(given, find_knobs(given, cores=8, p99_ms=None), count=12, seed=0)
    assert drawn == [SPEC]  # a fused model would take what config states for the members from them
    detector = ModelSpec(name="demo-detector", instances={"postprocess": 1}, batch={"max": 1}, target="onnxruntime")
    assert {knob.field for knob in find_knobs(detector, cores=4, p99_ms=None)} == {
        *("instances.preprocess", "instances.detector", "instances.postprocess", "instances.fused", "layout")
    }


def test_candidates_are_seeded_bounded_and_different() -> None:
    spec = spec_of(instances={"preprocess": 3})
    knobs = [
        knob for knob in find_knobs(spec, cores=16, p99_ms=None) if knob.field not in ("layout", "instances.fused")
    ]
    drawn = draw_candidates(spec, knobs, count=12, seed=0)
    assert (len(drawn), drawn[0]) == (12, SPEC)
    assert len({describe_settings(one) for one in drawn}) == 12
    assert drawn == draw_candidates(spec, knobs, count=12, seed=0)
    assert drawn != draw_candidates(spec, knobs, count=12, seed=1)
    everything = draw_candidates(spec, knobs[1:2], count=12, seed=0)
    assert sorted(map(describe_settings, everything)) == [
        *("instances.classifier: 2", "instances.classifier: 4", "the spec as it is")
    ]
    wrong = Knob(field="plan.cuda_graphs", values=(True, [64], [32]))
    assert draw_candidates(spec, [wrong], count=12, seed=0) == [SPEC, {"plan.cuda_graphs": [32]}]
    changed = apply_settings(spec, {"instances.classifier": 2, "max_queue_delay_microseconds": 0})
    assert changed.instance_counts() == {"preprocess": 3, "classifier": 2}
    assert changed.queue_delay_microseconds() == 0
    assert changed.model_copy(update={"instances": spec.instances, "max_queue_delay_microseconds": None}) == spec
    with pytest.raises(SpecError, match="cuda_graphs lists a batch of 64"):
        apply_settings(spec, {"plan.cuda_graphs": [64]})


# --- the spec that is written

CHOSEN: Settings = {"instances.preprocess": 2, "max_queue_delay_microseconds": 0, "plan.cuda_graphs": [1, 2]}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "models:\n  - name: a  # ours\n    weights: random\n  # the end\n",
            (
                "models:\n  - name: a  # ours\n    instances: {preprocess: 2}\n    max_queue_delay_microseconds: 0\n"
                "    plan: {cuda_graphs: [1, 2]}\n    weights: random\n  # the end\n"
            ),
        ),
        (
            (
                "models:\n- instances:  # few\n    classifier: 3\n    preprocess: 1  # one\n  name: a\n  plan: {}\n"
                "  max_queue_delay_microseconds: 100   # short\n- name: b"
            ),
            (
                "models:\n- instances:  # few\n    classifier: 3\n    preprocess: 2  # one\n  name: a\n"
                "  plan: {cuda_graphs: [1, 2]}\n  max_queue_delay_microseconds: 0   # short\n- name: b"
            ),
        ),
        (
            "models: [{name: b}, {name: a, plan: {tf32: false, cuda_graphs: [1]}, instances: }]",
            (
                "models: [{name: b}, {max_queue_delay_microseconds: 0, name: a, "
                "plan: {tf32: false, cuda_graphs: [1, 2]}, instances: {preprocess: 2} }]"
            ),
        ),
    ],
)
def test_file_keeps_its_comments(tmp_path: Path, before: str, after: str) -> None:
    path, copy = tmp_path / "models.yaml", tmp_path / "models.tuned.yaml"
    path.write_text(before)
    spec = next(model for model in load_spec(path) if model.name == "a")
    text = make_text(spec, path, CHOSEN, copy)
    assert text == after
    write_text(text, copy)
    found = {model.name: model for model in load_spec(copy)}
    assert found.pop("a") == apply_settings(spec, CHOSEN)
    assert found == {model.name: model for model in load_spec(path) if model.name != "a"}
    with pytest.raises(PerfError, match="cannot be written: File exists"):
        write_text("", copy)
    assert (path.read_text(), copy.read_text()) == (before, text)


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  - &one {name: a, plan: &p {tf32: false}}\n  - {name: b, plan: *p}\n",  # both would change
        "models:\n  - name: a\n    plan:\n      cuda_graphs:\n      - 1\n",
        "models:\n  - {name: a, labels: labels.txt}\n",  # in another folder
    ],
)
def test_copy_that_would_say_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path, copy = tmp_path / "models.yaml", tmp_path / "other" / "models.yaml"
    copy.parent.mkdir()
    path.write_text(text)
    with pytest.raises(SpecError, match=r"cannot be copied to .* with instances.preprocess: 2, max_queue"):
        make_text(load_spec(path)[0], path, CHOSEN, copy)
    assert list(copy.parent.iterdir()) == []


@pytest.mark.parametrize(
    "spec",
    [
        make_spec(["resnet18"], recipe={"resize": 300, "mean": [0.1, 0.2, 0.3]}, batch={"max": 4})[0],
        make_spec(["demo-detector"], detection={"class_scores": {"star": 0.5}}, plan={"tf32": False})[0],
    ],
    ids=lambda spec: spec.name,
)
def test_spec_of_a_record_becomes_a_file(tmp_path: Path, spec: ModelSpec) -> None:
    text = make_text(spec, None, CHOSEN, tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(text)
    assert load_spec(tmp_path / "a.yaml") == [apply_settings(spec, CHOSEN)]
    assert len(text.splitlines()) < 40  # what is as by default is left out


# --- a published model


@pytest.fixture
def version_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perf_analyzer for what ends before anything is measured."""
    monkeypatch.setenv("PERF_ANALYZER", str(make_program(tmp_path, ANSWER_VERSION)))


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models.yaml beside the repository that was built from it, without the gate."""
    write_tiny_onnx(tmp_path / "tiny.onnx")
    recipe = "{resize: 36, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"
    path = tmp_path / "models.yaml"
    path.write_text(
        "# mine\nmodels:\n  - name: tiny\n    onnx: tiny.onnx\n    labels: index\n"
        f"    recipe: {recipe}\n    instances: {{preprocess: 1, classifier: 1}}  # to be tuned\n"
    )
    build_repository(load_spec(path)[0], tmp_path / "model_repository", BuildOptions(verify=False))
    monkeypatch.chdir(tmp_path)
    return path


def ask(**changes: Any) -> Request:
    request = Request(
        repository=Path("model_repository"),
        name=None,
        spec=Path("models.yaml"),
        goal=THROUGHPUT,
        schedule=ONE_LOAD,
        candidates=3,
        seed=0,
        batch_size=1,
        images=None,
        max_spread_percent=1000,
        timeout_s=60,
        folder=Path("tune"),
        written=None,
    )
    return replace(request, **changes)


def test_what_would_fail_later_is_refused_first(
    version_only: None, built: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Path, str, str], None]
) -> None:
    def refused(expected: str, **changes: Any) -> None:
        with pytest.raises(TrtgenError, match=expected):
            prepare(ask(**changes))
        assert not Path("tune").exists()

    with monkeypatch.context() as patched:
        patched.setenv("PERF_ANALYZER", "absent")
        refused("PERF_ANALYZER is 'absent'")
    refused("energy needs a GPU", goal=Goal(objective="energy"))
    refused("there is no model repository", repository=Path("absent"))
    refused("holds tiny; other was to be tuned", name="other")
    refused("takes batches of at most 32 .* was to have 33", batch_size=33)
    Path("other.yaml").write_text("models: [{name: demo}]")
    refused("other.yaml describes demo, and not tiny", spec=Path("other.yaml"))
    Path("other.yaml").write_text(built.read_text().replace("resize: 36", "resize: 40"))
    refused("was built from something else than other.yaml", spec=Path("other.yaml"))
    Path("models.tuned.yaml").touch()
    refused("models.tuned.yaml exists already, and is left as it is")
    Path("models.tuned.yaml").unlink()
    config = 'config: {classifier: "instance_group {} dynamic_batching {}", preprocess: "instance_group {}"}'
    Path("other.yaml").write_text(built.read_text().replace("instances: {preprocess: 1, classifier: 1}", config))
    refused("there is nothing to tune in tiny", spec=Path("other.yaml"))
    edit(Path("model_repository/tiny_classifier/config.pbtxt"), "microseconds: 500", "microseconds: 501")
    refused("tiny is left as it is, since somebody edited it")


def test_command_goes_on_from_a_journal_and_writes_the_spec(
    version_only: None, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All measurements are there already, so that no server is needed."""
    before = hash_tree(Path("model_repository"))
    tuning = prepare(ask())
    best = tuning.drawn[1]
    for stage, count in (("round 1", 3), ("round 2", 2), ("turn 1", 2), ("turn 2", 2), ("turn 3", 2)):
        for settings in tuning.drawn[:count]:
            figure = Figure(infer_per_s=200 if settings == best else 100, p99_ms=9)
            tuning.journal.add(Trial(stage=stage, settings=settings, concurrency=4, figure=figure))
    arguments = ["tune", "tiny", "--spec", "models.yaml", "--candidates", "3", "--concurrency", "4"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    chosen = next(line for line in said.out.splitlines() if line.startswith("chosen: "))
    assert describe_settings(best) in chosen
    assert chosen.endswith("(200.0 images/s against 100.0 images/s: +100%, spread 0%)")
    assert "3 candidates, 11 servers one after the other: about 3 min, or more" in said.err
    assert "goes on from tune (measurements there: 11)" in said.err
    assert "build it: trtgen build-repo --spec models.tuned.yaml" in said.err
    assert load_spec(Path("models.tuned.yaml")) == [apply_settings(load_spec(built)[0], best)]
    assert "# to be tuned" in Path("models.tuned.yaml").read_text()
    document = json.loads(Path("tune/tune.json").read_text())
    assert document["chosen"]["settings"] == best
    assert len(document["trials"]) == 11
    assert hash_tree(Path("model_repository")) == before
    assert main(arguments) == 1  # the file is there now
    assert "models.tuned.yaml exists already" in capsys.readouterr().err
    assert main([*arguments, "--write", "other.yaml", "--p99-ms", "5"]) == 1
    assert "tune/journal.jsonl is of another run: p99_ms was None and is 5.0" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    version_only: None, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(served.Candidates, "open", stop)
    assert main(["tune", "--candidates", "2", "--concurrency", "1"]) == 130
    said = capsys.readouterr().err
    assert "the same command goes on from tune (measurements there: 0)" in said
    assert "interrupted" in said
    assert not Path("models.tuned.yaml").exists()


@pytest.mark.server
def test_real_server_is_tuned_and_the_written_spec_is_served(
    program: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The spec as it is has planted figures, those of a slow model; the other candidate is measured for real."""
    monkeypatch.setenv("PERF_ANALYZER", str(program))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("generator.measure.tune.knobs._DELAYS_US", ())
    monkeypatch.setattr("generator.measure.tune.run.usable_cores", lambda: 1)  # the layout is all that can change
    Path("models.yaml").write_text("models: [{name: demo, batch: {max: 8}}]")
    before = hash_tree(demo)
    schedule = Schedule(concurrencies=(2,), requests=5, turns=1)
    tuning = prepare(ask(repository=demo, schedule=schedule))
    assert tuning.drawn == [SPEC, {"layout": "fused"}]
    for stage in ("round 1", "turn 1"):
        slow = Figure(infer_per_s=0.1, p99_ms=9000)
        tuning.journal.add(Trial(stage=stage, settings=SPEC, concurrency=2, figure=slow))
    outcome = Search(tuning.candidates, tuning.journal, THROUGHPUT, schedule).run(tuning.drawn)
    assert outcome.chosen == tuning.drawn[1]
    measured = tuning.journal.trials[2].figure
    assert measured is not None
    assert 0.1 < measured.infer_per_s <= 2 * 1000 / 0.5  # two in flight, half a millisecond at the very least
    assert measured.shares == {}  # it has no members

    # a process of its server is killed
    with tuning.candidates.open({"max_queue_delay_microseconds": 0}) as probe:
        config = (tuning.candidates.folder / "demo_classifier" / "config.pbtxt").read_text()
        assert "dynamic_batching { max_queue_delay_microseconds: 0 }" in config
        linked = tuning.candidates.folder / "demo_classifier" / "1" / "model.onnx"
        assert linked.samefile(demo / "demo_classifier" / "1" / "model.onnx")  # a plan is not even copied
        processes = [one for child in psutil.Process().children(recursive=True) for one in stubs.find_stubs(child.pid)]
        next(one for one in processes if "demo_preprocess" in " ".join(one.cmdline())).kill()
        with pytest.raises(ServerError, match="Python process of demo_preprocess has ended"):
            probe(1, 5)
    assert not tuning.candidates.folder.exists()
    assert hash_tree(demo) == before

    write_text(tuning.make_spec(ask(), outcome.chosen), tuning.written)
    built = main(
        ["build-repo", "--spec", "models.tuned.yaml", "--repository", str(demo), "--require", "all", "--replace"]
    )
    said = capsys.readouterr().err
    assert built == 0, said
    assert re.search(r"verified +demo  (\d) of \1 stages", said), said  # served ones among them
    assert {path.name for path in demo.iterdir()} == {"demo"}
