"""A Kustomize base and what stands on it: objects, and patches of what is below."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

Manifest = dict[str, Any]
KUSTOMIZATION = "kustomization.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a JSON patch, `add` or, without a value, `remove`.

    `path` are the keys down to the place; `-` is the end of a list.
    """

    path: tuple[str, ...]
    value: Any = None

    def apply(self, manifest: Manifest) -> None:
        """Change the manifest."""
        *parents, last = self.path
        place: Any = manifest
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if self.value is None:
            del place[last]
        elif last == "-":
            place.append(copy.deepcopy(self.value))
        else:
            place[last] = copy.deepcopy(self.value)

    def write(self) -> Manifest:
        """Return it in the words of RFC 6902."""
        path = "".join(f"/{key.replace('~', '~0').replace('/', '~1')}" for key in self.path)
        return (
            {"op": "remove", "path": path} if self.value is None else {"op": "add", "path": path, "value": self.value}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """What is changed in an object of the layers below; without operations it is taken away."""

    target: Manifest
    operations: tuple[Operation, ...] = ()

    def write(self) -> Any:
        """Return it as a file that a kustomization names."""
        if self.operations:
            return [operation.write() for operation in self.operations]
        named = {key: self.target["metadata"][key] for key in ("name", "namespace")}
        kind = {key: self.target[key] for key in ("apiVersion", "kind")}
        return {"$patch": "delete", **kind, "metadata": named}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A folder with a kustomization.yaml: objects, by the name of their file, on top of another layer."""

    folder: str
    objects: dict[str, list[Manifest]] = field(default_factory=dict)
    below: Self | None = None
    patches: tuple[Patch, ...] = ()

    def merge(self) -> list[Manifest]:
        """Return all objects, as `kubectl kustomize` merges them."""
        merged = self.below.merge() if self.below else []
        for patch in self.patches:
            key = _identify(patch.target)
            (target,) = (one for one in merged if _identify(one) == key)
            for operation in patch.operations:
                operation.apply(target)
            if not patch.operations:
                merged.remove(target)
        return merged + [copy.deepcopy(one) for objects in self.objects.values() for one in objects]

    def write(self) -> dict[str, list[Any]]:
        """Return the YAML documents of each file, by its path from the folder of all layers."""
        files: dict[str, list[Any]] = {f"{self.folder}/{name}": list(ones) for name, ones in self.objects.items()}
        patches = []
        for patch in self.patches:
            kind, name = _identify(patch.target)
            path = f"patch-{kind.lower()}.yaml"
            files[f"{self.folder}/{path}"] = [patch.write()]
            patches.append({"path": path, "target": {"kind": kind, "name": name}})
        up = "../" * (self.folder.count("/") + 1)
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [*([f"{up}{self.below.folder}"] if self.below else []), *self.objects],
            **({"patches": patches} if patches else {}),
        }
        return {f"{self.folder}/{KUSTOMIZATION}": [kustomization], **files}


def _identify(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]
