"""The parts of the benchmarks that need no server."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from benchmarks.attribution import Sample, count, table
from benchmarks.backlog import clock_start, rate
from benchmarks.latency import Round, over_rounds
from workers.figures import CoreMs, Highest, Load

# A checkpoint every two seconds, of sixteen results that are written within some ms: eight scans a second.
CHECKPOINTS_S = [2 * checkpoint + result / 1000 for checkpoint in range(1, 6) for result in range(16)]
WORKER = 10


# The rate from a backlog


def test_a_rate_leaves_out_what_was_done_before_its_clock_starts() -> None:
    assert rate(CHECKPOINTS_S) == pytest.approx(8)
    assert rate(CHECKPOINTS_S[::-1]) == pytest.approx(8)


def test_a_rate_may_leave_out_more_than_the_first_checkpoint() -> None:
    slow_start = [0.0, *CHECKPOINTS_S]

    assert clock_start(slow_start, skipped=1) == CHECKPOINTS_S[15]
    assert rate(slow_start, skipped=1) == pytest.approx(8)


def test_a_single_checkpoint_has_no_rate() -> None:
    assert math.isnan(rate(CHECKPOINTS_S[:16]))


# Whose the time is


def ticks(*samples: Sample) -> Counter[tuple[str, str]]:
    return count(iter(samples), {WORKER: "worker"})


def kernel(*symbols: str) -> Sample:
    return Sample(WORKER, "python", tuple((symbol, "[kernel.kallsyms]") for symbol in symbols))


@pytest.mark.parametrize(
    ("stack", "what"),
    [
        (("copy_page", "handle_mm_fault", "exc_page_fault", "asm_exc_page_fault"), "kernel: memory"),
        (("handle_softirqs", "irq_exit_rcu", "sysvec_apic_timer_interrupt"), "kernel: interrupts"),
        (("finish_task_switch.isra.0", "__schedule", "schedule"), "kernel: scheduler"),
        (("mutex_lock", "process_one_work", "worker_thread", "kthread", "ret_from_fork"), "kernel: its own threads"),
        (("copy_from_user", "vfs_write", "__x64_sys_write", "do_syscall_64"), "kernel: files"),
        (("entry_SYSCALL_64_after_hwframe",), "kernel: entry and exit"),
        (("_raw_spin_unlock_irqrestore", "mutex_lock_interruptible"), "unknown"),
        (("clear_page_erms",), "unknown"),
    ],
)
def test_the_kernels_work_has_a_name_only_where_a_symbol_says_it(stack: tuple[str, ...], what: str) -> None:
    assert ticks(kernel(*stack)) == {("worker", what): 1}


def test_what_is_named_is_told_apart_from_what_is_idle_and_from_what_was_never_sampled() -> None:
    idle = [Sample(0, "swapper", (("cpuidle_enter", "[kernel.kallsyms]"),))] * 6
    named, unknown = [kernel("__schedule")] * 3, [kernel("clear_page_erms")]

    first, *_, last = table(ticks(*idle, *named, *unknown), expected=20).splitlines()

    assert first.startswith("10 samples of 20,")
    assert last == "named: 90.00% of the samples, 75.00% of those of busy cores"


# Latency by load


def test_core_ms_by_load_is_the_median_of_the_rounds() -> None:
    def one(worker: float) -> Round:
        computed = CoreMs(worker=worker, decoders=1, kafka=1, triton=1)
        alone = Load(share=0, scans_per_s=1, scans=1, p50_ms=1, p90_ms=1, p99_ms=1, worst_ms=1)
        busy = alone.model_copy(update={"share": 0.5, "core_ms": computed})
        return Round(Highest(scans_per_s=2, core_ms=computed), alone, (busy,))

    alone, (load,) = over_rounds([one(9), one(3), one(4)])

    assert load.core_ms == CoreMs(worker=4, decoders=1, kafka=1, triton=1)
    assert alone.core_ms is None
