"""An example of Prometheus' configuration for what is watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.monitoring.rules import write_duration

if TYPE_CHECKING:
    from generator.monitoring.rules import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """`host:port` of what Prometheus asks: Triton's metrics and its HTTP, canaries if any, the blackbox exporter."""

    metrics: tuple[str, ...]
    http: tuple[str, ...]
    canary: tuple[str, ...] = ()
    blackbox: str = "localhost:9115"


def make_scrape_config(targets: Targets, limits: Limits, *, rules_file: str) -> dict[str, Any]:
    """Return the content of prometheus.yml. The exporter asks each server in Prometheus' place whether it is ready."""
    interval = write_duration(max(1, limits.window_s // 10))
    canary = [{"job_name": limits.canary_job, "static_configs": [{"targets": list(targets.canary)}]}]
    ready = [f"http://{address}/v2/health/ready" for address in targets.http]
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [rules_file],
        "scrape_configs": [
            {"job_name": limits.job, "static_configs": [{"targets": list(targets.metrics)}]},
            {
                "job_name": limits.ready_job,
                "metrics_path": "/probe",
                "params": {"module": ["http_2xx"]},
                "static_configs": [{"targets": ready}],
                "relabel_configs": [
                    {"source_labels": ["__address__"], "target_label": "__param_target"},
                    {"source_labels": ["__param_target"], "target_label": "instance"},
                    {"target_label": "__address__", "replacement": targets.blackbox},
                ],
            },
            *(canary if targets.canary else []),
        ],
    }
