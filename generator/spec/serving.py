"""How Triton queues, caches and shares: the spec's `queue` and `rate_limiter`, whose words are Triton's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=1_000_000)]
ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}$")]


class QueueOptions(BaseModel):
    """Which requests may wait in front of a member, how long, and in which order they are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_size: Count | None = Field(
        default=None,
        description="Most requests that wait in front of each member; one more is refused at once. With priorities: "
        "for each of them. Default: any number.",
    )
    timeout_microseconds: Annotated[int, Field(ge=1, le=3_600_000_000)] | None = Field(
        default=None, description="Longest wait in front of each member. Default: any time."
    )
    timeout_action: Literal["reject", "delay"] | None = Field(
        default=None,
        description="What becomes of a request that has waited longer: `reject`, the default, refuses it, `delay` "
        "answers it after those that have not.",
    )
    priority_levels: Annotated[int, Field(ge=2, le=100)] | None = Field(
        default=None, description="Number of priorities; a request with 1 is taken before all others."
    )
    default_priority: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="Priority of a request that names none; default: the last."
    )
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        default=(),
        description="Batch sizes that are run as soon as they are reached, before `max_queue_delay_microseconds` is "
        "over; for the member that runs the network. Default: the largest.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> QueueOptions:
        if self.timeout_action and self.timeout_microseconds is None:
            msg = "timeout_action goes with timeout_microseconds only"
            raise ValueError(msg)
        if self.default_priority and self.default_priority > (self.priority_levels or 0):
            levels = self.priority_levels or "not given"
            msg = f"default_priority is {self.default_priority}, which is above priority_levels ({levels})"
            raise ValueError(msg)
        return self

    def without_sizes(self, *, batches: bool) -> QueueOptions | None:
        """Return the same for a member without a network, None where it needs no queue of its own.

        Unless it `batches`, it takes each request by itself, as it does without a queue.
        """
        if not any((self.max_size, self.timeout_microseconds, self.priority_levels)):
            return None
        return self.model_copy(update={"preferred_batch_sizes": () if batches else (1,)})


class RateLimiter(BaseModel):
    """What an execution of the network takes of the server, and gives back when it ends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resources: Annotated[dict[ResourceName, Count], Field(min_length=1)] = Field(
        description="How much of each resource, by names of your own; models that name the same one share it. A server "
        "has as much of it, for each GPU, as the model that takes most."
    )
