"""The Grafana dashboard, in the classic JSON of Grafana 10 and later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.files import hash_bytes
from generator.monitoring.queries import Queries, match, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from generator.monitoring.rules import Limits
    from generator.monitoring.watched import WatchedModel

_COLUMNS = 24
_HEIGHT = 8
_CHOSEN = 'model=~"$model"'
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A diagram over time: PromQL -> legend; `unit` in Grafana's words, `limit` the line above which it is red."""

    title: str
    queries: dict[str, str]
    about: str = ""
    unit: str = "short"
    top: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels side by side under a title."""

    title: str
    panels: list[Panel]


def make_dashboard(models: Sequence[WatchedModel], limits: Limits) -> dict[str, Any]:
    """Return the dashboard, to be imported or provisioned; it asks for the data source and has none of its own."""
    return {
        "uid": f"trtgen-{hash_bytes(limits.job.encode())[:12]}",  # each job's own
        "title": f"Triton: {limits.job}",
        "tags": ["triton"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,  # one cross-hair in all panels
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _make_variables(limits)},
        "annotations": {"list": []},
        "panels": list(_place(_make_rows(models, limits))),
    }


def _make_variables(limits: Limits) -> list[dict[str, Any]]:
    def choose(name: str, query: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }

    success = f"nv_inference_request_success{{job={quote(limits.job)}}}"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
        choose("instance", f"label_values({success}, instance)"),
        choose("model", f"label_values({success}, model)"),
    ]


def _place(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield the panels of Grafana, each with a number and its place; a row's share its width."""
    number = top = 0
    for row in rows:
        number += 1
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": place}
        top += 1
        width = _COLUMNS // len(row.panels)
        for column, panel in enumerate(row.panels):
            number += 1
            place = {"h": _HEIGHT, "w": width, "x": column * width, "y": top}
            yield {"id": number, "gridPos": place, **_write_panel(panel)}
        top += _HEIGHT


def _write_panel(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    custom = {"fillOpacity": 10, "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"}}
    defaults = {"unit": panel.unit, "min": 0, "custom": custom, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.top is not None:
        defaults["max"] = panel.top
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expr, "legendFormat": legend}
            for index, (expr, legend) in enumerate(panel.queries.items())
        ],
    }


def _make_rows(models: Sequence[WatchedModel], limits: Limits) -> list[Row]:
    def query(job: str, *more: str) -> Queries:
        return Queries(matchers=", ".join([f"job={quote(job)}", *more]), window="$__rate_interval")

    servers = query(limits.job, 'instance=~"$instance"')
    return [
        _show_servers(servers, query(limits.ready_job)),
        _show_requests(servers, models, limits),
        _show_times(servers),
        _show_memory(servers, limits),
        _show_gpus(servers),
        _show_canary(query(limits.canary_job, _CHOSEN)),
    ]


def _show_servers(servers: Queries, probes: Queries) -> Row:
    up = {servers.select("up"): "{{instance}} scraped", probes.select("probe_success"): "{{instance}}"}
    about = "1: scraped, and ready for the blackbox exporter. A server whose model has died says that it is ready, too."
    cores = {servers.select("nv_cpu_utilization"): "{{instance}}"}
    return Row(
        title="Servers",
        panels=[
            Panel(title="Up", about=about, queries=up, top=1),
            Panel(title="Cores in use", queries=cores, unit="percentunit", top=1),
        ],
    )


def _show_requests(servers: Queries, models: Sequence[WatchedModel], limits: Limits) -> Row:
    answered = Panel(
        title="Answered",
        about="Those of the warm-up count, too. A member that refuses an image counts it as answered.",
        queries={servers.answered(_CHOSEN): "{{model}}"},
        unit="reqps",
    )
    ensembles, others = ([model.name for model in models if model.is_ensemble is kind] for kind in (True, False))
    refused = Panel(
        title="Refused by ensembles",
        about="Bad images and requests that clients cancelled among them. Triton counts each twice; here it is once.",
        queries={servers.ensemble_failure_share(match("model", ensembles), _CHOSEN): "{{model}}"},
        unit="percentunit",
        limit=limits.failing_share,
    )
    failed = Panel(
        title="Failed by models",
        about="The server's own failures: BACKEND, and REJECTED where a queue was full or too slow.",
        queries={servers.failure_share(match("model", others), _CHOSEN): "{{model}} {{reason}}"},
        unit="percentunit",
        limit=limits.failing_share,
    )
    return Row(title="Requests", panels=[answered, *([refused] if ensembles else []), failed])


