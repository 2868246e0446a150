"""`trtgen monitor`: alerts fire when they should and not when they should not; the dashboard names what is exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from generator.cli import main
from generator.errors import OutputError, SpecError
from generator.monitoring.dashboard import make_dashboard
from generator.monitoring.files import (
    DASHBOARD,
    OPERATOR_RULES,
    RULES,
    SCRAPE,
    UNIT_TESTS,
    make_files,
)
from generator.monitoring.metrics import METRICS, Metric
from generator.monitoring.rules import RUNBOOK, Limits, make_alerts
from generator.monitoring.scrape import Targets
from generator.monitoring.watched import WatchedModel, find_watched
from generator.written import WRITTEN, write_files
from tests.tiny_repository import build_tiny_repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[1]
PAGE = ROOT / RUNBOOK
TARGETS = Targets(metrics=("gpu-1:8002", "gpu-2:8002"), http=("gpu-1:8000", "gpu-2:8000"), canary=("gpu-1:9102",))
LIMITS = Limits()
# As short as a test of a real Prometheus wants it.
QUICK = Limits(
    window_s=5,
    down_for_s=1,
    starting_for_s=2,
    not_ready_for_s=1,
    missing_for_s=1,
    failing_for_s=1,
    stuck_for_s=1,
    queue_for_s=2,
    memory_for_s=2,
    releases_for_s=5,
    drift_for_s=1,
    canary_silent_s=20,
)
MODELS = [
    WatchedModel(name="demo", is_ensemble=True),
    WatchedModel(name="demo_classifier", delay_s=0.001),
    WatchedModel(name="demo_preprocess", timeout_s=0.2),
    WatchedModel(name="other.v2", is_ensemble=True),
    WatchedModel(name="other.v2_classifier", delay_s=0.001),
]
# Characters that PromQL, its regular expressions, Go's templates, YAML, JSON or Grafana read otherwise.
ODD = """a|b.* "quoted" back\\slash {{ $value }} {{a}} ${datasource} $1 (+)[x]? - #: naïve 模型 it's"""
NONE_LEFT = (
    'probe_success{job="triton-ready"} == 0 unless on (job) probe_success{job="triton-ready"} == 1'
    ' and on (job) max_over_time(probe_success{job="triton-ready"}[24h]) == 1'
)
# How each rule can be wrong: what is there, what takes its place. promtool must find every one.
BROKEN = {
    "TritonDown": [
        ("== 0", "== 1"),
        ("up{", "probe_success{"),
        ('job="triton"', 'job="another"'),
        (' and max_over_time(up{job="triton"}[24h]) == 1', ""),
        ("[24h]", "[1m]"),
        ("for: 1m", "for: 0s"),
    ],
    "TritonNotStarted": [
        ("== 0", "== 1"),
        (' unless max_over_time(up{job="triton"}[24h]) == 1', ""),
        ('\nor probe_success{job="triton-ready"} == 0', '\nor probe_success{job="triton-ready"} == 1'),
        (' unless max_over_time(probe_success{job="triton-ready"}[24h]) == 1', ""),
        ("for: 15m", "for: 0s"),
        ("for: 15m", "for: 1h"),
    ],
    "TritonGone": [('absent(up{job="triton"})', 'up{job="triton"} == 0'), ("for: 1m", "for: 0s")],
    "TritonNotReady": [
        ("== 0", "== 1"),
        (' and max_over_time(probe_success{job="triton-ready"}[24h]) == 1\n', "\n"),
        (f"\nor {NONE_LEFT}", ""),
        (' unless on (job) probe_success{job="triton-ready"} == 1', ""),
        (' and on (job) max_over_time(probe_success{job="triton-ready"}[24h]) == 1', ""),
        ("and on (job)", "and"),
        ("[24h]", "[1m]"),
        ("for: 2m", "for: 1h"),
        ("for: 2m", "for: 0s"),
    ],
    "ModelMissing": [
        ("== 1 unless", "== 0 unless"),
        ("(job, instance)", "(job)"),
        ('model="demo_preprocess"}', 'model="demo"}'),
        ('"demo_preprocess", ""', '"demo", ""'),
        ("for: 5m", "for: 0s"),
    ],
    "EnsembleFails": [(" / 2", ""), ("0.05", "0.9"), ("_failure{", "_success{"), ("for: 10m", "for: 0s")],
    "ModelFails": [
        ('!="CANCELED"', '=~".+"'),
        ("0.05", "0.9"),
        ("(job, model, reason)", "(job, model)"),
        ("> 0", "< 0"),
    ],
    "ModelStuck": [("and increase", "or increase"), ("[5m]) == 0", "[5m]) >= 0"), ("> 0 and", ">= 0 and")],
    "QueueTooLong": [("/ 1e6", "/ 1e3"), ("> 0.1\n", "> 0.3\n"), ("> 0.101", "> 0.07"), ("> 0.1\n", "> 0.01\n")],
    "GpuMemoryFull": [("> 0.95", "> 0.9"), ("gpu_memory_used", "gpu_memory_total"), ("for: 10m", "for: 0s")],
    "PinnedMemoryFull": [("> 0.95", "> 0.9"), (' / nv_pinned_memory_pool_total_bytes{job="triton"} > 0.95', " >= 0")],
    "CanaryDown": [
        ("== 0", ">= 0"),
        ('job="triton-canary"', 'job="triton"'),
        ("for: 2m", "for: 0s"),
    ],
    "CanaryUnanswered": [("== 0", "== 1"), ("canary_up", "canary_proved")],
    "AnswersDrift": [
        (' unless on (job, instance, model) trtgen_canary_up{job="triton-canary"} == 0', ""),
        ("_proved", "_up"),
        ("for: 10m", "for: 0s"),
    ],
    "CanarySilent": [("time() - ", ""), ("> 7200", "> 36000"), ("> 7200", "> 3600"), ("> 7200", "> -1")],
    "ReleasesDiffer": [("(model, release)", "(model, instance)"), ("> 1", "> 2"), ("for: 30m", "for: 0s")],
}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool here (apt-get install prometheus)")
    return found


