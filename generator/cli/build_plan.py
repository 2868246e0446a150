"""`trtgen build-plan`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from generator.cli.console import show_progress, step
from generator.events import Doing

if TYPE_CHECKING:
    from generator.graph.model import OnnxModel
    from generator.tensor import Profile

TENSORRT, ELSEWHERE = "TensorRT", "Other machines"  # panels of --help
DEFAULT_MAX_BATCH = 32
DEFAULT_OPT_BATCH = 8

GraphArgument = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="The graph.", exists=True, dir_okay=False)]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        metavar="MIN,OPT,MAX",
        help="Batch sizes of an optimization profile; may be given several times. [default: 1,8,32]",
    ),
]
PlanBatchOption = Annotated[
    int | None,
    typer.Option("--max-batch", min=1, help="Every batch up to this one needs a profile. [default: the profiles' end]"),
]


def build_plan(
    model: GraphArgument,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The plan. [default: FILE.plan]")
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8", "fp8"] | None,
        typer.Option(help="Precision of the plan; from TensorRT 10 on the graph's own. [default: the graph's]"),
    ] = None,
    profile: ProfileOption = None,
    max_batch: PlanBatchOption = None,
    tf32: Annotated[
        bool, typer.Option("--tf32/--no-tf32", help="Let FP32 layers use TF32.", rich_help_panel=TENSORRT)
    ] = True,
    workspace_mib: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="MIB", help="Most GPU memory for a layer's scratch space.", rich_help_panel=TENSORRT
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0, max=5, help="0 builds fast, 5 searches longest. [default: TensorRT's, 3]", rich_help_panel=TENSORRT
        ),
    ] = None,
    hardware_compatibility: Annotated[
        Literal["none", "ampere-plus", "same-compute-capability"],
        typer.Option(
            metavar="GPUS",
            help="Other GPUs that the plan is to run on, slower: `none`, `ampere-plus` or `same-compute-capability`.",
            rich_help_panel=ELSEWHERE,
        ),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", help="Let later versions of TensorRT load the plan.", rich_help_panel=ELSEWHERE
        ),
    ] = False,
    timing_cache: Annotated[
        bool,
        typer.Option(
            "--timing-cache/--no-timing-cache",
            help="Keep measured kernel times between builds.",
            rich_help_panel=TENSORRT,
        ),
    ] = True,
) -> None:
    """Build a TensorRT plan of an ONNX file on this machine's GPU.

    Example: trtgen build-plan exported/resnet50/model.onnx --profile 1,8,32
    """
    from generator.graph.model import read_onnx
    from generator.plan import build
    from generator.plan.passport import passport_path
    from generator.spec.plan import PlanOptions

    onnx = read_onnx(model)
    profiles, largest = read_profiles(onnx, profile or [], max_batch)
    request = build.BuildRequest(
        onnx=onnx,
        precision=precision or onnx.precision,
        profiles=profiles,
        max_batch_size=largest,
        options=PlanOptions(
            tf32=tf32,
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            hardware_compatibility=hardware_compatibility,
            version_compatible=version_compatible,
            timing_cache=timing_cache,
        ),
        command=shlex.join(["trtgen", *sys.argv[1:]]),
    )
    path = output or model.with_suffix(".plan")
    with show_progress() as progress:
        doing = partial(Doing, step=f"building {path.name}")
        plan = build.build_plan(
            request, path, on_progress=lambda phase, done: progress.draw(doing(part=phase, fraction=done))
        )
    facts = plan.passport
    detail = f"{facts.precision}, {facts.plan_bytes / 1e6:.1f} MB, TensorRT {facts.tensorrt}, {facts.gpu['name']}"
    step("built", detail=f"{detail}, timing cache {facts.timing_cache}", seconds=facts.build_seconds)
    print(plan.path)
    print(passport_path(plan.path))


def read_profiles(onnx: OnnxModel, texts: list[str], max_batch: int | None) -> tuple[tuple[Profile, ...], int | None]:
    """Return the profiles that the command line asks for, and the largest batch; none for a graph of fixed shape."""
    from pydantic import ValidationError

    from generator.plan.profiles import make_profiles
    from generator.spec.plan import BatchProfile

    if not texts and max_batch is None and min(onnx.input.shape, default=0) >= 0:
        return (), None
    batches = []
    for text in texts:
        try:
            low, opt, high = (int(part) for part in text.split(","))
            batches.append(BatchProfile(min=low, opt=opt, max=high))
        except ValidationError as error:
            raise typer.BadParameter(f"--profile {text}: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise typer.BadParameter(f"--profile {text} is not MIN,OPT,MAX, such as 1,8,32") from error
    largest = max_batch or max((one.max for one in batches), default=DEFAULT_MAX_BATCH)
    if not batches:
        try:
            batches = [BatchProfile(min=1, opt=min(DEFAULT_OPT_BATCH, largest), max=largest)]
        except ValidationError as error:
            raise typer.BadParameter(f"--max-batch {largest}: {error.errors()[0]['msg']}") from error
    return make_profiles(onnx, batches), largest
