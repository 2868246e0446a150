"""The four members of a served detector."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from generator.render import read_static
from generator.tasks.members import GEOMETRY, IMAGE, PIXELS, make_ensemble, make_network, make_preprocess
from generator.triton.config import Member, PythonConfig, Step, TensorConfig, common_fields

if TYPE_CHECKING:
    from generator.artifact import Artifact
    from generator.spec.detection import DetectionOptions
    from generator.spec.model import ModelSpec
    from generator.task import Role
    from generator.tasks.detection.reading import Reading


def make_members(
    spec: ModelSpec, artifact: Artifact, *, detector: Role, postprocess: Role, ensemble: Role
) -> list[Member]:
    """Return the configuration and the files of each member, in the order of publishing."""
    geometry = TensorConfig(name=GEOMETRY, data_type="TYPE_FP32", dims=(6,))
    first = make_preprocess(spec, artifact, more_outputs=(geometry,))
    network = make_network(spec, artifact, detector, label_files={}, files={})
    last = _make_postprocess(spec, artifact, postprocess, geometry)
    (pixels,) = artifact.inputs
    rows = {tensor.name: tensor.name for tensor in artifact.outputs}
    steps = [
        Step(
            model_name=first.config.name,
            input_map={IMAGE: IMAGE},
            output_map={PIXELS: "pixels", GEOMETRY: GEOMETRY},
        ),
        Step(model_name=network.config.name, input_map={pixels.name: "pixels"}, output_map=rows),
        Step(
            model_name=last.config.name,
            input_map={**rows, GEOMETRY: GEOMETRY},
            output_map={tensor.name: tensor.name for tensor in last.config.outputs},
        ),
    ]
    entry = make_ensemble(
        spec,
        ensemble,
        steps=steps,
        outputs=last.config.outputs,
        parameters={"labels": json.dumps(artifact.labels, ensure_ascii=False)},
        files={},
    )
    return [first, network, last, entry]


def make_parameters(options: DetectionOptions, reading: Reading) -> dict[str, str]:
    """Return what the post-processing step reads from its config.pbtxt: names and values as text."""
    parameters = {"score": str(options.score), "iou": str(options.iou), "nms": reading.choose_nms(options)}
    if options.class_scores:
        parameters["class_scores"] = json.dumps(options.class_scores, ensure_ascii=False)
    return parameters


def _make_postprocess(spec: ModelSpec, artifact: Artifact, role: Role, geometry: TensorConfig) -> Member:
    """Return the step from the network's rows to the boxes that are answered."""
    options = spec.detection
    assert options is not None, "the spec fills it in"
    most = options.max_detections
    config = PythonConfig(
        **common_fields(spec, role),
        inputs=(*(TensorConfig.of(tensor) for tensor in artifact.outputs), geometry),
        outputs=(
            TensorConfig(name="NUM_DETECTIONS", data_type="TYPE_INT32", dims=(1,)),
            TensorConfig(name="BOXES", data_type="TYPE_FP32", dims=(most, 4)),
            TensorConfig(name="SCORES", data_type="TYPE_FP32", dims=(most,)),
            TensorConfig(name="CLASSES", data_type="TYPE_INT32", dims=(most,)),
            TensorConfig(name="LABELS", data_type="TYPE_STRING", dims=(most,)),
        ),
        instance_count=spec.instance_counts()[role.key],
        comment="Which boxes are answered: may be changed here, no plan depends on it.",
        parameters=make_parameters(options, artifact.head),
    )
    labels = "".join(f"{label}\n" for label in artifact.labels).encode()
    return Member(
        config=config,
        files={"labels.txt": labels},
        version_files={"model.py": read_static("postprocess/1/model.py")},
    )
