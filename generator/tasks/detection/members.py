"""The four members of a served detector."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from generator.render import read_static
from generator.tasks.members import GEOMETRY, IMAGE, PIXELS, make_ensemble, make_fused, make_network, make_preprocess
from generator.triton.config import Member, PythonConfig, Step, TensorConfig, common_fields

if TYPE_CHECKING:
    from generator.artifact import Artifact
    from generator.spec.detection import DetectionOptions
    from generator.spec.model import ModelSpec
    from generator.task import Role
    from generator.tasks.detection.reading import Reading

# What a fused model's version directory calls the post-processing step.
POSTPROCESS_CODE = "trtgen_postprocess.py"
_GEOMETRY = TensorConfig(name=GEOMETRY, data_type="TYPE_FP32", dims=(6,))


def make_members(
    spec: ModelSpec, artifact: Artifact, *, detector: Role, postprocess: Role, ensemble: Role
) -> list[Member]:
    """Return the configuration and the files of each member, in the order of publishing."""
    first = make_preprocess(spec, artifact, more_outputs=(_GEOMETRY,))
    network = make_network(spec, artifact, detector, label_files={}, files={})
    last = _make_postprocess(spec, artifact, postprocess)
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
        parameters=_name_labels(artifact),
        files={},
    )
    return [first, network, last, entry]


def make_fused_detector(spec: ModelSpec, artifact: Artifact, role: Role) -> Member:
    """Return the one model of `layout: fused`, which also tells the rows that its post-processing takes."""
    assert spec.detection is not None, "the spec fills it in"
    return make_fused(
        spec,
        artifact,
        role,
        _make_answers(spec.detection),
        inner=(_GEOMETRY, *(TensorConfig.of(tensor) for tensor in artifact.outputs)),
        parameters={**make_parameters(spec.detection, artifact.head), **_name_labels(artifact)},
        files=_make_label_file(artifact),
        more_code={POSTPROCESS_CODE: read_static("postprocess/1/model.py")},
    )


def make_parameters(options: DetectionOptions, reading: Reading) -> dict[str, str]:
    """Return what the post-processing step reads from its config.pbtxt: names and values as text."""
    parameters = {"score": str(options.score), "iou": str(options.iou), "nms": reading.choose_nms(options)}
    if options.class_scores:
        parameters["class_scores"] = json.dumps(options.class_scores, ensure_ascii=False)
    return parameters


def _name_labels(artifact: Artifact) -> dict[str, str]:
    return {"labels": json.dumps(artifact.labels, ensure_ascii=False)}


def _make_label_file(artifact: Artifact) -> dict[str, bytes]:
    return {"labels.txt": "".join(f"{label}\n" for label in artifact.labels).encode()}


def _make_answers(options: DetectionOptions) -> tuple[TensorConfig, ...]:
    """Return what clients get, in the order in which the post-processing step answers."""
    most = options.max_detections
    return (
        TensorConfig(name="NUM_DETECTIONS", data_type="TYPE_INT32", dims=(1,)),
        TensorConfig(name="BOXES", data_type="TYPE_FP32", dims=(most, 4)),
        TensorConfig(name="SCORES", data_type="TYPE_FP32", dims=(most,)),
        TensorConfig(name="CLASSES", data_type="TYPE_INT32", dims=(most,)),
        TensorConfig(name="LABELS", data_type="TYPE_STRING", dims=(most,)),
    )


def _make_postprocess(spec: ModelSpec, artifact: Artifact, role: Role) -> Member:
    """Return the step from the network's rows to the boxes that are answered."""
    options = spec.detection
    assert options is not None, "the spec fills it in"
    config = PythonConfig(
        **common_fields(spec, role),
        inputs=(*(TensorConfig.of(tensor) for tensor in artifact.outputs), _GEOMETRY),
        outputs=_make_answers(options),
        instance_count=spec.instance_counts()[role.key],
        comment="Which boxes are answered: may be changed here, no plan depends on it.",
        parameters=make_parameters(options, artifact.head),
    )
    return Member(
        config=config,
        files=_make_label_file(artifact),
        version_files={"model.py": read_static("postprocess/1/model.py")},
    )
