"""Boxes as COCO results: the list that pycocotools' loadRes and faster-coco-eval take."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from command_line import read_text
from triton_images import ClientError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from triton_images import Detection


@dataclass(frozen=True)
class Annotations:
    """The ids of a data set: of its images by file name, and of its categories by name."""

    images: Mapping[str, int]
    categories: Mapping[str, int]


def read_annotations(path: str | None) -> Annotations | None:
    """Read the ids of an annotations file.

    Raises:
        ClientError: It cannot be read, or holds no images and categories.
    """
    if path is None:
        return None
    try:
        data = json.loads(read_text(path))
        images = {str(one["file_name"]): int(one["id"]) for one in data["images"]}
        categories = {str(one["name"]): int(one["id"]) for one in data["categories"]}
    except (ValueError, LookupError, TypeError) as error:
        hint = "images with file_name and id, and categories with name and id were expected"
        raise ClientError(f"{path} is not a file of COCO annotations: {type(error).__name__}: {error}", hint) from None
    return Annotations(images, categories)


class Results:
    """Collects rows: image_id, category_id, bbox (left, top, width, height), score, and file_name for people.

    Args:
        places: Each image's path in its folder, in the order of the input.
        annotations: Whose ids are used; without, images are counted from 1, and a category is a class's index + 1.
    """

    def __init__(self, places: Mapping[str, Path], annotations: Annotations | None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._places, self._annotations = places, annotations
        self._unknown_images: list[str] = []
        self._unknown_labels: Counter[str] = Counter()
        self._images = self._number_images()

    def add(self, name: str, detections: Sequence[Detection]) -> None:
        """Add the boxes of one image."""
        image = self._images[name]
        if image is None:
            self._unknown_images.append(name)
            return
        for one in detections:
            category = self._find_category(one)
            if category is None:
                self._unknown_labels[one.label or f"class {one.index}"] += 1
                continue
            left, top, right, bottom = one.box
            box = [round(edge, 2) for edge in (left, top, right - left, bottom - top)]
            row = {"image_id": image, "category_id": category, "bbox": box, "score": round(one.score, 6)}
            self.rows.append({**row, "file_name": self._places[name].as_posix()})

    def list_omissions(self) -> list[str]:
        """Say what is not in the rows because the annotations do not have it."""
        notes = []
        if self._unknown_images:
            first, more = self._unknown_images[0], len(self._unknown_images) - 1
            others = f" and {more} more" if more else ""
            notes.append(f"not in the annotations, so not in the results: {first}{others}")
        if self._unknown_labels:
            counts = ", ".join(f"{label} ({count})" for label, count in sorted(self._unknown_labels.items()))
            notes.append(f"boxes of classes that the annotations do not have are not in the results: {counts}")
        return notes

    def _number_images(self) -> dict[str, int | None]:
        """Return the id of each image: of its path in the folder, else of its name where only one image has that."""
        if self._annotations is None:
            return {name: number for number, name in enumerate(self._places, 1)}
        known = self._annotations.images
        counts = Counter(path.rpartition("/")[2] for path in known)
        of_names = {path.rpartition("/")[2]: number for path, number in known.items()}
        return {
            name: known.get(place.as_posix(), of_names.get(place.name) if counts[place.name] == 1 else None)
            for name, place in self._places.items()
        }

    def _find_category(self, one: Detection) -> int | None:
        if self._annotations is None or one.label is None:
            return one.index + 1
        return self._annotations.categories.get(one.label)
