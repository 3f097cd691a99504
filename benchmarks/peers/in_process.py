"""The upper limit: a Kafka loop with the models in its own process, and nothing between them.

No server, no copies from process to process, no retries. Decoding, storing and publishing of one batch go on while the
models compute others, as numpy, simplejpeg, OpenVINO and librdkafka let go of the interpreter's lock.
"""

from __future__ import annotations

from benchmarks.peers import kafka_loop
from benchmarks.peers.job import Job
from benchmarks.peers.scans import Models

if __name__ == "__main__":
    job = Job.given()
    kafka_loop.run(job, Models(job.not_brain_from, job.uncertain_from).answer)
