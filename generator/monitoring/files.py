"""The files of `generator.monitoring` as text, written into a folder without losing what somebody edited there."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from generator.errors import ServerError
from generator.files import hash_bytes, hash_file, write_temporary
from generator.monitoring.cases import make_unit_tests
from generator.monitoring.dashboard import make_dashboard
from generator.monitoring.rules import make_alerts, write_rules
from generator.monitoring.scrape import make_scrape_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from generator.monitoring.rules import Limits
    from generator.monitoring.scrape import Targets
    from generator.monitoring.watched import WatchedModel

RULES, UNIT_TESTS, OPERATOR_RULES = "triton.rules.yml", "triton.rules.test.yml", "prometheusrule.yml"
DASHBOARD, SCRAPE = "dashboard.json", "prometheus.yml"
WRITTEN = ".trtgen.json"  # the hash of each file as it was written


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
        RULES: _write_yaml(rules),
        UNIT_TESTS: _write_yaml(make_unit_tests(alerts, models, limits, rules_file=RULES)),
        OPERATOR_RULES: _write_yaml(operator_rules),
        DASHBOARD: json.dumps(make_dashboard(models, limits), indent=2, ensure_ascii=False) + "\n",
        SCRAPE: _write_yaml(make_scrape_config(targets, limits, rules_file=RULES)),
    }


def write_files(files: Mapping[str, str], folder: Path, *, discard_edits: bool = False) -> dict[Path, str]:
    """Write name -> text into `folder` and return for each path whether it was `create`, `update` or `identical`.

    A file that is there is replaced only if it is as it was written here before, or with `discard_edits`.

    Raises:
        ServerError: One was edited, or the folder cannot be written.
    """
    try:
        known = _read_hashes(folder / WRITTEN)
        present = {name: hash_file(folder / name) for name in files if (folder / name).exists()}
        wanted = {name: hash_bytes(text.encode()) for name, text in files.items()}
        edited = [name for name, digest in present.items() if digest not in (wanted[name], known.get(name))]
        if edited and not discard_edits:
            msg = f"{folder} has files that were edited, or made by others: {', '.join(edited)}; nothing was written"
            raise ServerError(msg, hint="move them away, or have them replaced", fields={"discard_edits": True})
        folder.mkdir(parents=True, exist_ok=True)
        words = {name: "create" if name not in present else "update" for name in files}
        words |= {name: "identical" for name in files if present.get(name) == wanted[name]}
        changed = {name: text for name, text in files.items() if words[name] != "identical"}
        for name, text in {**changed, WRITTEN: json.dumps(wanted, indent=2) + "\n"}.items():
            write_temporary(folder / name, text.encode()).replace(folder / name)
    except OSError as error:
        msg = f"{folder} cannot be written: {error.strerror}"
        raise ServerError(msg, hint="name another folder", fields={"output": None}) from error
    return {folder / name: word for name, word in words.items()}


def _name_object(job: str) -> str:
    """Return a name for Kubernetes that is another one for most other jobs."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:63].strip("-") or "triton"


def _read_hashes(path: Path) -> dict[str, str]:
    """Return name -> hash as written last; empty where that was never done, or its file is no such table."""
    try:
        hashes = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return hashes if isinstance(hashes, dict) else {}


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is read, line by line."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _write_yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
