"""MLServer with its own Kafka reader and a custom runtime.

Set up by its documentation: `kafka_enabled`, adaptive batching (`max_batch_size`, `max_batch_time`), one inference worker
process beside the one that reads and answers. A scan comes as a V2 inference request in JSON with the file in base64, as
the reader takes nothing else, and what is kept and answered is the runtime's affair.

The reader belongs to no consumer group: it begins at the topic's end, commits nothing and takes on whatever comes, so a
restart loses what was waiting or underway. Requests are read one by one into the batcher, which merges them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.job import Job
from benchmarks.peers.scans import MaskFolder, Models
from deploy.local.server import free_ports

MODEL = "scans"
# A batch waits at most this long to be filled: 5 ms is below what one scan's U-Net takes on one core.
BATCH_TIME_S = 0.005


class ScanRuntime(MLModel):  # type: ignore[misc]
    """Answers V2 requests with the inputs `file` and `scan_id`, batched, with a JSON result for each scan."""

    async def load(self) -> bool:
        """Load both models."""
        job = Job.given()
        self._models = Models(job.not_brain_from, job.uncertain_from)
        self._masks = MaskFolder(Path(job.masks))
        job.say_ready()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Work on a thread, so that another batch can be taken on meanwhile."""
        inputs = {each.name: each for each in payload.inputs}
        files, scan_ids = Base64Codec.decode_input(inputs["file"]), StringCodec.decode_input(inputs["scan_id"])
        results = await asyncio.to_thread(self._work, files, scan_ids)
        return InferenceResponse(
            model_name=self.name, outputs=[StringCodec.encode_output("result", results, use_bytes=False)]
        )

    def _work(self, files: list[bytes], scan_ids: list[str]) -> list[str]:
        answers = self._models.answer(files)
        paths = self._masks.keep(scan_ids, answers)
        done = zip(scan_ids, answers, paths, strict=True)
        return [answer.result(scan_id, path).decode() for scan_id, answer, path in done]


def configure(folder: Path, job: Job) -> None:
    """Write MLServer's two files of settings."""
    http, grpc, metrics = free_ports(3)
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "kafka_enabled": True,
        "kafka_servers": job.bootstrap_servers,
        "kafka_topic_input": job.scans_topic,
        "kafka_topic_output": job.results_topic,
        # It would log a line for each scan.
        "logging_settings": {"version": 1, "incremental": True, "loggers": {"mlserver": {"level": "WARNING"}}},
    }
    model = {
        "name": MODEL,
        "implementation": "benchmarks.peers.mlserver_kafka.ScanRuntime",
        "max_batch_size": job.batch_scans,
        "max_batch_time": BATCH_TIME_S,
    }
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    home = Path(MODEL)
    home.mkdir(exist_ok=True)
    configure(home, Job.given())
    # What its console script does.
    start = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", MODEL]
    os.execv(sys.executable, start)  # noqa: S606
