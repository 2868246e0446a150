"""`trtgen list`."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.cli.console import say
from generator.cli.options import JsonOption, RepositoryOption

if TYPE_CHECKING:
    from generator.repository import Record

_ORIGIN = ("compute_capability", "gpu", "hardware_compatibility", "repository", "proof")
_COLUMNS = ("name", "versions", "served", "backend", "precision", "published", "proved")


def list_models(
    *,
    repository: RepositoryOption = Path("model_repository"),
    as_json: JsonOption = False,
) -> None:
    """List the models of the repository: versions, backend, precision, when they were published, what was proved.

    Example: trtgen list -r models --json
    """
    from generator.errors import RepositoryError
    from generator.measure.results import align_columns
    from generator.repository import find_records

    if not repository.is_dir():
        msg = f"there is no model repository at {repository}"
        raise RepositoryError(msg, hint="give its folder with --repository, or build a model: trtgen build-repo demo")
    models = [_describe(repository, record) for record in find_records(repository)]
    if as_json:
        print(json.dumps(models, indent=2))
        return
    if not models:
        say(f"{repository} holds no model made by trtgen")
        return
    rows = [_COLUMNS, *(_as_row(model) for model in models)]
    print("\n".join(align_columns(rows, left=range(len(_COLUMNS)))))
    for model in models:
        for path in model["edited"]:
            say(f"! {repository / path} was changed after trtgen published it")


def _describe(root: Path, record: Record) -> dict[str, Any]:
    from generator.repository import Layout
    from generator.repository.edits import find_edited
    from generator.repository.layout import numeric_versions

    layout = Layout.of_record(record)
    versions = numeric_versions(root / layout.network)
    listed = record.spec["versions"]
    if isinstance(listed, list):
        served = [version for version in versions if version in listed]
    else:
        served = versions if listed == "all" else versions[-listed:]
    plan = record.plan or {}
    # nothing touches the record after publishing, which writes it last
    published = datetime.fromtimestamp((root / layout.record).stat().st_mtime).astimezone()
    return {
        "name": record.name,
        "versions": versions,
        "served": served,
        "backend": record.contract["backend"],
        "tensorrt": plan.get("tensorrt"),
        "plans": {name: {key: one[key] for key in _ORIGIN} for name, one in record.plans.items()},
        "precision": plan.get("precision", record.spec["precision"]),
        "published": published.isoformat(timespec="seconds"),
        "proof": list(record.proof),
        "edited": find_edited(root, record, versions=False),
    }


def _as_row(model: dict[str, Any]) -> tuple[str, ...]:
    return (
        model["name"],
        _join(model["versions"]),
        _join(model["served"]),
        " ".join(filter(None, (model["backend"], model["tensorrt"], _describe_plans(model["plans"])))),
        model["precision"],
        model["published"][:16].replace("T", " "),
        _proved(model["proof"]),
    )


def _describe_plans(plans: dict[str, Any]) -> str:
    """Return the compute capabilities of a merged model's plans, such as `(8.9, 9.0)`; nothing for one plan."""
    return f"({', '.join(one['compute_capability'] for one in plans.values())})" if plans else ""


def _join(versions: list[int]) -> str:
    return ", ".join(map(str, versions))


def _proved(proof: list[dict[str, Any]]) -> str:
    by_status: dict[str, list[str]] = {"proved": [], "not proved": [], "assumed": []}
    for entry in proof:
        by_status[entry["status"]].append(entry["stage"])
    proved, missing, assumed = by_status.values()
    if missing == ["all"]:
        return f"nothing ({proof[0]['reason']})"
    words = f"{len(proved)} of {len(proved) + len(missing)} stages"
    words += f", not {', '.join(missing)}" if missing else ""
    return words + (f"; assumed: {', '.join(assumed)}" if assumed else "")
