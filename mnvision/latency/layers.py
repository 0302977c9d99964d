"""Where a torch model's time goes, layer by layer, beside what each layer computes and holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from mnvision.cost import Cost
from mnvision.errors import UserError

REST = "rest"


@dataclass(frozen=True)
class LayerTime:
    """One layer: its time and its cost.

    Attributes:
        name: As in ``tools/cost.py``; "rest" is what no layer did (normalising pixels, reshaping) and the watching.
        type: "conv 3x3", "depthwise 3x3", "batch norm", "ReLU6", ...
        output: Shape without the batch axis, "" where unknown.
        ms: Median per pass.
        share: Of the pass, 0-1.
        mult_adds: Of one image; 0 where none.
        params: Learnable values.
    """

    name: str
    type: str
    output: str
    ms: float
    share: float
    mult_adds: int
    params: int


def time_layers(subject: Any, batch: int, seconds: float) -> dict[str, Any]:
    """Time every innermost module of a model over repeated passes, in the process that times.

    Args:
        subject: A :class:`~mnvision.latency.subjects.Subject`.
        batch: Pictures at once.
        seconds: How long to go on; at least three passes.

    Returns:
        ``layers``: of each :class:`LayerTime` its fields, in the order of their first call.

    Raises:
        UserError: It is no torch model.
    """
    name = subject.candidate.name
    if not subject.is_torch:
        raise UserError(f"by=layer: {name} shows nothing of its layers; give the checkpoint that it was exported from")
    now = _clock(subject.device)
    passes: list[dict[str, float]] = []
    rests: list[float] = []
    watched = {n: m for n, m in subject.model.named_modules() if n and not list(m.children())}
    call = subject.call("model", batch)
    with _Watch(watched, now) as watch:
        call()
        start = time.perf_counter()
        while len(rests) < 3 or time.perf_counter() - start < seconds:
            watch.spent = {}
            before = now()
            call()
            rests.append(now() - before - sum(watch.spent.values()))
            passes.append(watch.spent)
    names = list(passes[0])
    middle = {n: statistics.median(done.get(n, 0.0) for done in passes) * 1000 for n in names}
    kinds = {n: type(watched[n]).__name__ for n in names}
    # Medians one by one: a pass that was interrupted spoils the layer it was in, not the others.
    rows = join_costs(middle, kinds, max(statistics.median(rests), 0.0) * 1000, subject.cost)
    return {"layers": [asdict(row) for row in rows]}


class _Watch:
    """Adds up the seconds that modules spend, while it is entered."""

    def __init__(self, modules: dict[str, nn.Module], now: Callable[[], float]) -> None:
        self.modules, self.now = modules, now
        self.spent: dict[str, float] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Watch:
        for name, module in self.modules.items():
            self._watch(name, module)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        starts: list[float] = []

        def before(*_: Any) -> None:
            starts.append(self.now())

        def after(*_: Any) -> None:
            self.spent[name] = self.spent.get(name, 0.0) + self.now() - starts.pop()

        self._handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds; on CUDA only once the device has finished, which slows the whole but tells the layers apart."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def join_costs(
    milliseconds: Mapping[str, float], classes: Mapping[str, str], rest_ms: float, cost: Cost
) -> list[LayerTime]:
    """Times beside costs: a row per module that was called, then those that only hold parameters, then the rest.

    Args:
        milliseconds: By module, in the order of their calls.
        classes: What to call a module that holds no parameters.
        rest_ms: Of a pass, outside of all modules.
        cost: Of the same model.
    """
    costs = {layer.name: layer for layer in cost.layers}
    whole = max(rest_ms + sum(milliseconds.values()), 1e-9)
    rows = []
    for name, ms in milliseconds.items():
        layer = costs.pop(name, None)
        if layer is None:
            rows.append(LayerTime(name, classes[name], "", ms, ms / whole, 0, 0))
            continue
        shape = "x".join(map(str, layer.output_shape))
        rows.append(LayerTime(name, layer.type, shape, ms, ms / whole, layer.mult_adds, layer.params))
    rows += [LayerTime(n, layer.type, "", 0.0, 0.0, layer.mult_adds, layer.params) for n, layer in costs.items()]
    return [*rows, LayerTime(REST, "", "", rest_ms, rest_ms / whole, 0, 0)]


def by_type(rows: list[LayerTime]) -> list[LayerTime]:
    """Sums over the layers of one type, the slowest first; ``output`` says how many they are."""
    groups: dict[str, list[LayerTime]] = {}
    for row in rows:
        groups.setdefault(row.type or row.name, []).append(row)
    sums = [
        LayerTime(
            kind,
            kind,
            str(len(group)),
            sum(row.ms for row in group),
            sum(row.share for row in group),
            sum(row.mult_adds for row in group),
            sum(row.params for row in group),
        )
        for kind, group in groups.items()
    ]
    return sorted(sums, key=lambda row: -row.ms)
