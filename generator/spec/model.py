"""What the user asks for: `ModelSpec`, one model to serve. Nothing here imports torch or reads a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from generator.errors import SpecError
from generator.source import SOURCES
from generator.spec.detection import DetectionOptions  # noqa: TC001 - pydantic reads the annotations
from generator.spec.per_member import config_model, instances_model, keep_own
from generator.spec.plan import BatchProfile, PlanOptions
from generator.spec.recipe import Edge, RecipeSpec
from generator.spec.rules import CHECKPOINT_SUFFIXES, disagreements
from generator.spec.serving import QueueOptions, RateLimiter  # noqa: TC001 - pydantic reads the annotations
from generator.task import TASKS, Role, ServingLayout, find_roles

Target = Literal["auto", "onnxruntime", "tensorrt-8.6", "tensorrt-10", "tensorrt-11"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "as-is"]
Activation = Literal["auto", "softmax", "sigmoid", "none"]
Decode = Literal["auto", "cpu", "gpu"]
Version = Annotated[int, Field(ge=1, le=1_000_000)]

# The families of torchvision's detectors, those that are refused among them; no classifier's name begins so.
_DETECTORS = re.compile(r"(ssd|ssdlite|retinanet|fcos|fasterrcnn|maskrcnn|keypointrcnn)(\d+|_|$)")
DEMO_DETECTOR = "demo-detector"

# Letters that neither a shell, nor a protobuf, nor the Python backend (which refuses shell characters) trips over.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _expand(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111 - a validator gets text


def _name_base(value: Any) -> Any:
    return {"base": value} if isinstance(value, str) else value


FilePath = Annotated[Path, BeforeValidator(_expand)]


class Batch(BaseModel):
    """How many images one execution takes: a TensorRT optimization profile, and `max` is Triton's max_batch_size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(default=1, ge=1, description="Smallest batch. Anything but 1 would refuse single images.")
    opt: int | None = Field(default=None, ge=1, description="The batch to tune for; default 8, or max if that is less.")
    max: int = Field(default=32, ge=1, le=1024, description="Largest batch; Triton's max_batch_size.")

    @model_validator(mode="after")
    def _ordered(self) -> Batch:
        opt = min(8, self.max) if self.opt is None else self.opt
        if not self.min <= opt <= self.max:
            msg = f"min <= opt <= max was expected, found min {self.min}, opt {opt}, max {self.max}"
            raise ValueError(msg)
        if self.min != 1:
            msg = f"min is {self.min}: requests with fewer images would be refused, 1 was expected"
            raise ValueError(msg)
        return self

    @property
    def optimum(self) -> int:
        """The batch to tune for, with the default filled in."""
        return min(8, self.max) if self.opt is None else self.opt


