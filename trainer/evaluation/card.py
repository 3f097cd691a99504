"""The model card (Mitchell et al. 2019): what the models are, what they are for, and how good they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint import Checkpoint
from trainer.data import DataError
from trainer.evaluation.report import CONVENTIONS, Section, markdown
from trainer.onnx_export import origin_of
from trainer.operating_point import MASK_THRESHOLD
from trainer.repository import FLOAT_MODEL, MODELS, best_file, served

# Of `trainer.onnx_export.Mirror`.
_MIRRORED = {
    "none": "of the slice as it is",
    "all": "of the slice and of its mirror image",
    "alternate": "of the slice for the first network, of its mirror image for the second, and so on in turn",
}


def model_card(sections: Sequence[Section], repository: Path, checkpoints: Sequence[Checkpoint], about: Path) -> str:
    """Markdown: figures from `sections`, files and digests from the model repository, training from the checkpoints,
    and from `about` what no program can know: intended use, limits, data and their licences.

    Raises DataError if the served files say that they were exported from other checkpoints.
    """
    origins = {model: origin_of(repository / model / str(served(repository, model)) / FLOAT_MODEL) for model in MODELS}
    made_from = {digest for origin in origins.values() for digest in origin.get("checkpoints", "").split()}
    if made_from and made_from != {checkpoint.sha256 for checkpoint in checkpoints}:
        raise DataError(
            f"the models that {repository} serves were exported from other checkpoints: {sorted(made_from)}"
        )
    number_of = {checkpoint.sha256: number for number, checkpoint in enumerate(checkpoints, start=1)}
    mirror = origins["tumor_unet"].get("mirror")
    files = [
        f for model in MODELS for f in sorted((repository / model / str(served(repository, model))).glob("*.onnx"))
    ]
    on_cpu = {best_file(repository / model / str(served(repository, model))) for model in MODELS}
    lines = [
        "# Model card: brain_mri_classifier and tumor_unet",
        "",
        "Written by `mristream evaluate --card`; don't edit it, edit `trainer/about.md`.",
        "",
        about.read_text(encoding="utf-8").strip(),
        "",
        "## The models",
        "",
        *(f"{number}. {_network(checkpoint)}" for number, checkpoint in enumerate(checkpoints, start=1)),
        "",
        *(
            f"`{model}` is the mean of {len(members)} network(s): {', '.join(str(number_of[m]) for m in members)}."
            for model, origin in origins.items()
            if (members := origin.get("checkpoints", "").split())
        ),
        f"Masks at threshold {MASK_THRESHOLD:.2f} of the mean probability"
        + (f", {_MIRRORED[mirror]}." if mirror else "."),
        "",
        "| file | SHA-256 | used by |",
        "|---|---|---|",
        *(
            f"| `{file.relative_to(repository)}` | `{hashlib.sha256(file.read_bytes()).hexdigest()}` | "
            f"{'CPUs' if file in on_cpu else 'TensorRT plans'}{' and TensorRT plans' if file in on_cpu and file.name == 'model.onnx' else ''} |"
            for file in files
        ),
        "",
        "## Figures",
        "",
        markdown(sections).removesuffix(CONVENTIONS + "\n").strip(),
        "",
        CONVENTIONS,
    ]
    return "\n".join(lines) + "\n"


def _network(checkpoint: Checkpoint) -> str:
    stages = "; ".join(
        f"{stage['epochs']} epochs at {stage['side']} × {stage['side']} (peak learning rate {stage['peak_learning_rate']:g})"
        for stage in checkpoint.training["stages"]
    )
    model = checkpoint.model
    return (
        f"Encoder `{model.encoder}`, decoder channels {', '.join(map(str, model.decoder))}"
        + (f", class head with temperature {checkpoint.temperature:g}" if "classify" in model.tasks else "")
        + f". Trained {stages}; seed {checkpoint.training['seed']}. Checkpoint with SHA-256 `{checkpoint.sha256}`."
    )
