"""The files of `generator.monitoring` as text."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from generator.monitoring.cases import make_unit_tests
from generator.monitoring.dashboard import make_dashboard
from generator.monitoring.rules import make_alerts, write_rules
from generator.monitoring.scrape import make_scrape_config
from generator.written import write_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from generator.monitoring.rules import Limits
    from generator.monitoring.scrape import Targets
    from generator.monitoring.watched import WatchedModel

RULES, UNIT_TESTS, OPERATOR_RULES = "triton.rules.yml", "triton.rules.test.yml", "prometheusrule.yml"
DASHBOARD, SCRAPE = "dashboard.json", "prometheus.yml"


def make_files(models: Sequence[WatchedModel], limits: Limits, targets: Targets) -> dict[str, str]:
    """Return name -> text of every file."""
    alerts = make_alerts(models, limits)
    rules = write_rules(alerts)
    operator_rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": _name_object(limits.job)},
        "spec": rules,
    }
    return {
        RULES: write_yaml([rules]),
        UNIT_TESTS: write_yaml([make_unit_tests(alerts, models, limits, rules_file=RULES)]),
        OPERATOR_RULES: write_yaml([operator_rules]),
        DASHBOARD: json.dumps(make_dashboard(models, limits), indent=2, ensure_ascii=False) + "\n",
        SCRAPE: write_yaml([make_scrape_config(targets, limits, rules_file=RULES)]),
    }


def _name_object(job: str) -> str:
    """Return a name for Kubernetes that is another one for most other jobs."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:63].strip("-") or "triton"
