"""Members that several tasks have: the step from encoded images to pixels, the network, the ensemble."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from generator.packages import installed_packages
from generator.render import read_static
from generator.spec.model import usable_cores
from generator.spec.recipe import PARAMETERS
from generator.task import Role
from generator.triton.config import (
    EnsembleConfig,
    FusedConfig,
    Member,
    NetworkConfig,
    PythonConfig,
    Step,
    TensorConfig,
    common_fields,
    network_fields,
)
from generator.triton.fused import DECODE, NETWORK_BACKEND, NETWORK_INPUT, PROFILE, read_decoder_files, read_fused_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from generator.artifact import Artifact
    from generator.spec.model import ModelSpec

IMAGE = "IMAGE"
PIXELS = "PIXELS"
GEOMETRY = "GEOMETRY"
_WARMUP_FILE = "image.bin"
_PROVED = "it is part of the recipe that was proved"


def _preprocess_instances(is_tensorrt: bool) -> int:
    """Beside onnxruntime half of the usable cores, since the network needs the other half; beside a GPU all of them.

    On 16 cores 16 processes served 14 % more images than 14 (docs/benchmarks.md).
    """
    return usable_cores() if is_tensorrt else max(1, usable_cores() // 2)


def network_instances(is_tensorrt: bool) -> int:
    """With onnxruntime one, which uses all cores for a batch. With a plan four, so that others copy while one computes.

    On an H200 they take 18 % more images than three, and three a third more than two (docs/benchmarks.md).
    """
    return 4 if is_tensorrt else 1


def decoding_instances() -> int:
    """Six processes keep the GPU's JPEG engine busy, where each has two cores or more (docs/benchmarks.md)."""
    return min(6, max(1, usable_cores() // 2))


PREPROCESS = Role(
    key="preprocess",
    suffix="_preprocess",
    default_instances=_preprocess_instances,
    most_instances=256,
    decoder_instances=lambda: 4,
    about_instances="Preprocessing processes; default half of the usable cores, beside a GPU all, with `decode: gpu` 4 "
    "for each GPU.",
    own_parameters={
        **dict.fromkeys((*PARAMETERS, "pillow"), _PROVED),
        "EXECUTION_ENV_PATH": "another Python would make other pixels than those that were proved",
    },
)


def make_fused_role(own_parameters: Mapping[str, str]) -> Role:
    """Return the role of the one model of `layout: fused`; `own_parameters` are those of the task."""
    follows = dict.fromkeys((NETWORK_BACKEND, NETWORK_INPUT, PROFILE, DECODE), "it follows from what was built")
    return Role(
        key="fused",
        suffix="",
        holds_network=True,
        default_instances=network_instances,
        decoder_instances=decoding_instances,
        about_instances="Processes of a fused model, each with decoding and the network; default 1, with a plan 4, "
        "with `decode: gpu` 6 or half of the usable cores.",
        own_parameters={**PREPROCESS.own_parameters, **follows, **own_parameters},
    )


def make_preprocess(
    spec: ModelSpec, artifact: Artifact, role: Role = PREPROCESS, *, more_outputs: Sequence[TensorConfig] = ()
) -> Member:
    """Return the step from encoded images to the pixels that the network takes."""
    recipe, on_gpu = artifact.recipe, spec.decode == "gpu"
    config = PythonConfig(
        **common_fields(spec, role),
        inputs=(TensorConfig(name=IMAGE, data_type="TYPE_STRING", dims=(1,)),),
        outputs=(TensorConfig(name=PIXELS, data_type="TYPE_UINT8", dims=recipe.shape), *more_outputs),
        instance_kind="KIND_GPU" if on_gpu else "KIND_CPU",
        instance_count=spec.instance_counts()[role.key],
        max_queue_delay_microseconds=0 if on_gpu and spec.batch.max > 1 else None,
        comment="The recipe: edges in pixels (height before width), limits per image.",
        parameters=_make_recipe_parameters(artifact),
        warmup_file=_WARMUP_FILE,
    )
    step = {"model.py": read_static("preprocess/1/model.py")}
    return Member(config=config, files=_make_warmup(), version_files=read_decoder_files() if on_gpu else step)


def _make_recipe_parameters(artifact: Artifact) -> dict[str, str]:
    return {**artifact.recipe.parameters(), "pillow": installed_packages()["pillow"]}


def _make_warmup() -> dict[str, bytes]:
    """Return the image that a model is warmed up with, in Triton's wire format for one element: length, content."""
    sample = read_static("preprocess/warmup/sample.jpg")
    return {f"warmup/{_WARMUP_FILE}": struct.pack("<I", len(sample)) + sample}


def make_network(
    spec: ModelSpec, artifact: Artifact, role: Role, *, label_files: Mapping[str, str], files: Mapping[str, bytes]
) -> Member:
    """Return the member that runs the graph or the plan; `label_files` names the label file of an output."""
    config = NetworkConfig(
        **network_fields(spec, artifact, role),
        # NVIDIA's image clients ask for the format; no backend reads it
        inputs=tuple(TensorConfig.of(tensor, format="FORMAT_NHWC") for tensor in artifact.inputs),
        outputs=tuple(
            TensorConfig.of(tensor, label_filename=label_files.get(tensor.name)) for tensor in artifact.outputs
        ),
    )
    return Member(config=config, files=files)


def make_ensemble(
    spec: ModelSpec,
    role: Role,
    steps: Sequence[Step],
    outputs: Sequence[TensorConfig],
    *,
    parameters: Mapping[str, str],
    files: Mapping[str, bytes],
) -> Member:
    """Return what clients call: encoded images in, `outputs` out."""
    config = EnsembleConfig(
        **common_fields(spec, role),
        inputs=(TensorConfig(name=IMAGE, data_type="TYPE_STRING", dims=(1,)),),
        outputs=tuple(outputs),
        parameters=parameters,
        steps=tuple(steps),
    )
    return Member(config=config, files=files)


def make_fused(
    spec: ModelSpec,
    artifact: Artifact,
    role: Role,
    outputs: Sequence[TensorConfig],
    *,
    inner: Sequence[TensorConfig] = (),
    parameters: Mapping[str, str],
    files: Mapping[str, bytes],
    more_code: Mapping[str, bytes] | None = None,
) -> Member:
    """Return the one model of `layout: fused`: encoded images in, `outputs` out.

    PIXELS and what else is `inner` goes from one part of it to the next and is answered to who asks for nothing else.
    `more_code` lies beside what every fused model has.
    """
    backend = "onnxruntime" if artifact.passport is None else "tensorrt"
    fields = network_fields(spec, artifact, role)
    given, profiles = fields.pop("given_fields"), fields.pop("profiles", ())
    fields |= {"backend": "python", "default_model_filename": "model.py"}
    pixels = TensorConfig(name=PIXELS, data_type="TYPE_UINT8", dims=artifact.recipe.shape)
    config = FusedConfig(
        **fields,
        given_fields=(*given, "model_warmup"),  # not a network's, which takes pixels
        inputs=(TensorConfig(name=IMAGE, data_type="TYPE_STRING", dims=(1,)),),
        outputs=(*outputs, pixels, *inner),
        comment="The recipe: edges in pixels (height before width), limits per image; the network; what is answered.",
        parameters={
            **_make_recipe_parameters(artifact),
            NETWORK_BACKEND: backend,
            NETWORK_INPUT: artifact.inputs[0].name,
            **({PROFILE: ",".join(map(str, profiles))} if profiles else {}),
            **({DECODE: "gpu"} if spec.decode == "gpu" else {}),
            **parameters,
        },
        warmup_file=None if "model_warmup" in given else _WARMUP_FILE,
    )
    code = {**read_fused_files(backend), **(more_code or {})}
    return Member(config=config, files={**files, **_make_warmup()}, version_files=code)
