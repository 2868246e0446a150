"""Images with the right boxes: a COCO JSON file, or a text file of YOLO's form for each image."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from generator.errors import VerificationError, near
from generator.images.sets import find_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FORMS = "COCO annotations (a .json in the folder or beside it), or text files of YOLO's form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """One right box of an image: left, top, width, height in pixels, or with `is_share` as shares of the image.

    YOLO's text files have shares. A crowd counts neither as found nor as missed.
    """

    box: tuple[float, float, float, float]
    index: int
    is_share: bool = False
    is_crowd: bool = False

    def in_pixels(self, width: float, height: float) -> Truth:
        """Return the box in pixels of an image of this size."""
        if not self.is_share:
            return self
        left, top, wide, high = self.box
        return replace(self, box=(left * width, top * height, wide * width, high * height), is_share=False)


def read_annotations(folder: Path, labels: Sequence[str]) -> list[tuple[Path, list[Truth]]]:
    """Return each annotated image below `folder` with its boxes, by name.

    Raises:
        VerificationError: There are none, or images are missing, or a category is none of `labels`.
    """
    images = find_images(folder)
    if (file := _find_coco(folder)) is not None:
        return _read_coco(folder, *file, labels)
    texts = {path: text for path in images if (text := _find_text(folder, path)) is not None}
    if not texts:
        msg = f"{folder} has images, but no annotations: {_FORMS} were expected"
        raise VerificationError(msg, hint="YOLO's are beside the images or in a folder labels, one for each image")
    # an image without a text file shows nothing of what is looked for
    return [(path, _read_text(texts[path], labels) if path in texts else []) for path in images]


def _find_coco(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the JSON file with annotations in the folder, else beside it or in COCO's own `annotations`."""
    for place in (folder, folder.parent, folder.parent / "annotations"):
        found = []
        for path in sorted(place.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                if place != folder:
                    continue
                msg = f"{path} cannot be read: {error}"
                raise VerificationError(msg, hint=f"expected are {_FORMS}") from error
            if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
                found.append((path, content))
        if len(found) > 1:
            names = ", ".join(path.name for path, _ in found)
            msg = f"{place} holds several files of COCO annotations: {names}"
            raise VerificationError(msg, hint=f"leave the one in {folder} that belongs to these images")
        if found:
            return found[0]
    return None


def _read_coco(
    folder: Path, file: Path, content: Mapping[str, Any], labels: Sequence[str]
) -> list[tuple[Path, list[Truth]]]:
    try:
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        paths = {image["id"]: folder / image["file_name"] for image in content["images"]}
        if missing := [str(path) for path in paths.values() if not path.is_file()]:
            msg = f"{file} tells of {len(paths)} images, {len(missing)} are not there: {missing[0]} first"
            raise VerificationError(msg, hint=f"put them into {folder}, or take them out of {file.name}")
        indices: dict[int, int] = {}
        truths: dict[int, list[Truth]] = {image: [] for image in paths}
        for one in content["annotations"]:
            kind = one["category_id"]
            if kind not in indices:
                indices[kind] = _find_label(names[kind], labels, file)
            left, top, width, height = (float(edge) for edge in one["bbox"])
            is_crowd = bool(one.get("iscrowd", 0))
            truths[one["image_id"]].append(
                Truth(box=(left, top, width, height), index=indices[kind], is_crowd=is_crowd)
            )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{file} is not what COCO's format says: {type(error).__name__}: {error}"
        hint = "images need id and file_name, annotations image_id, category_id and bbox, categories id and name"
        raise VerificationError(msg, hint=hint) from error
    return sorted((paths[image], boxes) for image, boxes in truths.items())


def _find_label(name: str, labels: Sequence[str], file: Path) -> int:
    if labels.count(name) == 1:
        return labels.index(name)
    if name in labels:
        msg = f"{file}: several classes are called {name!r}"
        raise VerificationError(msg, hint="give labels of which no two are equal")
    like = near(name, labels)
    msg = f"{file}: the category {name!r} is none of the model's labels" + (f"; {like[0]!r} is like it" if like else "")
    raise VerificationError(msg, hint="name the categories like the labels, or give the model other labels")


def _find_text(folder: Path, image: Path) -> Path | None:
    """Return the text file of an image: beside it, or in a folder `labels` in the place of `images` or below ours."""
    inside = image.relative_to(folder).with_suffix(".txt")
    parts = ["labels" if part == "images" else part for part in image.parts]
    others = (image.with_suffix(".txt"), folder / "labels" / inside, folder.parent / "labels" / inside)
    for path in (*others, type(image)(*parts).with_suffix(".txt")):
        if path.is_file():
            return path
    return None


def _read_text(path: Path, labels: Sequence[str]) -> list[Truth]:
    truths = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            index = int(words[0])
            x, y, width, height = (float(word) for word in words[1:])
        except ValueError as error:
            msg = f"{path}, line {number}: {line[:60]!r}, class and four numbers (centre, size) were expected"
            raise VerificationError(msg, hint="boxes are compared, not outlines or points") from error
        if not 0 <= index < len(labels):
            msg = f"{path}, line {number}: class {index}, but the model has the classes 0 to {len(labels) - 1}"
            raise VerificationError(msg, hint="number the classes like the model's labels, from 0")
        if not all(0 <= value <= 1 for value in (x, y, width, height)):
            msg = f"{path}, line {number}: {line[:60]!r}, shares of the image from 0 to 1 were expected"
            raise VerificationError(msg, hint="divide x and width by the image's width, y and height by its height")
        truths.append(Truth(box=(x - width / 2, y - height / 2, width, height), index=index, is_share=True))
    return truths
