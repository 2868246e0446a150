"""The schemas of other projects' objects: read, made strict, and cut down to what our manifests use.

    python -m tests.custom_resources FOLDER

writes tests/data/custom_resources.yaml from the whole CustomResourceDefinitions in FOLDER: kserve's
charts/kserve-crd/templates, KEDA's config/crd/bases and prometheus-operator's example/prometheus-operator-crd, one file
for each kind of SOURCES. Set TRTGEN_CRDS=FOLDER for the tests to check against those instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema  # type: ignore[import-untyped]
import yaml

DATA = Path(__file__).parent / "data" / "custom_resources.yaml"
_HEAD = """\
# Schemas of objects of KServe, KEDA and prometheus-operator, for the tests: cut down to the properties that trtgen's
# manifests use and those that are required, without descriptions. Made by `python -m tests.custom_resources`.
# Each is under the Apache License 2.0, whose text is in LICENSE, and was changed as said above.
"""


class Origin(NamedTuple):
    """Where a schema comes from, and its notice."""

    path: str
    commit: str
    notice: str


_KSERVE = (
    "https://github.com/kserve/kserve",
    "aaac4e294dae2c7b1aa1886447793f3aa1c30912",
    "Copyright 2021 The KServe Authors.",
)
SOURCES = {
    "InferenceService": Origin(
        f"{_KSERVE[0]} charts/kserve-crd/templates/serving.kserve.io_inferenceservices.yaml", *_KSERVE[1:]
    ),
    "ServingRuntime": Origin(
        f"{_KSERVE[0]} charts/kserve-crd/templates/serving.kserve.io_servingruntimes.yaml", *_KSERVE[1:]
    ),
    "ScaledObject": Origin(
        "https://github.com/kedacore/keda config/crd/bases/keda.sh_scaledobjects.yaml",
        "8b4f083ca8c8c2baf8477e322bd4d16ac4dfa09a",
        "Copyright 2021 The KEDA Authors.",
    ),
    "PodMonitor": Origin(
        "https://github.com/prometheus-operator/prometheus-operator "
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "6adcebc5076c34f4f55f8f5f7b1e528929373ac7",
        "CoreOS Project, Copyright 2015 CoreOS, Inc. This product includes software developed at CoreOS, Inc.",
    ),
}
# What a schema says of a value, beside what is in it.
_WORDS = (
    "type", "required", "enum", "format", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems",
    "maxItems", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
)  # fmt: skip


def read_definitions(place: Path) -> dict[str, dict[str, Any]]:
    """Return the definitions of our kinds in a file, or in the YAML files of a folder, by kind."""
    paths = sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
    found = {}
    for path in paths:
        text = "\n".join(line for line in path.read_text().splitlines() if "{{" not in line)  # of a Helm chart
        for one in yaml.load_all(text, Loader=yaml.CSafeLoader):
            if one and one.get("kind") == "CustomResourceDefinition" and one["spec"]["names"]["kind"] in SOURCES:
                found[one["spec"]["names"]["kind"]] = one
    return found


def read_schemas(place: Path | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return strict schemas by apiVersion and kind, those of TRTGEN_CRDS if it is set: a property must be known."""
    place = place or Path(os.environ.get("TRTGEN_CRDS") or DATA)
    schemas = {}
    for kind, one in read_definitions(place).items():
        for version in one["spec"]["versions"]:
            schema = make_strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"].pop("additionalProperties", None)
            schemas[f"{one['spec']['group']}/{version['name']}", kind] = schema
    return schemas


def make_strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with `additionalProperties: false` for what lists its properties, as the API server warns."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {name: make_strict(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            strict.setdefault("additionalProperties", False)
    for word in ("items", "additionalProperties"):
        if isinstance(strict.get(word), dict):
            strict[word] = make_strict(strict[word])
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
    return strict


def find_errors(manifest: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """Return what is wrong, each with its place."""
    found = jsonschema.Draft7Validator(schema).iter_errors(manifest)
    return sorted(f"{'.'.join(map(str, one.absolute_path))}: {one.message}" for one in found)


def trim(schema: Mapping[str, Any], values: list[Any]) -> dict[str, Any]:
    """Return what of the schema is about these values, and what it requires."""
    small = {word: schema[word] for word in _WORDS if word in schema}
    if "properties" in schema:
        used = {name for value in values if isinstance(value, dict) for name in value} | set(schema.get("required", ()))
        small["properties"] = {
            name: trim(one, [value[name] for value in values if isinstance(value, dict) and name in value])
            for name, one in schema["properties"].items()
            if name in used
        }
    if "items" in schema:
        small["items"] = trim(schema["items"], [each for value in values if isinstance(value, list) for each in value])
    if isinstance(more := schema.get("additionalProperties"), dict):
        inner = [each for value in values if isinstance(value, dict) for each in value.values()]
        small["additionalProperties"] = trim(more, inner)
    return small


def write_data(place: Path, manifests: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the parts of tests/data/custom_resources.yaml: the schemas in `place`, as far as the manifests use them."""
    yield _HEAD
    definitions = read_definitions(place)
    for kind, origin in SOURCES.items():
        spec = definitions[kind]["spec"]
        used = [one for one in manifests if one["kind"] == kind]
        versions = [
            {"name": one["name"], "schema": {"openAPIV3Schema": trim(one["schema"]["openAPIV3Schema"], used)}}
            for one in spec["versions"]
            if used[0]["apiVersion"] == f"{spec['group']}/{one['name']}"
        ]
        small = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": definitions[kind]["metadata"]["name"]},
            "spec": {"group": spec["group"], "names": {"kind": kind}, "versions": versions},
        }
        yield f"---\n# {origin.path}\n# at {origin.commit}. {origin.notice}\n"
        yield yaml.safe_dump(small, sort_keys=False, width=120)


if __name__ == "__main__":
    from tests.test_deploy import make_every_manifest

    DATA.write_text("".join(write_data(Path(sys.argv[1]), make_every_manifest())))