def run_promtool(promtool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool, *map(str, arguments)], capture_output=True, text=True, check=False)


def write(folder: Path, models: Sequence[WatchedModel] = MODELS, limits: Limits = LIMITS) -> Path:
    write_files(make_files(models, limits, TARGETS), folder)
    return folder


def run_unit_tests(promtool: str, folder: Path) -> str:
    """Return what the rules do not do that their unit tests ask for."""
    run = run_promtool(promtool, "test", "rules", folder / UNIT_TESTS)
    return run.stdout + run.stderr if run.returncode else ""


def judge(promtool: str, folder: Path) -> str:
    """Return what promtool has against the files."""
    checks = (("check", "rules", folder / RULES), ("check", "config", folder / SCRAPE))
    runs = [run_promtool(promtool, *words) for words in checks]
    return "".join(run.stdout + run.stderr for run in runs if run.returncode) + run_unit_tests(promtool, folder)


@pytest.mark.parametrize(
    "limits",
    [
        LIMITS,
        replace(QUICK, queue_s=7.5, failing_share=0.5, memory_share=0.8),
        Limits(
            job='monitoring/triton "2"',
            ready_job="r",
            canary_job="c",
            canary_silent_s=600,
            queue_s=0.00001,
            failing_share=0.0001,
        ),
    ],
)
def test_each_alert_fires_when_it_should_and_not_when_it_should_not(
    promtool: str, tmp_path: Path, limits: Limits
) -> None:
    assert judge(promtool, write(tmp_path, limits=limits)) == ""


def test_the_unit_tests_have_both_for_each_alert() -> None:
    tests = yaml.safe_load(make_files(MODELS, LIMITS, TARGETS)[UNIT_TESTS])["tests"]
    fires = {True: set(), False: set()}  # type: dict[bool, set[str]]
    for test in tests:
        last = test["alert_rule_test"][-1]
        fires[bool(last["exp_alerts"])].add(last["alertname"])
    assert fires[True] == fires[False] == {alert.name for alert in make_alerts(MODELS, LIMITS)} == set(BROKEN)


def test_a_server_that_loads_its_models_wakes_nobody() -> None:
    """The cases are those of the documentation: three minutes of loading, a canary that pauses for 66 minutes."""
    tests = yaml.safe_load(make_files(MODELS, LIMITS, TARGETS)[UNIT_TESTS])["tests"]
    checks = {test["name"]: test["alert_rule_test"] for test in tests if test["alert_rule_test"][0]["exp_alerts"] == []}
    loads = {"eval_time": "3m", "alertname": "TritonDown", "exp_alerts": []}
    assert checks["a server that loads its models"] == [loads]
    pauses = {"eval_time": "66m", "alertname": "CanarySilent", "exp_alerts": []}
    assert checks["a canary that pauses a tenth longer than half of the time"] == [pauses]


