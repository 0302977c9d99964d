"""SSD and classification training steps on a CUDA device in bfloat16: images/s, and what bounds them.

Times are those of CUDA events around several steps, after a warm-up. A profile of a few more steps divides the
device's time by kind of operation and says how long the device waited for the host. Skipped without CUDA.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

from benchmarks.report import Result, Table, finish, parser, spread
from benchmarks.steps import CLASSIFIER_SIDE, SSD_SIDE, classification_step, detection_step

WARM_UP, PROFILED = 10, 5
KINDS = {
    "convolution": ("convolution", "conv2d", "cudnn_conv"),
    "batch norm": ("batch_norm",),
    "optimizer": ("_foreach", "_fused_sgd", "fused_adam"),
    "matrix product": ("aten::mm", "aten::addmm", "aten::bmm"),
    "sorting, selection": ("sort", "topk", "nonzero", "index", "gather", "scatter", "cumsum", "arg"),
    "copies, casts": ("copy", "memcpy", "memset", "aten::to", "aten::cat"),
}
OTHER = "elementwise, reductions, other"


def kind_of(operation: str) -> str:
    """Kind of an operation of the profiler, by the names that PyTorch gives them."""
    name = operation.lower()
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), OTHER)


def shares(times: Iterable[tuple[str, float]], wall: float) -> dict[str, float]:
    """Device time by kind as shares of the wall time; what is left is the device waiting for the host.

    Args:
        times: Operation and the device time of its own kernels.
        wall: In the same unit.
    """
    found: dict[str, float] = defaultdict(float)
    for operation, duration in times:
        found[kind_of(operation)] += duration / wall
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
    return ordered | {"device idle": max(1 - sum(ordered.values()), 0.0)}


def rates(step: Callable[[], None], batch: int, steps: int, rounds: int) -> list[float]:
    """Images per second in each round, by CUDA events."""
    for _ in range(WARM_UP):
        step()
    found = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            step()
        end.record()
        end.synchronize()
        found.append(1e3 * steps * batch / start.elapsed_time(end))
    return found


def host_milliseconds(step: Callable[[], None]) -> float:
    """How long the host needs to launch a step, without waiting for the device at its end."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(PROFILED):
        step()
    spent = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e3 * spent / PROFILED


def profile(step: Callable[[], None], step_milliseconds: float) -> dict[str, float]:
    """Shares of a step by kind.

    Args:
        step: The step.
        step_milliseconds: Its duration without a profiler, which itself slows the host.
    """
    from torch.profiler import ProfilerActivity

    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    # Kernels are listed once under the operation that launched them and once by themselves.
    operations = [event for event in found.key_averages() if event.device_type.name == "CPU"]
    times = ((event.key, event.self_device_time_total) for event in operations)
    return shares(times, 1e3 * step_milliseconds * PROFILED)


def case(make: Callable[..., Callable[[], None]], batch: int, side: int, given: Any) -> dict[str, Any]:
    """All readings of one step at one batch size."""
    step = make(batch, side, channels_last=True, bf16=True, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    speeds = rates(step, batch, given.steps, given.rounds)
    milliseconds = 1e3 * batch / sorted(speeds)[len(speeds) // 2]
    return {
        "rates": speeds,
        "milliseconds": milliseconds,
        "host": host_milliseconds(step),
        "memory": torch.cuda.max_memory_allocated() / 2**30,
        "shares": profile(step, milliseconds),
    }


def main() -> None:
    """Command line."""
    options = parser("cuda_step", __doc__)
    options.add_argument("--steps", type=int, default=20, help="training steps per round (default 20)")
    options.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256], help="batch sizes")
    given = options.parse_args()
    if not torch.cuda.is_available():
        print("cuda_step: left out, no CUDA device")
        return
    if given.quick:
        given.rounds, given.steps, given.batches = 1, 2, [16]
    torch.backends.cudnn.benchmark = True
    found: dict[str, dict[str, Any]] = {}
    for batch in given.batches:
        found[f"SSD {SSD_SIDE} px, batch {batch}"] = case(detection_step, batch, SSD_SIDE, given)
        name = f"classification {CLASSIFIER_SIDE} px, batch {batch}"
        found[name] = case(classification_step, batch, CLASSIFIER_SIDE, given)
    speeds = [
        [
            name,
            spread(f["rates"], 0),
            f"{f['milliseconds']:.1f}",
            f"{f['host']:.1f}",
            f"{f['memory']:.1f}",
        ]
        for name, f in found.items()
    ]
    kinds = list(dict.fromkeys(kind for f in found.values() for kind in f["shares"]))
    kinds.sort(key=lambda kind: kind == "device idle")
    bounds = [[name, *(f"{f['shares'].get(kind, 0):.0%}" for kind in kinds)] for name, f in found.items()]
    columns = ["bf16 step", "images/s", "ms per step", "host ms per step", "GiB"]
    tables = [
        Table("Speed on CUDA", columns, speeds),
        Table("Shares of the step's time", ["bf16 step", *kinds], bounds),
    ]
    notes = [
        "Host ms is the time to launch a step, with the synchronisations inside it; where it is the whole step, "
        "the host bounds it.",
        "Pictures are on the device already. Operations are counted where their own kernels run.",
    ]
    settings = {"device": torch.cuda.get_device_name(), "steps per round": given.steps, "rounds": given.rounds}
    finish(Result("cuda_step", settings, tables, notes, {"cases": found}), given.output)


if __name__ == "__main__":
    main()
