"""mristream beside what a user would pick instead: the same models, images and work, on the same machine, in one run.

    python -m benchmarks.peers [--scans 1000] [--repetitions 5] [--peers mristream fastapi mlserver ray in-process]

The peers: `fastapi_loop` (with `fastapi_server`), `mlserver_kafka`, `ray_serve`, and `in_process` as the upper limit.
`scans` is the work that all of them do, `kafka_loop` the loop of those that bring none, `job` what the runner tells them.
The runner is `__main__`; `contestants` starts and stops what it measures, each in an `environment` of its own.

What mristream does and its peers don't: results and offsets in one transaction (the peers' loop delivers at least once,
MLServer's reader at most once: it has no consumer group), files decoded in child processes that a bad one can't harm,
retries, and results that say which models made them.
"""