def keep_only(folder: Path, alert: str) -> dict[str, Any]:
    """Leave this alert's rule and unit tests in the files, which promtool is through with in no time, and return it."""
    rules, tests = (yaml.safe_load((folder / name).read_text()) for name in (RULES, UNIT_TESTS))
    (rule,) = [rule for rule in rules["groups"][0]["rules"] if rule["alert"] == alert]
    tests["tests"] = [test for test in tests["tests"] if test["alert_rule_test"][0]["alertname"] == alert]
    (folder / UNIT_TESTS).write_text(yaml.safe_dump(tests))
    return dict(rule)


def write_rule(folder: Path, *rules: dict[str, Any]) -> None:
    (folder / RULES).write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": list(rules)}]}))


@pytest.mark.parametrize("alert", BROKEN)
def test_a_broken_rule_is_found(promtool: str, tmp_path: Path, alert: str) -> None:
    rule = keep_only(write(tmp_path), alert)
    write_rule(tmp_path, rule)
    assert run_unit_tests(promtool, tmp_path) == ""
    write_rule(tmp_path)
    assert f"alertname: {alert}," in run_unit_tests(promtool, tmp_path)
    for old, new in BROKEN[alert]:
        field = "for" if old.startswith("for: ") else "expr"
        before, after = old.removeprefix("for: "), new.removeprefix("for: ")
        assert before in rule[field], old
        write_rule(tmp_path, {**rule, field: rule[field].replace(before, after)})
        assert run_promtool(promtool, "check", "rules", tmp_path / RULES).returncode == 0
        assert f"alertname: {alert}," in run_unit_tests(promtool, tmp_path), (old, new)


def test_odd_names_are_taken_as_they_are(promtool: str, tmp_path: Path) -> None:
    models = [WatchedModel(name=f"{ODD}_ensemble", is_ensemble=True), WatchedModel(name=ODD), *MODELS]
    assert judge(promtool, write(tmp_path, models)) == ""
    assert check_expressions(promtool, tmp_path, find_dashboard_expressions(models)) == ""
    for alert in ("ModelFails", "QueueTooLong", "EnsembleFails"):  # the unit tests plant the first, so this one
        rule = keep_only(write(tmp_path / alert, models), alert)
        write_rule(tmp_path / alert, {**rule, "expr": rule["expr"].replace("back", "another")})
        assert f"alertname: {alert}," in judge(promtool, tmp_path / alert)


def find_panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def find_dashboard_expressions(models: Sequence[WatchedModel] = MODELS) -> list[str]:
    panels = find_panels(make_dashboard(models, LIMITS))
    return [target["expr"] for panel in panels for target in panel["targets"]]


