"""Measured time of trunk, heads, the joint model and single models of its heads, in turn in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mnvision.errors import UserError
from mnvision.latency.worker import time_block, warm_up
from mnvision.multitask import MultiTaskModel

ROUNDS = 10


def time_parts(
    model: MultiTaskModel, seconds: float = 1.0, threads: int = 1, report: Callable[[str], None] = lambda _: None
) -> dict[str, float]:
    """Milliseconds for one picture on the CPU, from pixels to decoded numbers, suppression of boxes included.

    Everything is timed in turn, round after round, so that a busy moment hits all alike; medians over all rounds. A
    head's time is that of its own layers and decoding, given the trunk's maps. Pictures are noise.

    Args:
        model: Put into eval mode and into the memory order in which it is used.
        seconds: Of measured calls per row, over all rounds.
        threads: Of torch.
        report: Is told how far it is.

    Returns:
        By :func:`~mnvision.cost_multitask.time_key`; "joint", "singles", "trunk <heads>", "head <name>" and
        "single <name>".

    Raises:
        UserError: A number out of range.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 3600:
        raise UserError(f"seconds={seconds}: give a number above 0")
    if type(threads) is not int or threads < 1:
        raise UserError(f"threads={threads}: give a whole number of at least 1")
    model.eval().to(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            calls = _calls(model)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for call in calls.values():
                warm_up(call)
            for number in range(ROUNDS):
                report(f"round {number + 1} of {ROUNDS}")
                for name, call in calls.items():
                    times[name] += time_block(call, seconds / ROUNDS)["times_ms"]
    finally:
        torch.set_num_threads(before)
    middle = {name: statistics.median(values) for name, values in times.items()}
    return middle | {"singles": sum(middle[f"single {name}"] for name in model.names)}


def _calls(model: MultiTaskModel) -> Mapping[str, Callable[[], Any]]:
    """What is timed, by its key."""
    passes = [(_noise(resolution), names) for resolution, names in model.passes()]
    calls: dict[str, Callable[[], Any]] = {"joint": lambda: [model.predict(*one) for one in passes]}
    for images, names in passes:

        def trunk(images: Tensor = images, names: list[str] = names) -> Any:
            return model.maps(images, names)

        calls[f"trunk {' + '.join(names)}"] = trunk
        maps = model.maps(images, names)
        for name in names:
            part = model.part(name)

            def head(part: Any = part, given: Any = maps[name]) -> Any:
                return part.finish(part.answer(given))

            def single(part: Any = part, images: Tensor = images) -> Any:
                return part.predict(images)

            calls |= {f"head {name}": head, f"single {name}": single}
    return calls


def _noise(resolution: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, *resolution, 3), dtype=torch.uint8, generator=generator)
    return noise.permute(0, 3, 1, 2)  # the memory order that pictures have
