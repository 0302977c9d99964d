"""The machine that is timed on: what it is, which cores a process gets, and how busy others keep it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.runtime import usable_cores

ALL = "all"
# Instruction sets that decide between kernels of the runtimes: x86 as /proc/cpuinfo calls them, then Arm.
_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_int8", "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
)
_PACKAGES = ("torch", "torchvision", "numpy", "onnxruntime", "openvino", "ai-edge-litert", "executorch")
_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "LD_PRELOAD"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"),
)


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge times: processor, instruction sets, cores, system, versions, settings.

    Returns:
        Plain strings, numbers, lists and dicts; ``settings`` holds the environment variables that are set.
    """
    packages: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "flags": cpu_flags(),
        "cores": len(usable_cores()),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": packages,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def processor() -> str:
    """Name of the processor, or of the board where only that is known (Raspberry Pi)."""
    for file, key in (("/proc/cpuinfo", "model name"), ("/proc/cpuinfo", "Model")):
        if (found := _field(Path(file), key)) is not None:
            return found
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Instruction sets that matter here, in a fixed order; empty where the system does not tell."""
    text = _field(Path("/proc/cpuinfo"), "flags") or _field(Path("/proc/cpuinfo"), "Features") or ""
    present = set(text.split())
    return [flag for flag in _FLAGS if flag in present]


def _field(path: Path, key: str) -> str | None:
    if not path.is_file():
        return None
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def thread_counts(given: Sequence[Any], cores: int) -> list[int]:
    """Thread counts as numbers, each once, in the order given.

    Args:
        given: Whole numbers, or "all" for as many as there are cores.
        cores: How many cores there are.

    Raises:
        UserError: None is given, or one is no number, below 1, or above the cores.
    """
    counts: list[int] = []
    for word in given:
        if word != ALL and (isinstance(word, bool) or not isinstance(word, int) or word < 1):
            raise UserError(f"threads={word}: give whole numbers from 1 to {cores}, or all")
        count = cores if word == ALL else int(word)
        if count > cores:
            raise UserError(f"threads={count}: this process may use {cores} cores; give at most that many, or all")
        counts.append(count)
    if not counts:
        raise UserError("threads=[]: give at least one, e.g. threads=[1,all]")
    return list(dict.fromkeys(counts))


def pin(threads: int) -> list[int]:
    """Keep this process on as many cores as it has threads, so that no runtime can take more.

    Cores that share no physical core come first. Does nothing where the system cannot (macOS, Windows).

    Returns:
        The cores.
    """
    chosen = spread_cores(usable_cores(), _siblings)[:threads]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)
    return chosen


def spread_cores(cores: Sequence[int], siblings: Any) -> list[int]:
    """Cores in an order that takes one of each physical core before the second of any.

    Args:
        cores: Their numbers.
        siblings: Number -> what all cores of one physical core have in common.
    """
    seen: dict[Any, int] = {}
    ranked = []
    for core in cores:
        group = siblings(core)
        seen[group] = seen.get(group, 0) + 1
        ranked.append((seen[group], core))
    return [core for _, core in sorted(ranked)]


def _siblings(core: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return path.read_text().strip() if path.is_file() else str(core)


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started; None outside Linux."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def peak_memory_mb() -> float | None:
    """The most memory that this process has had resident so far, in MB of 10^6 bytes; None where unknown.

    Linux counts it for the program itself (VmHWM); ``getrusage`` would start with the size of the process that
    started it.
    """
    peak = _field(Path("/proc/self/status"), "VmHWM")
    if peak is not None:
        return int(peak.split()[0]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6