def check_expressions(promtool: str, folder: Path, expressions: Iterable[str]) -> str:
    """Return what Prometheus has against one of these, once Grafana has put in the window."""
    rules = [
        {"record": f"expression:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(expressions)
    ]
    path = folder / "expressions.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "expressions", "rules": rules}]}))
    run = run_promtool(promtool, "check", "rules", path)
    return run.stdout + run.stderr if run.returncode else ""


def test_every_expression_of_the_dashboard_is_parsed(promtool: str, tmp_path: Path) -> None:
    expressions = find_dashboard_expressions()
    assert check_expressions(promtool, tmp_path, expressions) == ""
    assert "parse error" in check_expressions(promtool, tmp_path, [*expressions, "sum by (model) (rate(up[5m])"])


SELECTOR = re.compile(r'([a-zA-Z_:][\w:]*)\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\}')
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
GROUPED = re.compile(r"\b(?:by|on|group_left)\s*\(([^()]*)\)")
WORDS = {"sum", "count", "rate", "increase", "absent", "min_over_time", "max_over_time", "label_replace", "time"} | {
    "and",
    "or",
    "unless",
}


def find_strangers(expression: str) -> list[str]:
    """Return what an expression names that no metric of the list has: metrics, labels, functions that we do not use."""
    known = {metric.name: {*metric.labels, "job", "instance"} for metric in METRICS}
    strangers, labels = [], set()
    for name, matchers in SELECTOR.findall(expression):
        labels |= known.get(name, set())
        named = set(re.findall(r"(\w+)\s*[=!]", STRING.sub("", matchers)))
        strangers += [name] if name not in known else [f"{name}{{{label}}}" for label in named - known[name]]
    rest = STRING.sub("", SELECTOR.sub("", expression))
    for grouped in GROUPED.findall(rest):
        strangers += [f"by {label}" for label in re.findall(r"\w+", grouped) if label not in labels]
    rest = re.sub(r"\[[^\]]*\]", "", GROUPED.sub("", rest))
    return strangers + [word for word in re.findall(r"[a-zA-Z_]\w*", rest) if word not in WORDS and word != "e6"]


def test_rules_and_dashboard_name_known_metrics_only() -> None:
    rules = [alert.expr for alert in make_alerts(MODELS, LIMITS)]
    for expression in (*rules, *find_dashboard_expressions()):
        assert find_strangers(expression) == [], expression
    assert find_strangers('sum by (model) (rate(nv_inference_request_total{model="a"}[5m]))') == [
        "nv_inference_request_total",
        "by model",
    ]
    assert find_strangers('sum by (pod) (up{pod="a", job="b"})') == ["up{pod}", "by pod"]
    assert find_strangers("rate(nv_inference_count[5m])") == ["nv_inference_count"]  # of any job
    named = " ".join((*rules, *find_dashboard_expressions()))
    assert [metric.name for metric in METRICS if f"{metric.name}{{" not in named] == []


def test_grafana_finds_what_the_dashboard_refers_to() -> None:
    """Grafana does not run here: what it would stumble over is looked for by hand."""
    dashboard = json.loads(make_files(MODELS, LIMITS, TARGETS)[DASHBOARD])
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        cells |= own
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps(dashboard).replace("$__rate_interval", "").replace("$__all", "")
    assert set(re.findall(r"\$\{?(\w+)", text)) == variables == {"datasource", "instance", "model"}
    for panel in find_panels(dashboard):
        assert panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in ("short", "s", "percentunit", "reqps", "watt"), panel[
            "title"
        ]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        references = [target["refId"] for target in panel["targets"]]
        assert references == [*"ABCDEFGH"][: len(references)]
        for target in panel["targets"]:
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.match(r"(?:sum|count) by \(([^()]*)\)", target["expr"])
            if grouped:  # what is summed has these labels only
                assert labels <= set(re.findall(r"\w+", grouped[1])), target


def test_a_repository_without_ensembles_has_no_rule_for_them(promtool: str, tmp_path: Path) -> None:
    models = [WatchedModel(name="fused")]
    assert judge(promtool, write(tmp_path, models)) == ""
    assert "EnsembleFails" not in (tmp_path / RULES).read_text()
    titles = [panel["title"] for panel in find_panels(make_dashboard(models, LIMITS))]
    assert "Refused by ensembles" not in titles
    assert "Failed by models" in titles


def test_what_is_watched_is_read_from_the_configurations(tmp_path: Path) -> None:
    build_tiny_repository(tmp_path)
    path = tmp_path / "tiny_classifier" / "config.pbtxt"
    queue = "default_queue_policy { default_timeout_microseconds: 200000 }"
    path.write_text(path.read_text().replace("dynamic_batching { }", f"dynamic_batching {{ {queue} }}"))
    path = tmp_path / "tiny_preprocess" / "config.pbtxt"
    path.write_text(f"{path.read_text()}\ndynamic_batching {{ max_queue_delay_microseconds: 3000 }}\n")
    ensemble, classifier, preprocess = find_watched(tmp_path)
    assert ensemble == WatchedModel(name="tiny", is_ensemble=True)
    assert classifier == WatchedModel(name="tiny_classifier", timeout_s=0.2)
    assert preprocess == WatchedModel(name="tiny_preprocess", delay_s=0.003)
    assert [LIMITS.find_wait(model) for model in (classifier, preprocess)] == [0.1, pytest.approx(0.103)]


def test_the_command(
    promtool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, output = build_tiny_repository(tmp_path / "models"), tmp_path / "monitoring"
    command = ["monitor", "-r", str(root), "--output", str(output)]
    with monkeypatch.context() as without_programs:
        without_programs.setenv("PATH", str(tmp_path))  # promtool is not needed
        assert main([*command, "--queue-ms", "50", "--failing", "2", "--job", "ns/triton", "--metrics-url", "a:1"]) == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines()] == [
        ["create", str(output / name)] for name in (RULES, UNIT_TESTS, OPERATOR_RULES, DASHBOARD, SCRAPE)
    ]
    assert f"promtool test rules {output / UNIT_TESTS}" in shown.err
    assert judge(promtool, output) == ""
    rules = yaml.safe_load((output / RULES).read_text())
    expressions = {rule["alert"]: rule["expr"] for rule in rules["groups"][0]["rules"]}
    assert expressions["QueueTooLong"].endswith("> 0.05")
    assert expressions["EnsembleFails"].endswith("> 0.02")
    assert expressions["TritonDown"].startswith('up{job="ns/triton"} == 0 and max_over_time(up{job="ns/triton"}[24h])')
    assert expressions["TritonNotReady"].startswith('probe_success{job="ns/triton-ready"} == 0 and ')
    assert expressions["CanaryUnanswered"] == 'trtgen_canary_up{job="ns/triton-canary"} == 0'
    wrapped = yaml.safe_load((output / OPERATOR_RULES).read_text())
    assert wrapped["spec"] == rules
    assert wrapped["metadata"]["name"] == "ns-triton"
    scraped = yaml.safe_load((output / SCRAPE).read_text())["scrape_configs"]
    assert [one["static_configs"][0]["targets"] for one in scraped[:2]] == [
        ["a:1"],
        ["http://localhost:8000/v2/health/ready"],
    ]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--metrics-url", "http://localhost:8002/metrics", "is not HOST:PORT"),
        ("--metrics-url", "localhost", "is not HOST:PORT"),
        ("--metrics-url", "a:65536", "is not HOST:PORT"),
        ("--http-url", "http://localhost:8000", "is not HOST:PORT"),
        ("--canary-url", "", "is not HOST:PORT"),
        ("--job", "", "is not a job name"),
        ("--job", " ", "is not a job name"),
        ("--job", "\udcff", "is not a job name"),
        ("--canary-job", "", "is not a job name"),
    ],
)
def test_what_prometheus_would_refuse_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, says: str
) -> None:
    root, output = build_tiny_repository(tmp_path / "models"), tmp_path / "monitoring"
    assert main(["monitor", "-r", str(root), "--output", str(output), option, value]) == 2
    said = capsys.readouterr().err
    assert f"{value!r} {says}" in said
    assert option in said
    assert not output.exists()


