# ruff: noqa: ARG002 - a protocol's arguments
"""A task and a source from outside the package: brightness of an image, by its colours and by its size.

The network has two outputs (`bright`, one number per colour, and `spread`), the preprocessing hands the size of the
file's image past it, and a fourth member puts everything together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from generator.artifact import Artifact
from generator.errors import VerificationError
from generator.gate import Candidate
from generator.gate.client import GrpcAddress, ServedModel, as_bytes
from generator.graph.model import open_onnx, read_onnx, run_graph
from generator.images.reference import Reference
from generator.images.sets import ImageSet, default_images
from generator.sources import Network
from generator.spec.model import ModelSpec
from generator.spec.recipe import Recipe
from generator.task import Chosen, Role, Stage, StageResult
from generator.tasks.members import IMAGE, PIXELS, PREPROCESS, make_ensemble, make_network, make_preprocess
from generator.tensor import Tensor
from generator.triton.config import Member, PythonConfig, Step, TensorConfig, common_fields

RECIPE = Recipe(resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_SIZE = TensorConfig(name="SIZE", data_type="TYPE_INT32", dims=(2,))
_REPORT = TensorConfig(name="REPORT", data_type="TYPE_FP32", dims=(5,))
# the served step as it is, and the image's own size beside the pixels
_PREPROCESS = b"""

_Base = TritonPythonModel


class TritonPythonModel(_Base):
    def execute(self, requests):
        return [self._with_size(*pair) for pair in zip(requests, super().execute(requests))]

    def _with_size(self, request, answer):
        if answer.has_error():
            return answer
        files = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        sizes = np.array([Image.open(io.BytesIO(data)).size for data in files], np.int32)
        return pb_utils.InferenceResponse([*answer.output_tensors(), pb_utils.Tensor("SIZE", sizes)])
"""
_POSTPROCESS = b"""import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            bright, spread, size = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("BRIGHT", "SPREAD", "SIZE")
            )
            area = size.astype(np.float32).prod(axis=1, keepdims=True)
            report = np.concatenate([bright, spread, area], axis=1)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("REPORT", report)]))
        return answers
"""


def write_network(path: Path, *, mixed: bool = False) -> Path:
    """Write an ONNX file with two outputs: the mean of each colour, and the largest less the smallest of them.

    With `mixed` the smallest is that of the whole batch.
    """
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"], name="pool"),
        helper.make_node("Flatten", ["means"], ["bright"], name="flat"),
        helper.make_node("ReduceMax", ["bright"], ["high"], name="high", axes=[1], keepdims=1),
        helper.make_node("ReduceMin", ["bright"], ["low"], name="low", axes=[0, 1] if mixed else [1], keepdims=1),
        helper.make_node("Sub", ["high", "low"], ["spread"], name="spread"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "brightness",
        [info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [info("bright", TensorProto.FLOAT, ["batch", 3]), info("spread", TensorProto.FLOAT, ["batch", 1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@dataclass(frozen=True)
class ToySource:
    """One file, wherever the spec's `weights` says."""

    def load(self, spec: ModelSpec) -> Network:
        path = Path(spec.weights)
        run = open_onnx(path)
        return Network(
            description="toy",
            recipe=RECIPE,
            labels=(),
            run=lambda pixels: run(RECIPE.normalise(pixels)),
            onnx=path,
        )

    def describe(self, spec: ModelSpec) -> tuple[Recipe, tuple[str, ...]]:
        return RECIPE, ()


@dataclass(frozen=True)
class Colours:
    """What the toy keeps of its head: how many colours it tells."""

    colours: int


