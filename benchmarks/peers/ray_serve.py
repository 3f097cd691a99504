"""Ray Serve behind a Kafka loop.

Ray Serve and not BentoML, as a loop can call a Ray deployment through its handle: no HTTP, no JSON. It is also the one
with more users and more frequent releases. Set up by its documentation: one replica with the models, blocking work on a
thread, and no HTTP proxy, which nobody would use here. Tuned: a request is a batch, and several are in flight. The loop
has a batch in hand anyway; sent as single requests and put together again by `@serve.batch`, scans cost more core time.
"""

from __future__ import annotations

import asyncio
import os
import tempfile

import ray
from ray import serve

from benchmarks.peers import kafka_loop
from benchmarks.peers.job import Job
from benchmarks.peers.scans import Answer, Models


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Scans:
    """Both models in one replica, which uses every core as Triton's models do."""

    def __init__(self, job: Job) -> None:
        self._models = Models(job.not_brain_from, job.uncertain_from)

    async def __call__(self, files: list[bytes]) -> list[Answer]:
        """What the models say of each file."""
        return await asyncio.to_thread(self._models.answer, files)


def main() -> None:
    """Start Ray, deploy, and work until SIGTERM."""
    job = Job.given()
    # A short path: Ray's sockets lie in it, and their names may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        cores = len(os.sched_getaffinity(0))
        ray.init(num_cpus=cores, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            serve.start(proxy_location="Disabled")
            scans = Scans.options(max_ongoing_requests=job.batches_in_flight)
            handle = serve.run(scans.bind(job), route_prefix=None)

            def answer(files: list[bytes]) -> list[Answer]:
                answers: list[Answer] = handle.remote(files).result()
                return answers

            kafka_loop.run(job, answer)
        finally:
            # Not serve.shutdown(): it asks a cluster that was told to stop when we were.
            ray.shutdown()


if __name__ == "__main__":
    main()
