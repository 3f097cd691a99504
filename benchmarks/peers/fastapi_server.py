"""The model server of `fastapi_loop`: both models in one process, behind one POST of several files."""

from __future__ import annotations

import base64
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, UploadFile

from benchmarks.peers.job import Job
from benchmarks.peers.scans import Answer, Models

job = Job.given()
models = Models(job.not_brain_from, job.uncertain_from)
app = FastAPI()


@app.get("/health")
def health() -> str:
    """Answers when the models are loaded."""
    return "ready"


@app.post("/scans", response_model=None)
def answer(files: list[UploadFile]) -> list[dict[str, Any]]:
    """What the models say of each file. Not `async`, so that FastAPI runs it on a thread and takes further requests."""
    return [_shown(each) for each in models.answer([file.file.read() for file in files])]


def _shown(each: Answer) -> dict[str, Any]:
    return asdict(each) | {"mask": each.mask and base64.b64encode(each.mask).decode()}