def _show_times(servers: Queries) -> Row:
    return Row(
        title="Times and batches",
        panels=[
            Panel(
                title="Mean time of a request",
                about="As the server sees it. Percentiles need tritonserver's summaries, which are off by default.",
                queries={servers.seconds("request", _CHOSEN): "{{model}}"},
                unit="s",
            ),
            Panel(
                title="Of that, waiting",
                about="In front of each member; an ensemble's is their sum.",
                queries={servers.seconds("queue", _CHOSEN): "{{model}}"},
                unit="s",
            ),
            Panel(
                title="Of that, in the model",
                queries={
                    servers.seconds(f"compute_{part}", _CHOSEN): f"{{{{model}}}} {part}"
                    for part in ("input", "infer", "output")
                },
                unit="s",
            ),
            Panel(
                title="Requests that wait",
                about="Always 0 for an ensemble: look at its members.",
                queries={
                    f"sum by (model) ({servers.select('nv_inference_pending_request_count', _CHOSEN)})": "{{model}}"
                },
            ),
            Panel(title="Images in a batch", queries={servers.batch_size(_CHOSEN): "{{model}}"}),
        ],
    )


def _show_memory(servers: Queries, limits: Limits) -> Row:
    machine = {servers.used_share("cpu_memory"): "{{instance}}"}
    pool = {servers.used_share("pinned_memory_pool"): "{{instance}}"}
    gpus = {servers.used_share("gpu_memory"): "{{instance}} {{gpu_uuid}}"}
    shown: dict[str, Any] = {"unit": "percentunit", "top": 1}
    return Row(
        title="Memory",
        panels=[
            Panel(title="Of the machine", queries=machine, **shown),
            Panel(title="Pool of pinned memory", queries=pool, limit=limits.memory_share, **shown),
            Panel(title="Of the GPUs", queries=gpus, limit=limits.memory_share, **shown),
        ],
    )


def _show_gpus(servers: Queries) -> Row:
    legend = "{{instance}} {{gpu_uuid}}"
    energy = servers.rate("nv_energy_consumption", by="job")
    images = servers.rate("nv_inference_count", _CHOSEN)
    return Row(
        title="GPUs",
        panels=[
            Panel(title="In use", queries={servers.select("nv_gpu_utilization"): legend}, unit="percentunit", top=1),
            Panel(title="Power", queries={servers.select("nv_gpu_power_usage"): legend}, unit="watt"),
            Panel(
                title="Images for a joule",
                about="Of all GPUs together, whichever model they work for.",
                queries={f"{images} / on (job) group_left () {energy}": "{{model}}"},
            ),
        ],
    )


def _show_canary(canary: Queries) -> Row:
    last = canary.select("trtgen_canary_last_run_timestamp_seconds")
    return Row(
        title="Answers, as the canary finds them",
        panels=[
            Panel(
                title="Answered, and as proved",
                queries={
                    canary.select("trtgen_canary_up"): "{{model}} {{instance}} answered",
                    canary.select("trtgen_canary_proved"): "{{model}} {{instance}} as proved",
                },
                top=1,
            ),
            Panel(
                title="Images that agree",
                queries={canary.select("trtgen_canary_agreement"): "{{model}} {{instance}}"},
                unit="percentunit",
                top=1,
            ),
            Panel(
                title="Time of a run, and since the last",
                queries={
                    canary.select("trtgen_canary_duration_seconds"): "{{model}} {{instance}} took",
                    f"time() - {last}": "{{model}} {{instance}} ago",
                },
                unit="s",
            ),
            Panel(
                title="Servers of each release",
                queries={
                    f"count by (model, release, version) ({canary.select('trtgen_release_info')})": "{{model}} "
                    "{{release}} version {{version}}"
                },
            ),
        ],
    )