@pytest.mark.parametrize(("other", "whose"), [("gpus", "servers"), ("gpus-ready", "the readiness of servers")])
def test_two_jobs_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, whose: str
) -> None:
    root, output = build_tiny_repository(tmp_path / "models"), tmp_path / "monitoring"
    words = ["monitor", "-r", str(root), "--output", str(output), "--job", "gpus", "--canary-job", other]
    assert main(words) == 1
    assert capsys.readouterr().err == (
        f"error: {whose} and canaries are both scraped by the job {other!r}, and one job was expected for each\n"
        "hint: give another name (--canary-job NAME)\n"
    )
    assert not output.exists()
    with pytest.raises(SpecError, match="servers and their readiness"):
        Limits(job="a", ready_job="a")


def test_addresses_that_prometheus_takes(promtool: str, tmp_path: Path) -> None:
    root, output = build_tiny_repository(tmp_path / "models"), tmp_path / "monitoring"
    addresses = ["gpu_1.example.com:8002", "10.0.0.1:65535", "[::1]:8002"]
    options = [word for address in addresses for word in ("--metrics-url", address)]
    assert main(["monitor", "-r", str(root), "--output", str(output), *options]) == 0
    assert judge(promtool, output) == ""
    scraped = yaml.safe_load((output / SCRAPE).read_text())["scrape_configs"]
    assert scraped[0]["static_configs"] == [{"targets": addresses}]


def test_the_home_folder_is_expanded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    build_tiny_repository(tmp_path / "models")
    assert main(["monitor", "-r", "~/models", "--output", "~/monitoring"]) == 0
    assert f"promtool test rules {tmp_path / 'monitoring' / UNIT_TESTS}" in capsys.readouterr().err
    assert (tmp_path / "monitoring" / RULES).is_file()
    assert not (tmp_path / "~").exists()


