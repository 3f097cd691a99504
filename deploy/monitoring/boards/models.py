"""The dashboard about models: does Triton keep up, and do the models still see what they were validated on?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.monitoring.boards.frame import frame, row, triton_jobs
from deploy.monitoring.boards.panels import AMBER, BLUE, GREEN, RED, Query, distribution, number, over_time, rows_of
from workers.messages import LABELS

UID = "mristream-models"
JOB = 'job=~"$job"'
TRITON = 'job=~"$triton_job"'
CLASS_COLORS: dict[str, str] = dict(zip(LABELS, (RED, AMBER, "purple", GREEN, BLUE), strict=True))
ONLY_SOME = "Where Triton has them: a cache, GPUs"
# What the population stability index is called from there.
_DRIFT = [(None, GREEN), (0.1, AMBER), (0.25, RED)]


def models() -> dashboard.Dashboard:
    """All of it."""
    board = frame(UID, "mristream: models", "Does Triton keep up, and are the models still right?")
    board.with_variable(triton_jobs())
    _served(board)
    _triton(board)
    _said(board)
    _shown(board)
    _elsewhere(board)
    return board


def _served(board: dashboard.Dashboard) -> None:
    row(
        board,
        "What is served?",
        rows_of(
            "Models in use",
            "What makes results now, as workers have it from Triton. Two versions of one model: an update is under way.",
            Query(f"count by (model, version, digest) (mristream_model_info{{{JOB}}})"),
            columns={"model": "model", "version": "version", "digest": "SHA-256", "Value": "workers"},
            width=9,
            height=5,
        ),
        rows_of(
            "mristream",
            "Versions of workers.",
            Query(f"count by (version) (mristream_build_info{{{JOB}}})"),
            columns={"version": "version", "Value": "workers"},
            width=4,
            height=5,
        ),
        number(
            "Triton servers",
            "Servers that answer Prometheus.",
            Query(f"count(up{{{TRITON}}} == 1) or vector(0)"),
            unit="none",
            height=5,
            levels=[(None, RED), (1, GREEN)],
        ),
        number(
            "Images a second",
            "All models together; an image passes the classifier, and if it is a brain MRI the U-Net and its mask.",
            Query(f"sum(rate(nv_inference_count{{{TRITON}}}[$__rate_interval]))"),
            unit="none",
            decimals=1,
            height=5,
        ),
        number(
            "Largest drift",
            "The largest population stability index of any feature: below 0.1 no shift, from 0.25 a large one. From 500 "
            "scans on.",
            Query("max(mristream:drift_psi:avg)"),
            unit="none",
            decimals=2,
            height=5,
            width=3,
            levels=_DRIFT,
            none="too few scans",
        ),
        number(
            "Reference fits",
            "Whether the reference for drift was made with the models in use.",
            Query(f"min(mristream_drift_reference_fits{{{JOB}}})"),
            unit="bool_yes_no",
            width=2,
            height=5,
            levels=[(None, RED), (1, GREEN)],
        ),
    )


def _triton(board: dashboard.Dashboard) -> None:
    per_request = (
        f"sum by (model) (rate(nv_inference_{{what}}_duration_us{{{{{TRITON}}}}}[$__rate_interval])) / 1e6"
        f" / (sum by (model) (rate(nv_inference_request_success{{{{{TRITON}}}}}[$__rate_interval])) > 0)"
    )
    row(
        board,
        "Triton",
        over_time(
            "Images a second",
            "tumor_segmentation is the ensemble of tumor_unet and mask_postprocess.",
            Query(f"sum by (model) (rate(nv_inference_count{{{TRITON}}}[$__rate_interval]))", "{{model}}"),
            unit="none",
        ),
        over_time(
            "Waiting in the queue, for a request",
            "Mean of `nv_inference_queue_duration_us`. The ensemble itself has no queue.",
            Query(per_request.format(what="queue"), "{{model}}"),
            unit="s",
        ),
        over_time(
            "Computing, for a request",
            "Mean of `nv_inference_compute_infer_duration_us`: the model's time for the batch that the request is in. That of "
            "the ensemble is the sum of its models'.",
            Query(per_request.format(what="compute_infer"), "{{model}}"),
            unit="s",
        ),
        over_time(
            "Images in a batch",
            "Mean of what one execution takes in. Full batches use a GPU well; at most 64.",
            Query(
                f"sum by (model) (rate(nv_inference_count{{{TRITON}}}[$__rate_interval]))"
                f" / (sum by (model) (rate(nv_inference_exec_count{{{TRITON}}}[$__rate_interval])) > 0)",
                "{{model}}",
            ),
            unit="none",
        ),
        over_time(
            "Requests that wait",
            "`nv_inference_pending_request_count` at this moment.",
            Query(f"sum by (model) (nv_inference_pending_request_count{{{TRITON}}})", "{{model}}"),
            unit="none",
            width=8,
        ),
        over_time(
            "Failed requests a minute",
            "Of all models, by reason. The worker waits and repeats, or splits the batch until the culprit stands alone. Requests "
            "that a full queue turns away are counted by workers only: calls that failed.",
            Query(
                f"sum by (reason) (rate(nv_inference_request_failure{{{TRITON}}}[$__rate_interval])) * 60", "{{reason}}"
            ),
            unit="none",
            width=8,
        ),
        over_time(
            "Triton's machine",
            "Cores and memory in use, of all that the machine has.",
            Query(f"nv_cpu_utilization{{{TRITON}}}", "cores"),
            Query(f"nv_cpu_memory_used_bytes{{{TRITON}}} / nv_cpu_memory_total_bytes{{{TRITON}}}", "memory"),
            unit="percentunit",
            width=8,
            most=1,
        ),
    )


def _said(board: dashboard.Dashboard) -> None:
    row(
        board,
        "What do the models say, and has it changed?",
        over_time(
            "Classes",
            "Likeliest class of each scan that was classified. Replayed history is left out here and below.",
            Query(f"sum by (class) (rate(mristream_predictions_total{{{JOB}}}[5m]))", "{{class}}"),
            unit="none",
            width=8,
            stacked=True,
            shares=True,
            colors=CLASS_COLORS,
        ),
        over_time(
            "For a person to look at",
            "Over an hour: the gate is unsure; the class says tumour and the mask is empty, or the reverse.",
            Query("mristream:scans_uncertain:ratio_rate1h", "uncertain"),
            Query("mristream:class_mask_disagree:ratio_rate1h", "class and mask disagree"),
            unit="percentunit",
            width=8,
            lines_at=[(None, GREEN), (0.05, AMBER)],
        ),
        over_time(
            "Drift from the reference",
            "Population stability index of each feature, mean of workers: from 0.1 a shift, from 0.25 a large one. Starts at "
            "500 scans.",
            Query("mristream:drift_psi:avg", "{{feature}}"),
            unit="none",
            width=8,
            lines_at=_DRIFT,
            none="too few scans",
        ),
    )


def _shown(board: dashboard.Dashboard) -> None:
    row(
        board,
        "How are they spread? Scans of the time shown, by upper bound",
        distribution(
            "Tumour, share of the slice",
            "Of segmented scans; the bin 0 has those with an empty mask.",
            "mristream_mask_area_ratio",
        ),
        distribution(
            "Surest tumour pixel",
            "Highest tumour probability of any pixel; the mask is from 0.4.",
            "mristream_mask_confidence_ratio",
        ),
        distribution(
            "Probability: no brain MRI",
            "The gate: from 0.3 uncertain, from 0.7 no brain MRI.",
            "mristream_gate_probability_ratio",
        ),
        distribution("Brightness", "Mean of the pixels, as share of white.", "mristream_image_brightness_ratio"),
        distribution(
            "Contrast", "Standard deviation of the pixels, as share of white.", "mristream_image_contrast_ratio"
        ),
        over_time(
            "Scans that drift is computed of",
            "The last ones of each worker, on average: `monitoring.drift_scans` at most, 500 at least.",
            Query(f"avg by (feature) (mristream_drift_scans{{{JOB}}})", "{{feature}}"),
            unit="none",
            width=4,
            lines_at=[(None, RED), (500, GREEN)],
        ),
    )


def _elsewhere(board: dashboard.Dashboard) -> None:
    gpu = "{{instance}} {{gpu_uuid}}"
    row(
        board,
        ONLY_SOME,
        over_time(
            "Answers from Triton's cache",
            "Share of requests. The shipped models use no cache, as scans do not come twice.",
            Query(
                f"sum by (model) (rate(nv_cache_num_hits_per_model{{{TRITON}}}[$__rate_interval]))"
                f" / (sum by (model) (rate(nv_inference_request_success{{{TRITON}}}[$__rate_interval])) > 0)",
                "{{model}}",
            ),
            unit="percentunit",
            none="no cache",
        ),
        over_time(
            "In use",
            "Share of the time in which the GPU did something.",
            Query(f"nv_gpu_utilization{{{TRITON}}}", gpu),
            unit="percentunit",
            most=1,
            width=6,
            none="no GPU",
        ),
        over_time(
            "Memory in use",
            "Share of the GPU's memory. The alert is at 95 %.",
            Query(f"nv_gpu_memory_used_bytes{{{TRITON}}} / nv_gpu_memory_total_bytes{{{TRITON}}}", gpu),
            unit="percentunit",
            most=1,
            width=6,
            lines_at=[(None, GREEN), (0.95, RED)],
            none="no GPU",
        ),
        over_time(
            "Power",
            "Watts; a GPU at its limit slows down.",
            Query(f"nv_gpu_power_usage{{{TRITON}}}", gpu),
            Query(f"nv_gpu_power_limit{{{TRITON}}}", f"{gpu} limit"),
            unit="watt",
            width=6,
            none="no GPU",
        ),
    )
