"""Names of Triton's metrics, and of their labels, that rules, dashboards and runbooks may use."""

from __future__ import annotations

# A test scrapes them from a real Triton (tests/integration/test_monitoring.py).
TRITON_METRICS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count",
    "nv_cpu_utilization",
    "nv_cpu_memory_total_bytes",
    "nv_cpu_memory_used_bytes",
}
# Of a model that has a response cache, which the shipped ones have not.
TRITON_CACHE_METRICS = {"nv_cache_num_hits_per_model"}
# Only where there is a GPU: as Triton's user guide names them
# (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html).
TRITON_GPU_METRICS = {
    "nv_gpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_power_limit",
    "nv_energy_consumption",
}
TRITON_LABELS = {"model", "version", "reason", "gpu_uuid"}