def test_files_that_somebody_edited_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Any) -> None:
    root, output = build_tiny_repository(tmp_path / "models"), tmp_path / "monitoring"
    command = ["monitor", "-r", str(root), "--output", str(output)]

    def run(*options: str) -> list[str]:
        assert main([*command, *options]) == 0
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert run() == ["create"] * 5
    assert run() == ["identical"] * 5
    build_tiny_repository(root, name="second")
    assert run() == ["update"] * 4 + ["identical"]  # the example names no model
    edit(output / RULES, "for: 1m", "for: 3m")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    build_tiny_repository(root, name="third")
    assert main(command) == 1
    said = capsys.readouterr()
    assert f"{output} has files that were edited, or made by others: {RULES}; nothing was written" in said.err
    assert "--discard-edits" in said.err
    assert said.out == ""
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    (output / WRITTEN).write_text("no JSON")  # then every file may be anybody's
    assert main(command) == 1
    assert f"{RULES}, {UNIT_TESTS}, {OPERATOR_RULES}, {DASHBOARD}" in capsys.readouterr().err
    assert run("--discard-edits") == ["update"] * 4 + ["identical"]
    assert run() == ["identical"] * 5


def test_what_cannot_be_watched_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "monitoring"

    def refuse(root: Path, *said: str) -> None:
        assert main(["monitor", "-r", str(root), "--output", str(output)]) == 1
        shown = capsys.readouterr().err
        assert all(text in shown for text in said), shown
        assert not output.exists()

    refuse(tmp_path / "absent", "there is no model repository at", "--repository DIR")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no model", "--repository DIR")
    root = build_tiny_repository(tmp_path / "models")
    broken = root / "tiny" / "config.pbtxt"
    text = broken.read_text()
    broken.write_text(text + "no_such_field: 1\n")
    refuse(root, f"{broken} is empty or no model configuration", f"trtgen doctor {root}")
    broken.write_text(text)
    for name in (b"not-utf-8-\xff", b"new\nline"):
        folder = Path(str(root) + "/" + name.decode(errors="surrogateescape"))
        shutil.copytree(root / "tiny_classifier", folder)
        refuse(root, "Prometheus takes printable text only", "give it another name")
        shutil.rmtree(folder)
    for member in ("tiny_classifier", "tiny_preprocess"):
        shutil.rmtree(root / member)
    refuse(root, "but for ensembles")


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    files = make_files(MODELS, LIMITS, TARGETS)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        write_files(files, tmp_path / "file")
    (tmp_path / "folder" / DASHBOARD).mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot be written: Is a directory"):
        write_files(files, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [DASHBOARD]


def test_a_write_that_fails_midway_leaves_no_file_that_looks_edited(tmp_path: Path) -> None:
    write_files({"a": "1", "b/c": "1", "d": "1", "b/old": "1"}, tmp_path)
    shutil.move(tmp_path / "b", tmp_path / "aside")
    (tmp_path / "b").write_text("a file where a folder must be")
    for text in "23":  # another text, which the file of the first attempt is not
        with pytest.raises(OutputError, match="b cannot be written: File exists"):
            write_files(dict.fromkeys(("a", "b/c", "d"), text), tmp_path)
        assert [(tmp_path / name).read_text() for name in "ad"] == [text, "1"]
    (tmp_path / "b").unlink()
    shutil.move(tmp_path / "aside", tmp_path / "b")
    assert write_files(dict.fromkeys(("a", "b/c", "d"), "4"), tmp_path) == {
        tmp_path / "a": "update",
        tmp_path / "b/c": "update",
        tmp_path / "d": "update",
        tmp_path / "b/old": "remove",
    }
    assert [*json.loads((tmp_path / WRITTEN).read_text())] == ["a", "b/c", "d"]


def make_table() -> str:
    """Return the table of metrics in docs/monitoring.md."""

    def row(metric: Metric) -> str:
        return f"| `{metric.name}` | {', '.join(metric.labels)} | {metric.source} | {metric.about} |"

    return "\n".join(["| metric | labels | exported by | what it is |", "|---|---|---|---|", *map(row, METRICS)])


def with_table(page: str) -> str:
    before, start, rest = page.partition("<!-- metrics -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    assert start
    assert end
    return f"{before}{start}{make_table()}{end}{after}"


def test_the_page_has_the_metrics_and_every_alert() -> None:
    """`python -m tests.test_monitoring` writes the table."""
    page = PAGE.read_text()
    assert with_table(page) == page
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings == [alert.name for alert in make_alerts(MODELS, LIMITS)]
    for alert in make_alerts(MODELS, LIMITS):
        assert alert.write_rule()["annotations"]["runbook"] == f"{RUNBOOK}#{alert.name.lower()}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