class Toy:
    """The task."""

    name = "toy"
    network = Role(key="network", suffix="_network", holds_network=True, default_instances=lambda _: 1)
    report = Role(key="report", suffix="_report", default_instances=lambda _: 1, about_instances="Reporters.")
    entry = Role(key="ensemble", suffix="")
    roles: tuple[Role, ...] = (PREPROCESS, network, report, entry)
    fused: Role | None = None
    limit = 1e-3

    def default_images(self, recipe: Recipe) -> ImageSet:
        return default_images()

    def guess_recipe(self, spec: ModelSpec, path: Path) -> None:
        return None

    def choose_outputs(self, path: Path, outputs: Sequence[Tensor], spec: ModelSpec | None) -> Chosen:
        raise AssertionError("the toy has a source of its own")

    def name_classes(self, spec: ModelSpec, path: Path, outputs: Sequence[Tensor]) -> tuple[str, ...]:
        raise AssertionError("the toy has a source of its own")

    def resolve_labels(self, spec: ModelSpec, own: Sequence[str] | None, count: int) -> tuple[str, ...]:
        return ()

    def make_answers(
        self, spec: ModelSpec, network: Network, pixels: NDArray[np.uint8], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        return network.run(pixels)

    def finish_graph(
        self, spec: ModelSpec, network: Network, graph: onnx.ModelProto, answers: Mapping[str, NDArray[Any]]
    ) -> Colours:
        for output in graph.graph.output:
            name = output.name
            graph.graph.node.append(helper.make_node("Identity", [name], [name.upper()], name=f"toy_{name}"))
            output.name = name.upper()
        return Colours(colours=answers["bright"].shape[1])

    def restore_head(self, head: Mapping[str, Any] | None, spec: ModelSpec, reference: Path) -> Colours:
        assert head is not None
        return Colours(**head)

    def is_reordered(
        self, one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], tolerance: float
    ) -> bool:
        return False

    def list_assumed(self, spec: ModelSpec, network: Network, head: Colours) -> dict[str, str]:
        return {}

    def make_members(self, spec: ModelSpec, artifact: Artifact) -> list[Member]:
        made = make_preprocess(spec, artifact)
        assert isinstance(made.config, PythonConfig)
        preprocess = Member(
            config=_with_outputs(made.config, (*made.config.outputs, _SIZE)),
            files=made.files,
            version_files={"model.py": made.version_files["model.py"] + _PREPROCESS},
        )
        network = make_network(spec, artifact, self.network, label_files={}, files={})
        bright, spread = (TensorConfig.of(tensor) for tensor in artifact.outputs)
        report = Member(
            config=PythonConfig(
                **common_fields(spec, self.report),
                inputs=(bright, spread, _SIZE),
                outputs=(_REPORT,),
                instance_count=spec.instance_counts()["report"],
                parameters={},
            ),
            version_files={"model.py": _POSTPROCESS},
        )
        ensemble = make_ensemble(
            spec,
            self.entry,
            steps=[
                Step(
                    model_name=preprocess.config.name,
                    input_map={IMAGE: IMAGE},
                    output_map={PIXELS: "pixels", "SIZE": "size"},
                ),
                Step(
                    model_name=network.config.name,
                    input_map={artifact.inputs[0].name: "pixels"},
                    output_map={"BRIGHT": "bright", "SPREAD": "spread"},
                ),
                Step(
                    model_name=report.config.name,
                    input_map={"BRIGHT": "bright", "SPREAD": "spread", "SIZE": "size"},
                    output_map={"REPORT": "REPORT"},
                ),
            ],
            outputs=[_REPORT],
            parameters={},
            files={},
        )
        return [preprocess, network, report, ensemble]

    def make_contract(self, artifact: Artifact) -> dict[str, Any]:
        return {"colours": artifact.head.colours}

    def make_stages(self, candidate: Candidate, reference: Reference) -> list[Stage]:
        if np.ptp(reference.answers["spread"]) < self.limit:
            msg = f"{candidate.spec.name}: all images are equally grey"
            raise VerificationError(msg, hint="give --images with coloured ones")

        def graph(_: ServedModel | None) -> StageResult:
            outputs = run_graph(read_onnx(candidate.onnx), reference.pixels)
            return self.judge("colours", outputs["BRIGHT"], reference)

        def served(server: ServedModel | None) -> StageResult:
            assert server is not None
            report = server.ask("ensemble", as_bytes(reference.files))["REPORT"]
            return self.judge("served colours", report[:, :3], reference)

        return [
            Stage(name="colours", needs="graph", run=graph),
            Stage(name="served colours", needs="server", run=served),
        ]

    def judge(self, stage: str, bright: NDArray[Any], reference: Reference) -> StageResult:
        """Compare with the source, up to one level of 255."""
        worst = float(np.abs(bright - reference.answers["bright"]).max())
        limit = self.limit + (1 / 255 if stage.startswith("served") else 0)
        if worst > limit:
            return StageResult(stage=stage, status="failed", reason=f"off by {worst:.3f}", cause="another colour order")
        return StageResult(stage=stage, status="proved", measured=f"within {worst:.1g}")

    def measure_labelled(
        self, candidate: Candidate, folder: Path, address: GrpcAddress | None
    ) -> Iterator[StageResult]:
        yield StageResult(stage="labelled colours", status="measured", figures={"right": 1.0})

    def make_rows(
        self, outputs: Mapping[str, NDArray[Any]], labels: Sequence[str] | None, top: int | None
    ) -> list[list[dict[str, Any]]]:
        names = ("red", "green", "blue")
        return [
            sorted(({"colour": name, "value": float(v)} for name, v in zip(names, row, strict=False)), key=_value)[:top]
            for row in outputs["REPORT"]
        ]

    def answer_one(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        outputs: Mapping[str, NDArray[Any]],
        geometry: Sequence[float],
        top: int | None,
    ) -> list[dict[str, Any]]:
        return self.make_rows({"REPORT": outputs["bright"][None]}, None, top)[0]

    def find_answers(self, types: Mapping[str, str]) -> dict[str, bool]:
        return {"REPORT": False} if "REPORT" in types else {}

    def read_answer(
        self, outputs: Mapping[str, NDArray[Any]], negative_label: str | None, top: int | None
    ) -> list[dict[str, Any]]:
        return self.make_rows({"REPORT": outputs["REPORT"][None]}, None, top)[0]


def _value(row: dict[str, Any]) -> float:
    return -float(row["value"])


def _with_outputs(config: PythonConfig, outputs: tuple[TensorConfig, ...]) -> PythonConfig:
    from dataclasses import replace

    return replace(config, outputs=outputs)


class Bare(Toy):
    """The network alone, which clients call with pixels."""

    name = "bare"
    network = Role(key="network", suffix="", holds_network=True, default_instances=lambda _: 1)
    roles: tuple[Role, ...] = (network,)

    def make_members(self, spec: ModelSpec, artifact: Artifact) -> list[Member]:
        return [make_network(spec, artifact, self.network, label_files={}, files={})]

    def make_stages(self, candidate: Candidate, reference: Reference) -> list[Stage]:
        def served(server: ServedModel | None) -> StageResult:
            assert server is not None
            return self.judge("served colours", server.ask("network", reference.pixels)["BRIGHT"], reference)

        return [Stage(name="served colours", needs="server", run=served)]


TOY, SOURCE = Toy(), ToySource()
