"""Kills everything, again and again, and then reads the history: is there one result for each scan, its mask before it?

    make chaos KILLS=1000

The parts, from the outside in: `__main__` (the command), `run` (one run from start to verdict), `stack` (real servers,
supervised workers, proxies between them), `faults` (the seeded schedule), `load` (scans with known results), `watch`
(what a reader sees), `history` (the checker, pure functions) and `report`. `worker` is a worker that dies at a chosen
step.
"""
