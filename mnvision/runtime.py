"""What concerns the whole process: settings that the tools make before the first tensor, its cores, its output."""

from __future__ import annotations

import ctypes
import os
import select
import sys

_SPINS = 2000
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def tune_threads() -> bool:
    """Let OpenMP threads that wait for others spin only briefly; call it before torch is imported.

    As soon as anything else runs, a spinning thread holds the core that the thread it waits for needs: beside busy
    processes a training step on two cores was seen to take twenty times as long. Sleeping at once (the policy
    PASSIVE) cures that but costs a quarter of the speed on a quiet machine; some microseconds of spinning cost
    three per cent. What the user set stays.

    Returns:
        Whether it was set here, in time to have an effect.
    """
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return False
    os.environ["GOMP_SPINCOUNT"] = str(_SPINS)
    return True


def tune_allocator() -> bool:
    """Let glibc keep large freed blocks instead of giving each layer's activations back to the kernel.

    On the CPU every layer otherwise maps and unmaps its output, some 400,000 page faults per training step; see
    benchmarks/README.md for what it brings. Values that the user set through ``MALLOC_*_THRESHOLD_`` stay.

    Returns:
        Whether the thresholds were set here.
    """
    if not sys.platform.startswith("linux"):
        return False
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another libc, e.g. musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def reader_left() -> bool:
    """Whether stdout leads nowhere any longer; what is still to be printed is then dropped."""
    watch = select.poll()
    watch.register(1, 0)  # errors and hang-ups are always told
    if not watch.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True
