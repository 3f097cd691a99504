"""How throughput, memory and start-up grow with workers, partitions, the backlog and the size of scans.

    python -m benchmarks.growth [--axis workers backlog …] [--quick] [--repetitions 3] [--out FOLDER]

Kafka, Triton and the workers are real and share this machine's cores; the models answer at once. For each point a backlog
waits in topics of its own before the workers start; masks go to a folder. Measured are:

- scans/s from the first tenth of the results to the last, by Kafka's timestamps ("-" where that is less than a second);
- core-ms a scan by process, for the same time;
- the peak memory (VmHWM) in MiB of the worker that took most, and the same with its decoders: a sum in which what
  processes share counts several times, and so an upper bound;
- start-up: seconds from starting the workers' processes to the first published result.

All points run in turn, and then again, so that a machine that is busy for a while spoils no point alone. Each axis ends
with a check: the exponent of time a scan and of memory against the axis, over all points and over the last three. A step
that is quadratic in the backlog makes time a scan grow with exponent 1.

On ext4 don't run it within five minutes after many files were deleted: whoever makes files there while the inodes of many
deleted ones are not yet reused computes twice as long for it (`recently_deleted` in the kernel). So masks stay until this
program ends: with all axes in full length some hundred thousand files.
"""
