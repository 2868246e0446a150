"""How a plan is built: the spec's section `plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]


class BatchProfile(BaseModel):
    """One optimization profile: the batch sizes that it covers, and the one its kernels are chosen for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(ge=1, description="Smallest batch of this profile.")
    opt: int = Field(ge=1, description="The batch that kernels are chosen for.")
    max: int = Field(ge=1, le=1024, description="Largest batch of this profile.")

    @model_validator(mode="after")
    def _ordered(self) -> BatchProfile:
        if not self.min <= self.opt <= self.max:
            msg = f"min <= opt <= max was expected, found min {self.min}, opt {self.opt}, max {self.max}"
            raise ValueError(msg)
        return self


class PlanOptions(BaseModel):
    """How TensorRT builds the plan; everything has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profiles: Annotated[tuple[BatchProfile, ...], Field(min_length=1, max_length=8)] | None = Field(
        default=None,
        description="Optimization profiles; together they must cover every batch from 1 to `batch.max`. "
        "Default: one, from `batch`.",
    )
    tf32: bool = Field(default=True, description="Let FP32 layers use TF32, which has a mantissa of 10 bits.")
    workspace_mib: int | None = Field(
        default=None, ge=1, description="Most GPU memory that a layer's scratch space may take, in MiB."
    )
    optimization_level: int | None = Field(
        default=None, ge=0, le=5, description="0 builds fast, 5 searches longest; TensorRT's default is 3."
    )
    hardware_compatibility: HardwareCompatibility = Field(
        default="none",
        description="Other GPUs that the plan is to run on, slower: `ampere-plus` (8.0 and later), "
        "`same-compute-capability` (TensorRT 10 and later).",
    )
    version_compatible: bool = Field(
        default=False,
        description="Let later versions of TensorRT load the plan. It then carries code that they execute: "
        "load only plans that you trust.",
    )
    timing_cache: bool = Field(
        default=True, description="Keep measured kernel times between builds, by GPU, driver, CUDA and TensorRT."
    )
    cuda_graphs: bool | Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)] = Field(
        default=True,
        description="Have Triton launch the plan as a CUDA graph: for the powers of two up to `batch.max`, or for the "
        "batch sizes listed.",
    )


def uncovered_batches(ranges: Iterable[tuple[int, int]], maximum: int) -> str:
    """Return the batch sizes from 1 to `maximum` that none of the `ranges` covers, as in `1, 9-15`; empty if none.

    TensorRT itself would not mind; requests of these sizes would be refused when they come.
    """
    gaps, end = [], 0
    for low, high in [*sorted(ranges), (maximum + 1, maximum + 1)]:
        last = min(low - 1, maximum)
        if last > end:
            gaps.append(str(last) if last == end + 1 else f"{end + 1}-{last}")
        end = max(end, high)
    return ", ".join(gaps)
