"""Every metric that rules and dashboard name. tests/test_monitoring.py asks a real server for Triton's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["Triton", "Triton, with a GPU", "the canary", "Prometheus", "blackbox exporter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric, the labels that its exporter gives it (Prometheus adds `job` and `instance`), and who exports it."""

    name: str
    labels: tuple[str, ...] = ()
    source: Source = "Triton"
    about: str


def _of_model(name: str, about: str, *labels: str) -> Metric:
    return Metric(name=name, labels=("model", "version", *labels), about=about)


def _of_gpu(name: str, about: str) -> Metric:
    return Metric(name=name, labels=("gpu_uuid",), source="Triton, with a GPU", about=about)


def _of_canary(name: str, about: str, *labels: str) -> Metric:
    return Metric(name=name, labels=("model", *labels), source="the canary", about=about)


METRICS = (
    _of_model("nv_inference_request_success", "requests answered; those of the warm-up count, too"),
    _of_model("nv_inference_request_failure", "requests refused; an ensemble counts each twice, as OTHER", "reason"),
    _of_model("nv_inference_count", "images"),
    _of_model("nv_inference_exec_count", "executions, each of one batch"),
    _of_model("nv_inference_request_duration_us", "time of the requests answered, together"),
    _of_model("nv_inference_queue_duration_us", "of that, waiting in front of the model"),
    _of_model("nv_inference_compute_input_duration_us", "of that, inputs put in place"),
    _of_model("nv_inference_compute_infer_duration_us", "of that, computing"),
    _of_model("nv_inference_compute_output_duration_us", "of that, outputs fetched"),
    _of_model("nv_inference_pending_request_count", "requests that wait; always 0 for an ensemble"),
    Metric(name="nv_pinned_memory_pool_used_bytes", about="pinned memory that copies to GPUs take"),
    Metric(name="nv_pinned_memory_pool_total_bytes", about="the pool; 0 without a GPU"),
    Metric(name="nv_cpu_utilization", about="of all cores of the machine, 0 to 1"),
    Metric(name="nv_cpu_memory_used_bytes", about="memory of the machine in use"),
    Metric(name="nv_cpu_memory_total_bytes", about="memory of the machine"),
    _of_gpu("nv_gpu_utilization", "0 to 1"),
    _of_gpu("nv_gpu_memory_used_bytes", "memory in use, by whichever program"),
    _of_gpu("nv_gpu_memory_total_bytes", "memory of the GPU"),
    _of_gpu("nv_gpu_power_usage", "watts"),
    _of_gpu("nv_energy_consumption", "joules since the server started"),
    _of_canary("trtgen_canary_up", "1 if the model was asked and answered"),
    _of_canary("trtgen_canary_agreement", "share of the images whose answer agrees with the proved one"),
    _of_canary("trtgen_canary_proved", "1 if the answers are within the gate's limits"),
    _of_canary("trtgen_canary_last_run_timestamp_seconds", "when it asked last"),
    _of_canary("trtgen_canary_duration_seconds", "how long that took"),
    _of_canary("trtgen_release_info", "1; its labels say what the server is compared with", "release", "version"),
    Metric(name="up", source="Prometheus", about="1 if the target was scraped"),
    Metric(name="probe_success", source="blackbox exporter", about="1 if /v2/health/ready answered 200"),
)
