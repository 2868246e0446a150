"""Artifact: what the configurations are made around: the graph, the source's answers, and the plan if there is one."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.events import Doing, Done, OnEvent
from generator.graph.model import OnnxModel, read_onnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx
    from numpy.typing import NDArray

    from generator.plan.passport import Passport
    from generator.sources import Network
    from generator.spec.model import ModelSpec
    from generator.spec.recipe import Recipe
    from generator.tasks.head import Head

__all__ = ["Artifact", "add_plan", "export_artifact", "take_export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """Made just now, taken from an export, or taken over from the published version.

    `labels` are the names of the classes; a network with one output has two, and answers the second one's probability.
    `assumed` says by its name what was taken on trust, and why. `notes` are for the user, `keep` the names of the
    nodes that were asked to stay in FP32.
    """

    onnx: OnnxModel
    head: Head
    recipe: Recipe
    labels: tuple[str, ...]
    description: str
    assumed: Mapping[str, str] = field(default_factory=dict)
    passport: Passport | None = None
    notes: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()

    @property
    def output_labels(self) -> tuple[str, ...]:
        """One name per output of the network."""
        return self.labels[-1:] if self.onnx.output.shape[-1] == 1 else self.labels


def export_artifact(spec: ModelSpec, folder: Path, *, shown: str, images: Path | None, on_event: OnEvent) -> Artifact:
    """Write the graph for the spec's target and precision and the source's answers into `folder`.

    `shown` is what `on_event` is told of the graph, since `folder` is often a temporary one.

    Raises:
        SourceError: The source cannot be loaded.
        ExportError: It does not become the graph that is asked for.
        VerificationError: `images` cannot be used, or the source's answers cannot.
    """
    from generator.gate import default_images, make_reference, read_images
    from generator.gate.reference import save_reference
    from generator.graph.export import make_graph
    from generator.repository.exported import REFERENCE_FILE
    from generator.sources import load_network

    chosen = read_images(images) if images else default_images()  # first: it is soon said what is wrong with them
    start = time.monotonic()
    on_event(Doing(step=f"loading {spec.name}"))
    network = load_network(spec)
    on_event(Done(step="loaded", detail=network.description, seconds=time.monotonic() - start))
    start = time.monotonic()
    doing = partial(Doing, step=f"exporting {spec.name}")
    on_event(doing(part="the graph"))
    proto = make_graph(spec, network)
    on_event(doing(part="the source's own answers"))
    reference = make_reference(network, chosen)
    onnx, head, notes, keep = _export_graph(spec, network, proto, reference.scores, folder, on_event)
    detail = f"{shown}  {onnx.node_count} nodes, opset {onnx.opset}, batch 1 to {spec.batch.max}"
    if spec.is_tensorrt:
        detail += f", for {spec.target} in {spec.precision}"
    on_event(Done(step="exported", detail=detail, seconds=time.monotonic() - start))
    save_reference(reference, folder / REFERENCE_FILE)
    return Artifact(
        onnx=onnx,
        head=head,
        recipe=network.recipe,
        labels=network.labels,
        description=network.description,
        assumed=_list_assumed(spec, network, head),
        notes=notes,
        keep=keep,
    )


def _list_assumed(spec: ModelSpec, network: Network, head: Head) -> dict[str, str]:
    """Say what nobody can prove here: the activation behind logits, a recipe that did not come with the weights."""
    from generator.spec.recipe import RecipeSpec

    assumed = {}
    if spec.activation == "auto" and head.output == "logits" and network.activation is None:
        several = "a model with several labels per image" if head.activation == "softmax" else "a regression"
        named = "" if network.onnx is None else _named_otherwise(network.onnx)
        assumed["activation"] = f"{head.activation}: the source answers logits{named}; {several} would look the same"
    if spec.source == "onnx" or spec.recipe != RecipeSpec():
        assumed["recipe"] = "as given, not proved; --labelled DIR measures it"
    elif spec.source == "checkpoint":
        assumed["recipe"] = f"that of {spec.registry_name}'s own weights, not proved; --labelled DIR measures it"
    return assumed


def _named_otherwise(onnx: Path) -> str:
    name = read_onnx(onnx).output.name
    return f", though its output is called {name}" if "prob" in name.lower() else ""


def _export_graph(
    spec: ModelSpec,
    network: Network,
    proto: onnx.ModelProto,
    scores: NDArray[np.float32],
    folder: Path,
    on_event: OnEvent,
) -> tuple[OnnxModel, Head, tuple[str, ...], tuple[str, ...]]:
    """Write the graph; return it, its head, what the user should know, and the names of the nodes that `keep` fits."""
    from generator.graph.export import MODEL_FILE, export_onnx

    doing = partial(Doing, step=f"exporting {spec.name}")
    on_event(doing(part="head and batches"))
    if _is_plain(spec) and not spec.keep:
        return *export_onnx(spec, network, proto, scores, folder), (), ()
    from generator.graph.precision import convert_graph
    from generator.graph.precision.calibration import read_calibration

    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    calibration: Any = None
    if spec.precision == "int8":
        on_event(doing(part="calibration images"))
        images = read_calibration(spec.calibration, network.recipe)
        calibration = images.pixels
        notes += [images.warning] if images.warning else []
    with tempfile.TemporaryDirectory(prefix="trtgen-fp32-") as plain:
        fp32, head = export_onnx(spec, network, proto, scores, Path(plain))
        on_event(doing(part=spec.precision))
        converted = convert_graph(
            fp32.path,
            folder / MODEL_FILE,
            precision=spec.precision,
            target=spec.target,
            keep=spec.keep,
            calibration=calibration,
        )
    notes += converted.warnings
    keep = tuple(name for name, reason in converted.kept_nodes.items() if reason == "keep")
    return read_onnx(folder / MODEL_FILE), head, tuple(notes), keep


def _is_plain(spec: ModelSpec) -> bool:
    if not spec.is_tensorrt:
        return True
    from generator.graph.precision import graph_precision

    return graph_precision(spec.target, spec.precision) == "fp32"


def take_export(spec: ModelSpec, folder: Path) -> Artifact:
    """Copy what `trtgen export` wrote beside the spec's file into `folder`; neither torch nor the source is needed.

    Raises:
        SourceError: The export is incomplete or was changed.
    """
    from generator.repository.exported import REFERENCE_FILE, read_export
    from generator.spec.recipe import Recipe
    from generator.tasks.head import read_head

    assert spec.onnx is not None, "the spec's own rules see to it"
    record = read_export(spec.onnx)
    folder.mkdir(parents=True, exist_ok=True)
    for name in record.files:
        shutil.copyfile(spec.onnx.parent / name, folder / name)
    return Artifact(
        onnx=read_onnx(folder / spec.onnx.name),
        head=read_head(record.head, record.activation, folder / REFERENCE_FILE),
        recipe=Recipe.model_validate(record.recipe),
        labels=tuple(record.labels),
        description=record.description,
        assumed=record.assumed,
        notes=tuple(record.notes),
        keep=tuple(record.keep),
    )


def add_plan(spec: ModelSpec, artifact: Artifact, path: Path, *, command: str, on_event: OnEvent) -> Artifact:
    """Build the plan of the artifact's graph at `path`, with its passport beside it.

    Raises:
        PlanError: TensorRT refuses the graph, or does not build it.
        DeviceError: The GPU's memory is exhausted.
    """
    from generator.plan.build import BuildRequest, build_plan
    from generator.plan.profiles import check_profiles, make_profiles

    start = time.monotonic()
    profiles = make_profiles(artifact.onnx, spec.profile_batches())
    check_profiles(artifact.onnx, profiles, max_batch_size=spec.batch.max)
    request = BuildRequest(
        onnx=artifact.onnx,
        precision=spec.precision,
        profiles=profiles,
        max_batch_size=spec.batch.max,
        options=spec.plan,
        command=command,
        keep=artifact.keep,
    )
    doing = partial(Doing, step=f"building the plan of {spec.name}")
    plan = build_plan(request, path, on_progress=lambda phase, done: on_event(doing(part=phase, fraction=done)))
    passport = plan.passport
    detail = (
        f"{spec.classifier_name}  {passport.plan_bytes / 1e6:.1f} MB plan, TensorRT {passport.tensorrt}, "
        f"{passport.precision}, timing cache {passport.timing_cache}"
    )
    on_event(Done(step="built", detail=detail, seconds=time.monotonic() - start))
    notes = artifact.notes
    if (largest := max(one.max for one in spec.profile_batches())) > spec.batch.max:
        more = f"a profile reaches {largest} images, which takes memory for nothing: batch.max is {spec.batch.max}"
        notes = (*notes, more)
    return replace(artifact, passport=passport, notes=notes)