class ModelSpec(BaseModel):
    """One model to serve: where it comes from, how it is prepared and how Triton runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Name of the ensemble that clients call; its members get it as a prefix.")
    task: str = Field(
        default="classification",
        description="What kind of model it is: `classification` or `detection`, or what was registered. Left out, it "
        "follows from a name of torchvision's.",
    )
    source: str = Field(
        default="torchvision",
        description="Where the model comes from: `torchvision`, `checkpoint`, `timm`, `onnx`, `export`, `factory`, "
        "`pt2`, `huggingface`, `demo`, or what was registered. Left out, it follows from the field that says where the "
        "model is, `architecture`, `weights` and the name. `export` is a graph that was exported before, given in "
        "`onnx`.",
    )
    architecture: str | None = Field(
        default=None,
        description="Name in torchvision's registry of classification models or detectors, or `timm/NAME`, timm's name "
        "with the tag of its weights; default: `name`.",
    )
    weights: str = Field(
        default="default",
        description="`default` or another name of torchvision's weights, `random` (seeded), or a checkpoint file "
        "(.pt, .pth, .pth.tar, .ckpt, .bin, .safetensors) with a state dict for `architecture`, or for the "
        "module of `factory`.",
    )
    factory: str | None = Field(
        default=None,
        description="A function that returns a PyTorch module, `package.module:function` or `file.py:function`. "
        "This imports and runs your code.",
    )
    pt2: FilePath | None = Field(
        default=None,
        description="A .pt2 file, as torch.export.save writes it, with a dynamic batch. Loading one can run code that "
        "is in it.",
    )
    huggingface: Annotated[str, BeforeValidator(_expand)] | None = Field(
        default=None,
        description="A folder that transformers' save_pretrained wrote, or `hf:organisation/name@revision` for a model "
        "of the Hugging Face hub; image classification, weights as safetensors. None of its code is executed.",
    )
    onnx: FilePath | None = Field(default=None, description="An ONNX file with one image input, NCHW or NHWC.")
    raw: bool = Field(
        default=False,
        description="The ONNX file takes UINT8 NHWC pixels and normalises them itself: nothing is put before it.",
    )
    output_tensor: str | None = Field(
        default=None, description="The ONNX file's output with a score per class, where several look like it."
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed for `weights: random`.")
    classes: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Number of classes; default: as many as a checkpoint's last layer or torchvision's weights have.",
    )
    labels: FilePath | Literal["index"] | None = Field(
        default=None,
        description="File with one class name a line, or `index` to use the numbers; default: the weights' own names.",
    )
    recipe: Annotated[RecipeSpec, BeforeValidator(_name_base)] = Field(
        default_factory=RecipeSpec,
        description="Preprocessing, where it differs from the weights' own; a name alone, such as `imagenet`, is its "
        "`base`.",
    )
    image_size: Edge | tuple[Edge, Edge] | None = Field(
        default=None,
        description="Another input size in pixels, one number or [height, width]; resize keeps its proportion to it.",
    )
    target: Target = Field(
        default="auto",
        description="What runs the classifier; `auto` takes the installed TensorRT where there is a GPU, "
        "else onnxruntime on the CPU.",
    )
    precision: Precision = Field(
        default="auto",
        description="Precision of the network; input and output stay UINT8 and FP32. `as-is` takes an ONNX file "
        "unchanged: one that is quantised (Q/DQ) or in FP16, BF16 or FP8 already. `auto` is `as-is` for such a file, "
        "else fp16 for TensorRT and fp32 for onnxruntime. `bf16` is `as-is` for a graph that must be BF16.",
    )
    experimental: bool = Field(
        default=False, description="Without effect: nothing is experimental now. Kept so that older files load."
    )
    keep: tuple[str, ...] = Field(
        default=(),
        description="Nodes that stay in FP32 with fp16 or int8: names, operator types or patterns such as `*head*`.",
    )
    calibration: FilePath | None = Field(
        default=None,
        description="Folder of images (100 or more, as they are served) that int8 scales are taken from; "
        "default: drawn images, which are not your data.",
    )
    plan: PlanOptions = Field(default_factory=PlanOptions, description="How TensorRT builds the plan.")
    activation: Activation = Field(
        default="auto",
        description="What clients get: `softmax` for probabilities that sum to 1, `sigmoid` for one per class, `none` "
        "for the network's own output. Nothing is put behind a network that ends in it already. `auto` follows from "
        "the end of the graph and the source's answers; behind logits it is softmax, with one class sigmoid.",
    )
    detection: DetectionOptions | None = Field(
        default=None, description="With `task: detection`: what the outputs mean and which boxes are answered."
    )
    decode: Decode = Field(
        default="auto",
        description="Where images are decoded, resized and cropped: `cpu` with Pillow, `gpu` with nvImageCodec and "
        "CV-CUDA, which make its pixels but for rounding. `auto` is `gpu` beside a plan where the packages of the "
        "extra `gpu-decode` (driver 580 or later) and a GPU with a JPEG engine are there and the recipe is one that "
        "they do; it is settled when the model is built.",
    )
    layout: ServingLayout | None = Field(
        default=None,
        description="`ensemble`: a model each for preprocessing, network and, with detection, post-processing. "
        "`fused`: one model, each process of which decodes and runs the network. Default: `fused` for a new model that "
        "is decoded on the GPU, else `ensemble`.",
    )
    batch: Batch = Field(default_factory=Batch, description="Batch sizes.")
    instances: SerializeAsAny[BaseModel] = Field(
        default=None,
        validate_default=True,
        description="Instance counts.",
    )
    max_queue_delay_microseconds: int | None = Field(
        default=None, ge=0, le=1_000_000, description="How long the classifier waits for a batch to fill; default 500."
    )
    queue: QueueOptions | None = Field(
        default=None, description="Which requests may wait, how long, and in which order."
    )
    response_cache: bool | None = Field(
        default=None,
        description="Whether the server answers a request whose images it has seen, byte by byte, from memory; for "
        "classifiers with `layout: ensemble`. Default: no.",
    )
    rate_limiter: RateLimiter | None = Field(
        default=None, description="What the network's instances share with those of other models."
    )
    versions: Annotated[int, Field(ge=1, le=100)] | Literal["all"] | Annotated[list[Version], Field(min_length=1)] = (
        Field(default=1, description="Versions to serve: the newest N, `all`, or a list of version numbers.")
    )
    config: SerializeAsAny[BaseModel] = Field(
        default=None,
        validate_default=True,
        description="More for each config.pbtxt, in Triton's own words.",
    )

    def __init__(self, **fields: Any) -> None:
        """Check the fields.

        Raises:
            SpecError: Lists every field that is wrong.
        """
        try:
            super().__init__(**fields)
        except ValidationError as error:
            from generator.spec.file import describe_errors

            raise SpecError(describe_errors(error, "ModelSpec"), hint="docs/spec.md lists every field") from error

    # as pydantic's own: specs inside others are validated without it, so that all their problems come together
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or ".." in value:
            wanted = "letters, digits, '_', '-' and single '.', at most 100, were expected"
            msg = f"{value!r} is not a valid model name: {wanted}"
            raise ValueError(msg)
        return value

    @field_validator("task", "source")
    @classmethod
    def _is_known(cls, value: str, info: ValidationInfo) -> str:
        try:
            TASKS.find(value) if info.field_name == "task" else SOURCES.check(value)
        except LookupError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("layout")
    @classmethod
    def _is_one_of_the_task(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "task" in info.data:  # else refused for itself
            try:
                find_roles(info.data["task"], value)
            except LookupError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("instances", "config", mode="before")
    @classmethod
    def _follows_the_members(cls, value: Any, info: ValidationInfo) -> Any:
        make = instances_model if info.field_name == "instances" else config_model
        if not {"task", "layout"} <= info.data.keys():  # refused for itself: nothing to say here
            return make("classification", None)()
        task, layout = info.data["task"], info.data["layout"]
        given = value.model_dump() if isinstance(value, BaseModel) else value
        if isinstance(given, dict):
            given = keep_own(given, task, layout)
        return make(task, layout).model_validate({} if given is None else given)

    @model_validator(mode="before")
    @classmethod
    def _infer_task(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "task" not in value and value.get("onnx") is None and value.get("factory") is None:
            name = str(value.get("architecture") or value.get("name"))
            value = {**value, "task": "detection"} if name == DEMO_DETECTOR or _DETECTORS.match(name) else value
        if value.get("task") == "detection" and value.get("detection") is None:
            value = {**value, "detection": {}}
        return value

    @model_validator(mode="before")
    @classmethod
    def _infer_source(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "source" in value:
            return value
        weights = value.get("weights")
        if value.get("onnx") is not None:
            inferred = "onnx"
        elif str(value.get("architecture")).startswith("timm/"):
            inferred = "timm"
        elif found := [field for field in ("factory", "pt2", "huggingface") if value.get(field) is not None]:
            inferred = found[0]
        elif isinstance(weights, str) and weights.endswith(CHECKPOINT_SUFFIXES):
            inferred = "checkpoint"
        elif value.get("name") in ("demo", DEMO_DETECTOR) and value.get("architecture") is None:
            inferred = "demo"
        else:
            inferred = "torchvision"
        return {**value, "source": inferred}

    @model_validator(mode="after")
    def _fields_agree(self) -> ModelSpec:
        problems = list(disagreements(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def registry_name(self) -> str:
        """The architecture, with its default filled in."""
        return self.architecture or self.name

    @property
    def weights_file(self) -> Path | None:
        """The checkpoint, where the weights are one."""
        named = self.source != "torchvision" and self.weights.endswith(CHECKPOINT_SUFFIXES)
        return Path(self.weights) if named else None

    @property
    def is_on_hub(self) -> bool:
        """Say whether the model is one of the Hugging Face hub, and not a folder."""
        return self.huggingface is not None and self.huggingface.startswith("hf:")

    @property
    def roles(self) -> tuple[Role, ...]:
        """The members of the served model."""
        return find_roles(self.task, self.layout)

    @property
    def network_name(self) -> str:
        """The member that runs the network."""
        return next(self.name + role.suffix for role in self.roles if role.holds_network)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of all members, in the order of publishing; the last one is what clients call."""
        return tuple(self.name + role.suffix for role in self.roles)

    @property
    def is_tensorrt(self) -> bool:
        """Say whether a plan is served, and not the graph itself."""
        return self.target.startswith("tensorrt")

    @property
    def is_as_is(self) -> bool:
        """Say whether an ONNX file is taken in the precision that it came in."""
        return self.precision in ("as-is", "bf16")

    def as_record(self) -> dict[str, Any]:
        """Return the fields as JSON, but for later ones that say what was the only way before."""
        usual: dict[str, tuple[Any, ...]] = {"decode": ("auto", "cpu")}
        usual |= dict.fromkeys(("layout", "queue", "response_cache", "rate_limiter"), (None,))
        fields = self.model_dump(mode="json")
        return {name: value for name, value in fields.items() if name not in usual or value not in usual[name]}

    def profile_batches(self) -> tuple[BatchProfile, ...]:
        """The optimization profiles: those of the spec, or one from the range of batches."""
        default = BatchProfile(min=self.batch.min, opt=self.batch.optimum, max=self.batch.max)
        return self.plan.profiles or (default,)

    def instance_counts(self) -> dict[str, int]:
        """How many instances each member has, by the role's key, with the defaults filled in."""
        return {
            role.key: getattr(self.instances, role.key)
            or (role.decoder_instances() if self.decode == "gpu" and role.decoder_instances else 0)
            or role.default_instances(self.is_tensorrt)
            for role in self.roles
            if role.default_instances is not None
        }

    def queue_of(self, role: Role) -> QueueOptions | None:
        """What is asked for the queue in front of the member with this role; None where it is Triton's default."""
        if self.queue is None or role.default_instances is None:
            return None
        if role.holds_network:
            return self.queue
        return self.queue.without_sizes(batches=self.decode == "gpu" and role.decoder_instances is not None)

    def queue_delay_microseconds(self) -> int:
        """How long the classifier waits for a batch to fill, with the default filled in."""
        return 500 if self.max_queue_delay_microseconds is None else self.max_queue_delay_microseconds


def name_from_file(path: Path) -> str:
    """Return the name of a model that is known by its file only."""
    return make_name(path.stem)


def make_name(text: str) -> str:
    """Return the text with an underscore for what no name of a model may hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+|\.(?=\.)", "_", text).lstrip("_.-") or text


def usable_cores() -> int:
    """Return how many cores this process may use, which is fewer than the machine's in a container or a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
