"""The served post-processing step, run here: there is one implementation, `templates/postprocess/1/model.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.errors import SpecError
from generator.images.served_pixels import load_step
from generator.spec.detection import DetectionOptions
from generator.tasks.detection.members import make_parameters
from generator.tasks.detection.reading import restore_reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from generator.tasks.detection.reading import Reading


@dataclass(frozen=True, slots=True)
class Postprocess:
    """Thresholds and NMS with the names of the classes that they are for; `most` boxes are answered."""

    parameters: Mapping[str, str]
    labels: tuple[str, ...]
    most: int

    @classmethod
    def of(cls, options: DetectionOptions, reading: Reading, labels: Sequence[str]) -> Postprocess:
        """Return the step as it is served with these options."""
        return cls(make_parameters(options, reading), tuple(labels), options.max_detections)

    @classmethod
    def of_record(
        cls, spec: Mapping[str, Any], head: Mapping[str, Any] | None, labels: Sequence[str], *, score: float | None
    ) -> Postprocess:
        """Return the step of a record, or with another threshold for all classes.

        Raises:
            SourceError: The record does not say what the network answers.
            SpecError: `score` is not between 0 and 1.
        """
        options = DetectionOptions.model_validate(spec["detection"])
        if score is not None:
            if not 0 < score < 1:
                raise SpecError(f"score is {score}, a number between 0 and 1 was expected", hint="such as 0.25")
            options = options.model_copy(update={"score": score, "class_scores": {}})
        return cls.of(options, restore_reading(head, Path(str(spec["name"]), "trtgen.json")), labels)

    def detect(
        self, boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any], geometry: Sequence[float]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
        """Return boxes (n, 4) in pixels of the original, scores and classes of one image, best first."""
        import numpy as np

        step = load_step("postprocess")
        parameters = {name: {"string_value": value} for name, value in self.parameters.items()}
        options = step.Options(parameters, list(self.labels), self.most)
        found: tuple[Any, Any, Any] = step.detect(boxes, scores, classes, np.array(geometry, np.float32), options)
        return found
