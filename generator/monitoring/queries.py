"""PromQL that rules and dashboard share."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def quote(text: str) -> str:
    """Return `text` as a PromQL string, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def match(label: str, values: Sequence[str]) -> str:
    """Return the matcher for one of `values`, each as it is written."""
    if len(values) == 1:
        return f"{label}={quote(values[0])}"
    return f"{label}=~{quote('|'.join(map(re.escape, values)))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """PromQL about the series that `matchers` choose, such as `job="triton"`; rates are taken over `window`.

    Sums are by job and model, unless another `by` is given. Where nothing was asked a share or a mean is NaN, which no
    threshold is compared with.
    """

    matchers: str
    window: str

    def select(self, metric: str, *more: str) -> str:
        """Return the series of a metric."""
        return f"{metric}{{{', '.join([self.matchers, *more])}}}"

    def rate(self, metric: str, *more: str, by: str = "job, model") -> str:
        """Return how much a counter grows in a second, of all servers together."""
        return f"sum by ({by}) (rate({self.select(metric, *more)}[{self.window}]))"

    def answered(self, *more: str) -> str:
        """Return the requests that were answered in a second."""
        return self.rate("nv_inference_request_success", *more)

    def ensemble_failures(self, *more: str) -> str:
        """Return the requests that ensembles refused in a second: they count each twice, for the member and again."""
        return f"{self.rate('nv_inference_request_failure', *more)} / 2"

    def failures(self, *more: str) -> str:
        """Return the requests that models failed in a second by reason, without those that clients cancelled."""
        return self.rate("nv_inference_request_failure", *more, 'reason!="CANCELED"', by="job, model, reason")

    def ensemble_failure_share(self, *more: str) -> str:
        """Return the share of requests that ensembles refused."""
        failed = self.ensemble_failures(*more)
        return f"{failed} / ({self.answered(*more)} + {failed})"

    def failure_share(self, *more: str) -> str:
        """Return the share of requests that models failed by reason."""
        failed = self.rate("nv_inference_request_failure", *more, 'reason!="CANCELED"')
        return f"{self.failures(*more)} / on (job, model) group_left () ({self.answered(*more)} + {failed})"

    def seconds(self, duration: str, *more: str) -> str:
        """Return the mean of a duration, such as `queue`, for a request that was answered."""
        return f"{self.rate(f'nv_inference_{duration}_duration_us', *more)} / {self.answered(*more)} / 1e6"

    def batch_size(self, *more: str) -> str:
        """Return the mean number of images in an execution."""
        return f"{self.rate('nv_inference_count', *more)} / {self.rate('nv_inference_exec_count', *more)}"

    def used_share(self, kind: str) -> str:
        """Return the used share of a memory, such as `gpu_memory`."""
        return f"{self.select(f'nv_{kind}_used_bytes')} / {self.select(f'nv_{kind}_total_bytes')}"
