"""Triton's model configurations: the values that the templates print.

Names, data types and dims of a network come from the plan, or else from the ONNX graph, everything else from the spec.
This is the only place where the batch axis is dropped: with max_batch_size > 0 Triton's `dims` leave it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from generator.plan.choice import PLAN_FILE
from generator.render import render
from generator.spec.config_text import given_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from generator.artifact import Artifact
    from generator.spec.model import ModelSpec
    from generator.spec.serving import QueueOptions, RateLimiter
    from generator.task import Role
    from generator.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfig:
    """An input or output as config.pbtxt states it: `dims` without the batch axis; only inputs have a `format`."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    format: str | None = None
    label_filename: str | None = None

    @classmethod
    def of(cls, tensor: Tensor, *, format: str | None = None, label_filename: str | None = None) -> TensorConfig:  # noqa: A002 - Triton's word
        """Return `tensor` without its batch axis."""
        return cls(
            name=tensor.name,
            data_type=tensor.data_type.triton,
            dims=tensor.shape[1:],
            format=format,
            label_filename=label_filename,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which version directories are loaded: one of the three."""

    latest: int = 1
    all: bool = False
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """A CUDA graph of the plan, launched for batches from `lower_bound` to `batch_size`."""

    batch_size: int
    lower_bound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One member of the ensemble; the maps go from the member's tensor to the ensemble's."""

    model_name: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What every config.pbtxt of ours states.

    `given` is the spec's own text for it, `given_fields` the top-level fields in that: they take the place of ours, but
    for `parameters`, which are added. `queue` and `rate_limiter` are those of the members that run, `response_cache` is
    that of the model that clients call.
    """

    ensemble: str
    name: str
    max_batch_size: int
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    versions: VersionPolicy = field(default_factory=VersionPolicy)
    given: str | None = None
    given_fields: tuple[str, ...] = ()
    queue: QueueOptions | None = None
    rate_limiter: RateLimiter | None = None
    response_cache: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig(ModelConfig):
    """A member that runs the graph or the plan."""

    template: ClassVar[str] = "network/config.pbtxt.j2"

    backend: str
    default_model_filename: str
    instance_kind: str
    instance_count: int
    max_queue_delay_microseconds: int | None
    profiles: tuple[int, ...] = ()
    graphs: tuple[GraphSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedConfig(NetworkConfig):
    """A model that decodes, too: that of a network and what its model.py reads, with a warm-up of its own if any."""

    template: ClassVar[str] = "fused/config.pbtxt.j2"

    parameters: Mapping[str, str]
    comment: str
    warmup_file: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonConfig(ModelConfig):
    """A member of Triton's Python backend; `comment` stands above its parameters.

    With a queue delay, even of 0, requests that wait are run together.
    """

    template: ClassVar[str] = "python/config.pbtxt.j2"

    instance_count: int
    instance_kind: str = "KIND_CPU"
    max_queue_delay_microseconds: int | None = None
    parameters: Mapping[str, str]
    comment: str = ""
    warmup_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig(ModelConfig):
    """What clients call."""

    template: ClassVar[str] = "ensemble/config.pbtxt.j2"

    steps: tuple[Step, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One model of Triton's: its configuration and its files by path, those of its version directory by name."""

    config: NetworkConfig | PythonConfig | EnsembleConfig
    files: Mapping[str, bytes] = field(default_factory=dict)
    version_files: Mapping[str, bytes] = field(default_factory=dict)

    def render(self) -> str:
        """Return the text of config.pbtxt."""
        return render(self.config.template, config=self.config)


def common_fields(spec: ModelSpec, role: Role) -> dict[str, Any]:
    """Return the fields that every configuration has but for its tensors."""
    text = getattr(spec.config, role.key)
    return {
        "ensemble": spec.name,
        "name": spec.name + role.suffix,
        "max_batch_size": spec.batch.max,
        "given": text,
        "given_fields": given_fields(text),
        "queue": spec.queue_of(role),
        "rate_limiter": spec.rate_limiter if role.holds_network else None,
        "response_cache": spec.response_cache if role is spec.roles[-1] else None,
    }


def network_fields(spec: ModelSpec, artifact: Artifact, role: Role) -> dict[str, Any]:
    """Return the fields of the member that runs the network, but for its tensors."""
    return {
        **common_fields(spec, role),
        "versions": _version_policy(spec),
        **_engine(spec, artifact),
        "instance_count": spec.instance_counts()[role.key],
        "max_queue_delay_microseconds": spec.queue_delay_microseconds() if spec.batch.max > 1 else None,
    }


def _engine(spec: ModelSpec, artifact: Artifact) -> dict[str, Any]:
    """Return the fields that depend on what runs the classifier."""
    if artifact.passport is None:
        return {"backend": "onnxruntime", "default_model_filename": "model.onnx", "instance_kind": "KIND_CPU"}
    return {
        "backend": "tensorrt",
        "default_model_filename": PLAN_FILE,
        "instance_kind": "KIND_GPU",
        # each group lists all: requests are not routed by shape, any instance may get any batch
        "profiles": tuple(range(len(artifact.passport.profiles))),
        "graphs": _graphs(graph_sizes(spec)),
    }


def graph_sizes(spec: ModelSpec) -> tuple[int, ...]:
    """Return the batch sizes that get a CUDA graph, sorted.

    Behind decoding on the GPU the network gets pieces of any size up to 32 (`runtime.gpu_images`): each has a graph
    that is at most three rows too large. A launch without one takes 1.6 ms of the process, with one 0.3
    (docs/benchmarks.md).
    """
    if not isinstance(spec.plan.cuda_graphs, bool):
        return tuple(sorted(set(spec.plan.cuda_graphs)))
    most = spec.batch.max
    powers = {size for power in range(11) if (size := 2**power) < most}
    pieces = {*range(12, min(most, 33), 4)} if spec.decode == "gpu" and spec.layout == "fused" else set()
    return tuple(sorted(powers | pieces | {most})) if spec.plan.cuda_graphs else ()


def _graphs(sizes: tuple[int, ...]) -> tuple[GraphSpec, ...]:
    """Return a CUDA graph for each of the sizes.

    A graph also takes the batches below it, padded, where that is up to 8 rows or at most three more: there the
    launches cost more than the rows. Elsewhere only exact sizes use one.
    """
    graphs = []
    for previous, size in zip([0, *sizes], sizes, strict=False):
        graphs.append(GraphSpec(batch_size=size, lower_bound=previous + 1 if size <= max(8, previous + 4) else size))
    return tuple(graphs)


def _version_policy(spec: ModelSpec) -> VersionPolicy:
    if spec.versions == "all":
        return VersionPolicy(all=True)
    if isinstance(spec.versions, list):
        return VersionPolicy(specific=tuple(sorted(set(spec.versions))))
    return VersionPolicy(latest=spec.versions)
