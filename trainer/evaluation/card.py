"""The model card (Mitchell et al. 2019): what the models are, what they are for, and how good they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint import Checkpoint
from trainer.evaluation.report import CONVENTIONS, Section, markdown
from trainer.operating_point import MASK_THRESHOLD
from trainer.repository import MODELS, best_file, served


def model_card(sections: Sequence[Section], repository: Path, checkpoint: Path, about: Path) -> str:
    """Markdown: figures from `sections`, files and digests from the model repository, training from the checkpoint, and
    from `about` what no program can know: intended use, limits, data and their licences."""
    trained = Checkpoint.load(checkpoint)
    stages = "; ".join(
        f"{stage['epochs']} epochs at {stage['side']} × {stage['side']} (peak learning rate {stage['peak_learning_rate']:g})"
        for stage in trained.training["stages"]
    )
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
        f"Encoder `{trained.model.encoder}`, decoder channels {', '.join(map(str, trained.model.decoder))}, class head with "
        f"temperature {trained.temperature:g}. Masks at threshold {MASK_THRESHOLD:.2f}. Trained {stages}; seed "
        f"{trained.training['seed']}.",
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
