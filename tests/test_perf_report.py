"""What `trtgen perf` makes of its figures: the verdict, the comparison, the page and its files."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from generator.errors import PerfError
from generator.measure.perf import check, compare
from generator.measure.perf.busy import Busy
from generator.measure.perf.gpu import GpuFigures
from generator.measure.perf.measurement import Measurement, Member, Stages, Unsettled
from generator.measure.perf.output import make_files
from generator.measure.perf.report import Comparison, Report, make_report
from generator.measure.perf.served import MeasuredModel, count_cores, read_repository
from generator.measure.perf.verdict import Change, Verdict, judge
from generator.measure.results import write_files
from tests.tiny_repository import build_tiny_repository

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_models(*, on_gpu: bool = False, **classifier: Any) -> list[MeasuredModel]:
    members = ("shapes_preprocess", "shapes_classifier")
    return [
        MeasuredModel(name="shapes", image_input="IMAGE", members=members),
        MeasuredModel(name=members[0], image_input="IMAGE", members=(), on_cpu=True),
        MeasuredModel(name=members[1], image_input=None, members=(), on_cpu=not on_gpu, **classifier),
    ]


def make_measurement(
    preprocess: tuple[float, int] = (0.97, 2),
    classifier: tuple[float, int] = (0.3, 1),
    *,
    waiting_ms: tuple[float, float] = (60.0, 0.0),
    **changes: Any,
) -> Measurement:
    """100 images/s, 8 in flight, 80 ms each: 60 ms of waiting, 15 and 3 of computing, 2 outside.

    Each member is how busy it is and its instances.
    """
    parts = []
    for name, (fraction, instances), queue_ms, infer_ms in zip(
        ("shapes_preprocess", "shapes_classifier"), (preprocess, classifier), waiting_ms, (15.0, 3.0), strict=True
    ):
        stages = Stages(queue_ms=queue_ms, input_ms=0, infer_ms=infer_ms, output_ms=0)
        busy = Busy(instances=instances, fraction=fraction, executions_per_s=100, batch=1, compute_ms=infer_ms)
        parts.append(Member(model=name, share=stages.total_ms / 80, stages=stages, busy=busy))
    one = Measurement(
        model="shapes",
        concurrency=8,
        infer_per_s=100,
        average_ms=80,
        p50_ms=75,
        p95_ms=90,
        p99_ms=110,
        stages=Stages(queue_ms=sum(waiting_ms), input_ms=0, infer_ms=18, output_ms=0),
        other_ms=2,
        spread=0.05,
        latency_spread=0.04,
        members=tuple(parts),
        command="perf_analyzer",
        batch_size=1,
        gpu=GpuFigures(),
        cpu_utilization=0.2,
        client_overhead=0.01,
    )
    return dataclasses.replace(one, **changes)


def make_verdict(one: Measurement, *, cores: int | None = 16, **models: Any) -> Verdict:
    found = judge([one], make_models(**models), cores=cores)
    assert found is not None
    return found


# --- the verdict


def test_the_stage_that_is_busy_gets_the_instances_that_the_next_limit_allows() -> None:
    found = make_verdict(make_measurement())
    assert (found.limit, found.stage, found.instances) == ("stage", "shapes_preprocess", 2)
    assert found.busy == 0.97
    assert found.share == pytest.approx(75 / 80)
    assert found.change is not None
    # The classifier is busy 30 % of the time: 333 images/s, what 7 instances of 51.5 images/s each are enough for.
    assert (found.change.before, found.change.after) == (2, 7)
    assert found.change.edit == "instances: {preprocess: 7}"
    assert found.expected == pytest.approx(1 / 0.3, rel=0.01)
    assert found.text == (
        "shapes_preprocess takes 94% of the latency, and its 2 instances are busy 97% of the time: "
        "7 instances, expected 3.3x the images per second."
    )


def test_no_more_processes_than_cores() -> None:
    found = make_verdict(make_measurement(), cores=4)
    assert found.change is not None
    assert found.change.after == 4
    assert found.expected == pytest.approx(2 / 0.97)
    full = make_verdict(make_measurement(), cores=2)
    assert (full.limit, full.change, full.expected) == ("cores", None, None)
    assert "there are not more than 2 cores" in full.text
    elsewhere = make_verdict(make_measurement(), cores=None)
    assert elsewhere.change is not None
    assert elsewhere.change.after == 4, "twice as many where the cores are not known"
    assert "no more instances than that machine has cores" in elsewhere.text


def test_cores_that_are_in_use_are_the_limit() -> None:
    found = make_verdict(make_measurement(cpu_utilization=0.98))
    assert (found.limit, found.change) == ("cores", None)
    assert "98% of the machine's cores are in use: more instances would only share them" in found.text
    half = make_verdict(make_measurement(cpu_utilization=0.5))
    assert half.expected == pytest.approx(2, rel=0.05)


def test_a_gpu_at_work_is_the_limit_of_its_stage() -> None:
    gpu = GpuFigures(gpus=1, utilization=0.96, power_w=600)
    one = make_measurement((0.2, 8), (0.95, 1), waiting_ms=(0, 60), gpu=gpu)
    found = make_verdict(one, on_gpu=True)
    assert (found.limit, found.change) == ("gpu", None)
    idle = dataclasses.replace(one, gpu=dataclasses.replace(gpu, utilization=0.4))
    more = make_verdict(idle, on_gpu=True)
    assert more.change is not None
    assert (more.change.edit, more.change.after) == ("instances: {classifier: 2}", 2)
    assert more.expected == pytest.approx(2 / 0.95)


def test_two_busy_stages_are_not_cured_by_more_of_one() -> None:
    found = make_verdict(make_measurement((0.97, 2), (0.95, 1)))
    assert (found.limit, found.change) == ("stage", None)
    assert "shapes_classifier hardly less" in found.text


def test_waiting_for_a_batch_is_told_from_waiting_for_an_instance() -> None:
    one = make_measurement((0.1, 2), (0.05, 1), waiting_ms=(0, 5), average_ms=10, concurrency=1)
    found = make_verdict(one, queue_delay_us=5000)
    assert found.limit == "queue delay"
    assert found.change is not None
    assert (found.change.field, found.change.before, found.change.after) == ("max_queue_delay_microseconds", 5000, 0)
    assert found.expected == 2
    assert make_verdict(one).limit == "load", "no delay in the configuration"


def test_client_and_load_as_the_limit() -> None:
    idle = make_measurement((0.2, 2), (0.1, 1), waiting_ms=(0, 0), average_ms=20, other_ms=2)
    client = make_verdict(dataclasses.replace(idle, client_overhead=0.5))
    assert (client.limit, client.change) == ("client", None)
    assert "perf_analyzer needed 50% of the time for itself" in client.text
    load = make_verdict(idle)
    assert load.limit == "load"
    assert load.change is not None
    assert (load.change.edit, load.expected) == ("concurrency 16", 2)
    others = make_verdict(dataclasses.replace(idle, cpu_utilization=0.95))
    assert (others.limit, others.change) == ("cores", None)
    assert "by the client or by other programs" in others.text


def test_a_rate_tells_how_much_is_left() -> None:
    found = make_verdict(make_measurement((0.5, 2), concurrency=None, request_rate=100.0))
    assert (found.limit, found.change) == ("rate", None)
    assert "enough for about 200 images/s" in found.text


def test_no_verdict_without_statistics() -> None:
    one = make_measurement()
    silent = dataclasses.replace(one, members=tuple(dataclasses.replace(part, busy=None) for part in one.members))
    assert judge([silent], make_models(), cores=2) is None
    assert judge([], make_models(), cores=2) is None


def test_the_load_at_which_the_server_is_full_is_judged() -> None:
    light = make_measurement((0.4, 2), concurrency=1, infer_per_s=40.0)
    found = judge([make_measurement(), light], make_models(), cores=16)
    assert found is not None
    assert (found.concurrency, found.busy) == (8, 0.97)
    # With one in flight nobody waits, and as many are answered: the load at which the stage is full says more.
    alone = make_measurement((0.7, 2), concurrency=1, infer_per_s=104.0)
    both = judge([alone, make_measurement()], make_models(), cores=16)
    assert both is not None
    assert both.concurrency == 8


def test_models_of_others_are_named_in_tritons_words() -> None:
    models = [dataclasses.replace(model, name=model.name.replace("_pre", "_first")) for model in make_models()]
    one = make_measurement()
    first = dataclasses.replace(one.members[0], model="shapes_firstprocess")
    found = judge([dataclasses.replace(one, members=(first, one.members[1]))], models, cores=16)
    assert found is not None
    assert found.change is not None
    assert found.change.edit == "shapes_firstprocess/config.pbtxt: count: 7 in instance_group"


@pytest.mark.parametrize(
    ("name", "is_fused", "edit"),
    [
        ("shapes", True, "instances: {fused: 7}"),
        ("shapes_preprocess", False, "instances: {preprocess: 7}"),
        ("mine", False, "mine/config.pbtxt: count: 7 in instance_group"),
    ],
)
def test_a_model_that_is_measured_alone(name: str, is_fused: bool, edit: str) -> None:
    model = MeasuredModel(name=name, image_input="IMAGE", members=(), on_cpu=True, is_fused=is_fused)
    busy = make_measurement().members[0].busy
    one = dataclasses.replace(make_measurement(average_ms=76.0), model=name, members=(), busy=busy)
    found = judge([dataclasses.replace(one, cpu_utilization=0.3)], [model], cores=16)
    assert found is not None
    assert found.change is not None
    assert found.change.edit == edit


def test_cores_are_known_of_this_machine_only() -> None:
    assert count_cores("127.0.0.1:8001") == count_cores("[::1]:8001") is not None
    assert count_cores("triton.example:8001") is None
    assert count_cores("192.0.2.7:8001") is None


# --- the change


def test_the_copy_has_the_change_and_the_repository_has_not(tmp_path: Path) -> None:
    root = build_tiny_repository(tmp_path / "repository")
    build_tiny_repository(root, name="other")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    names = ["tiny", "tiny_preprocess", "tiny_classifier"]
    more = Change(model="tiny_preprocess", field="instances", before=1, after=3, edit="")
    with check.copy_changed(root, names, more) as copy:
        assert sorted(path.name for path in copy.iterdir()) == sorted(names)
        counts = {model.name: model.instances for model in read_repository(copy, "tiny")}
        assert counts == {"tiny": 1, "tiny_preprocess": 3, "tiny_classifier": 1}
        assert (copy / "tiny_classifier" / "1" / "model.onnx").read_bytes()
    assert not copy.exists()
    later = Change(model="tiny_classifier", field="max_queue_delay_microseconds", before=0, after=700, edit="")
    with check.copy_changed(root, names, later) as copy:
        assert read_repository(copy, "tiny")[2].queue_delay_us == 700
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_repository_that_is_not_the_servers_is_refused(tmp_path: Path) -> None:
    root = build_tiny_repository(tmp_path / "repository")
    models = read_repository(root, "tiny")
    check.check_served(root, models)
    models[1] = dataclasses.replace(models[1], instances=4)
    with pytest.raises(PerfError, match="the server's tiny_preprocess is not that of the repository"):
        check.check_served(root, models)


# --- beside an earlier run

ABOUT: dict[str, Any] = {
    "date": "today",
    "command": "trtgen perf",
    "versions": {"trtgen": "0", "server": "triton 2.51.0", "perf_analyzer": "Perf Analyzer 2.50"},
    "machine": {"processor": "CPU", "cores": 2, "gpus": []},
    "load": {
        "url": "127.0.0.1:8001",
        "protocol": "grpc",
        "batch_size": 1,
        "shared_memory": "none",
        "requests_per_window": 100,
        "max_spread_percent": 20.0,
        "arrivals": "constant",
    },
    "images": {"source": "32 drawn images, seed 0", "smallest_bytes": 1, "largest_bytes": 2},
}
LOAD = ("shapes", 8, None, 1)


def write_earlier(folder: Path, one: Measurement, about: dict[str, Any] | None = None) -> compare.Earlier:
    write_files(make_files([one], about or ABOUT), folder)
    return compare.read_earlier(folder / "perf.json", [(one.model, one.concurrency, one.request_rate, 1)])


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.09, "no difference beyond the spread"),
        (1 / 1.09, "no difference beyond the spread"),
        (1.12, "faster"),
        (1 / 1.12, "slower"),
    ],
)
def test_a_difference_within_both_spreads_is_none(tmp_path: Path, factor: float, words: str) -> None:
    earlier = write_earlier(tmp_path, make_measurement())  # both spreads are 5 %: 10.25 % together
    [found] = compare.compare([make_measurement(infer_per_s=100 * factor, p99_ms=55.0)], earlier)
    assert (found.words, found.p99) == (words, 0.5)
    assert found.throughput == pytest.approx(factor)
    assert found.spread == pytest.approx(0.1025)
    table = compare.format_differences([found])
    assert words in table[1]
    assert "concurrency 8" in table[1]


def test_a_fixed_rate_is_compared_by_its_latency(tmp_path: Path) -> None:
    rate: dict[str, Any] = {"concurrency": None, "request_rate": 50.0}
    earlier = write_earlier(tmp_path, make_measurement(**rate))
    [same] = compare.compare([make_measurement(**rate, average_ms=82.0)], earlier)
    [slower] = compare.compare([make_measurement(**rate, average_ms=95.0)], earlier)
    assert (same.words, slower.words) == ("no difference beyond the spread", "slower")
    [unknown] = compare.compare([make_measurement(**rate, latency_spread=None)], earlier)
    assert unknown.words == "the spread is not known"


def test_what_else_differed_is_said(tmp_path: Path) -> None:
    other = {**ABOUT, "machine": {**ABOUT["machine"], "cores": 16}, "images": {**ABOUT["images"], "source": "photos"}}
    earlier = write_earlier(tmp_path, make_measurement(), other)
    assert compare.find_other_conditions(earlier, ABOUT) == [
        "cores: 16, now 2",
        "images: photos, now 32 drawn images, seed 0",
    ]
    assert compare.find_other_conditions(write_earlier(tmp_path, make_measurement()), ABOUT) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"old\.json cannot be read: No such file"),
        ("{", r"old\.json is not a perf\.json: Expecting"),
        ("\x00\xff", r"is not a perf\.json"),
        ("[]", r"is not a perf\.json: it lacks"),
        ("{}", r"is not a perf\.json: it lacks 'measurements'"),
        ('{"measurements": [{"settled": true}]}', r"it lacks 'model'"),
        ('{"measurements": [3]}', "it lacks"),
        ('{"measurements": []}', "it has only what did not settle"),
    ],
)
def test_an_earlier_result_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "old.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PerfError, match=message) as caught:
        compare.read_earlier(path, [LOAD])
    assert caught.value.fields == {"compare": None}


def test_figures_that_are_none_and_loads_that_are_others(tmp_path: Path) -> None:
    write_earlier(tmp_path, make_measurement())
    path = tmp_path / "perf.json"
    with pytest.raises(PerfError, match=r"none of the models and loads .* it has shapes at concurrency 8"):
        compare.read_earlier(path, [("shapes", 4, None, 1)])
    path.write_text(path.read_text().replace('"infer_per_s": 100', '"infer_per_s": "many"'))
    with pytest.raises(PerfError, match="a figure, having 'many'"):
        compare.read_earlier(path, [LOAD])


# --- the files


def make_full_report() -> Report:
    measured = [
        make_measurement(
            concurrency=n,
            infer_per_s=30.0 * n,
            gpu=GpuFigures(gpus=1, utilization=0.1 * n, power_w=100.0 + n, images_per_joule=n / 2),
        )
        for n in (1, 2, 8)
    ]
    failed = Unsettled(
        model="shapes", concurrency=16, batch_size=1, windows_infer_per_s=(1.0, 9.0), problem="<no three>", command=""
    )
    alone = dataclasses.replace(measured[0], model="shapes_classifier", members=(), busy=measured[0].members[1].busy)
    verdict = judge(measured, make_models(), cores=4)
    tried = check.Check(
        predicted=2.0,
        found=1.9,
        share=0.9,
        spread=0.1,
        images_per_s_before=240.0,
        images_per_s_after=456.0,
        text="predicted 2.00x, found 1.90x: 90% of the predicted gain",
    )
    return Report(
        about={**ABOUT, "command": "trtgen perf --images <b>"},
        results=[*measured, failed, alone],
        verdict=verdict,
        advice="instances: {preprocess: 4} in models.yaml",
        check=tried,
        comparison=Comparison(path="old.json", differences=[], other=["cores: 16, now 2"]),
    )


def test_the_page_needs_no_other_file_and_says_what_was_found() -> None:
    report = make_full_report()
    files, missing = make_report(report)
    page = files["perf.html"]
    assert missing == ""
    assert report.verdict is not None
    assert len(page) < 200_000
    assert not re.search(r"<(script|link|img|iframe)|(src|href)=\"(?!#)|url\((?!#)|@import", page)
    for words in (
        *(
            report.verdict.text,
            "instances: {preprocess: 4} in models.yaml",
            "90% of the predicted gain",
        ),
        *("&lt;no three&gt;", "--images &lt;b&gt;", "Not the same: cores: 16, now 2", "images/J"),
        *(">latency in ms", ">images/s, over", ">mean time of a request", ">GPU load, %", ">GPU power, W", ">p99<"),
        *("shapes_preprocess: waiting", "shapes_preprocess: computing", "network, serialising, client"),
    ):
        assert words in page, words
    found = json.loads(files["perf.json"])
    assert found["verdict"]["change"]["after"] == 4
    assert found["verdict"]["advice"] in page
    assert found["check"]["found"] == 1.9
    assert found["comparison"]["other"] == ["cores: 16, now 2"]
    assert found["measurements"][0]["members"][0]["busy"]["fraction"] == 0.97


def test_without_matplotlib_the_page_has_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    files, missing = make_report(make_full_report())
    assert "pip install -e '.[plot]'" in missing
    assert "No diagrams: the package matplotlib is not installed" in files["perf.html"]
    assert "90% of the predicted gain" in files["perf.html"]


def test_a_page_of_what_did_not_settle() -> None:
    failed = make_full_report().results[3]
    page = make_report(Report(about=ABOUT, results=[failed]))[0]["perf.html"]
    assert "None: nothing settled" in page
    assert "shapes at concurrency 16: not settled" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_page_in_light_and_dark(tmp_path: Path) -> None:
    """Ground, letters and lines are seen in both: what a browser draws, not what the file says."""
    path = tmp_path / "perf.html"
    path.write_text(make_report(make_full_report())[0]["perf.html"])
    for scheme, is_dark in ((1, False), (0, True)):
        picture = take_picture(path, scheme).convert("RGB")
        colours = picture.getcolors(maxcolors=2**24)
        assert colours is not None
        counts = {colour: count for count, colour in colours}
        _, ground = max(colours)
        assert ground == ((0x19, 0x21, 0x2A) if is_dark else (0xFF, 0xFF, 0xFF))
        # The first colour of the diagrams, and letters in the ink of the page.
        assert counts.get((0x3F, 0x8F, 0xD2), 0) > 500
        assert counts.get((0xE6, 0xEB, 0xF1) if is_dark else (0x17, 0x20, 0x2B), 0) > 500
        # The same inside of the diagrams: titles are in the ink, not black on black.
        black = counts.get((0, 0, 0), 0)
        assert black < 20, f"{black} black dots"


def take_picture(page: Path, scheme: int) -> Image.Image:
    picture = page.with_suffix(".png")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text"),
        *("--window-size=1200,2000", f"--user-data-dir={page.parent / 'profile'}", "--no-first-run"),
        *(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}", page.as_uri()),
    ]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    return Image.open(io.BytesIO(picture.read_bytes()))


def test_a_full_disk_leaves_the_files_of_before(tmp_path: Path) -> None:
    """The system refuses every byte above 20 KB of a file, as a full disk does: perf.html does not fit."""
    before = {"perf.csv": "old", "perf.json": "old", "perf.html": "old"}
    write_files(before, tmp_path)
    files, _ = make_report(make_full_report())
    assert len(files["perf.html"]) > 20_000
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(PerfError, match="cannot be written: File too large"):
            write_files(files, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
