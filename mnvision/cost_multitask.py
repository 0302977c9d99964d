"""What several heads on one trunk cost: the trunk by pass, each head, and what single models of them would cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.cost import Cost, measure
from mnvision.cost_tables import aligned
from mnvision.multitask import MultiTaskModel

TRUNK, HEAD, JOINT, SINGLES = "trunk", "head", "joint", "singles"


@dataclass(frozen=True)
class PartCost:
    """One row.

    Attributes:
        name: The head; of the trunk the heads that a pass answers for; "joint model" or "sum of single models".
        part: "trunk" (one row per pass), "head", "joint" or "singles".
        resolution: Side of the input in pixels; 0 where there are several.
        mult_adds: Of one picture. Of Faster R-CNN's head, its part of the backbone on every region is counted here.
        params: Learnable values. The trunk's stand in the row of its first pass alone; normalisations of a head's own
            stand in the head's.
        ms: Median time of one picture; None where it was not measured.
    """

    name: str
    part: str
    resolution: int
    mult_adds: int
    params: int
    ms: float | None = None


@dataclass(frozen=True)
class JointCost:
    """All rows, in the order of a table.

    Attributes:
        rows: Trunk by pass, heads, the joint model, and the sum of the single models.
        single: By head, its single-task model: the trunk as far as it needs it, and the head.
    """

    rows: tuple[PartCost, ...]
    single: Mapping[str, PartCost]

    def row(self, part: str) -> PartCost:
        """The first row of a part."""
        return next(row for row in self.rows if row.part == part)

    @property
    def ratio(self) -> float:
        """Multiply-adds of the single models over those of the joint one."""
        return self.row(SINGLES).mult_adds / self.row(JOINT).mult_adds

    @property
    def time_ratio(self) -> float | None:
        """Time of the single models over that of the joint one; None where it was not measured."""
        joint, singles = self.row(JOINT).ms, self.row(SINGLES).ms
        return None if joint is None or singles is None else singles / joint

    def timed(self, milliseconds: Mapping[str, float]) -> JointCost:
        """The same with times by :func:`time_key`."""
        rows = tuple(replace(row, ms=milliseconds.get(time_key(row))) for row in self.rows)
        single = {name: replace(row, ms=milliseconds.get(f"single {name}")) for name, row in self.single.items()}
        return JointCost(rows, single)

    def table(self) -> str:
        """Aligned plain text: each row with its share of the joint model, and a summary in words."""
        joint = self.row(JOINT)
        timed = joint.ms is not None
        lines = [["part", "", "px", "mult-adds", "%", "params", "%", *(("ms", "%") if timed else ())]]
        for row in self.rows:
            side = str(row.resolution) if row.resolution else ""
            kind = row.part if row.part in (TRUNK, HEAD) else ""
            cells = [*_share(row.mult_adds, joint.mult_adds), *_share(row.params, joint.params)]
            if timed:
                cells += ["", ""] if row.ms is None else [f"{row.ms:.2f}", f"{100 * row.ms / (joint.ms or 1):.1f}"]
            lines.append([row.name, kind, side, *cells])
        return "\n".join([aligned(lines, text_columns=2), "", *self.summary()])

    def summary(self) -> list[str]:
        """Such as "trunk 96.0 %, attributes +0.1 %" and the cost of the single models."""
        joint = self.row(JOINT)
        trunk = 100 * sum(row.mult_adds for row in self.rows if row.part == TRUNK) / joint.mult_adds
        heads = [f"{row.name} +{_percent(row.mult_adds, joint.mult_adds)}" for row in self.rows if row.part == HEAD]
        count = len(self.single)
        lines = [
            f"multiply-adds: trunk {trunk:.1f} %, {', '.join(heads)}",
            f"{count} single model{'s' * (count > 1)} would take {self.ratio:.2f}x the multiply-adds and "
            f"{self.row(SINGLES).params / joint.params:.2f}x the parameters"
            + (f", and {self.time_ratio:.2f}x the time, measured in turn" if self.time_ratio is not None else ""),
        ]
        return lines

    def to_csv(self) -> str:
        """One line per row under a heading."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(PartCost))
        writer.writerows(["" if value is None else value for value in asdict(row).values()] for row in self.rows)
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "single": {name: asdict(row) for name, row in self.single.items()},
            "singles_over_joint": {"mult_adds": self.ratio, "ms": self.time_ratio},
        }


def time_key(row: PartCost) -> str:
    """By which :meth:`JointCost.timed` finds a row's time."""
    return f"{row.part} {row.name}" if row.part in (TRUNK, HEAD) else row.part


def joint_cost(model: MultiTaskModel) -> JointCost:
    """Count a model of several heads; it is run on zeros and left as it was, see :func:`~mnvision.cost.measure`."""
    trunks = []
    counted = False
    for resolution, names in model.passes():
        cost = measure(_Trunk(model, names), resolution, torch.uint8)
        params = 0 if counted else sum(p.numel() for p in model.backbone.parameters())
        trunks.append(PartCost(" + ".join(names), TRUNK, resolution[0], cost.mult_adds, params))
        counted = True
    heads, single = [], {}
    for name in model.names:
        part = model.part(name)
        side = part.resolution[0]
        whole = measure(part, part.resolution, torch.uint8)
        below = measure(_Trunk(model, [name]), part.resolution, torch.uint8)
        norms = model.norms[name].parameters() if name in model.norms else ()
        params = sum(p.numel() for p in (*part.head.parameters(), *norms))
        heads.append(PartCost(name, HEAD, side, whole.mult_adds - below.mult_adds, params))
        single[name] = PartCost(name, SINGLES, side, whole.mult_adds, whole.params)
    sides = {row.resolution for row in trunks}
    side = sides.pop() if len(sides) == 1 else 0
    joint = PartCost("joint model", JOINT, side, *_sums([*trunks, *heads]))
    singles = PartCost("sum of single models", SINGLES, side, *_sums(list(single.values())))
    return JointCost((*trunks, *heads, joint, singles), single)


def layers_by_pass(model: MultiTaskModel) -> list[tuple[str, Cost]]:
    """The layers of trunk and heads that each pass runs, under the names of its heads."""
    return [
        (" + ".join(names), measure(_Pass(model, names), resolution, torch.uint8))
        for resolution, names in model.passes()
    ]


class _Trunk(nn.Module):
    """One pass of the trunk for some heads."""

    def __init__(self, model: MultiTaskModel, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone = model.backbone if not model.own_norms else model.part(names[0]).backbone
        self.run: list[Any] = [model, list(names)]  # in a list, which is no module: heads are not the trunk's

    def forward(self, images: Tensor) -> Any:
        """Feature maps by head."""
        model, names = self.run
        return model.maps(images, names)


class _Pass(nn.Module):
    """One pass of the trunk with the heads that it answers for."""

    def __init__(self, model: MultiTaskModel, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone = model.backbone if not model.own_norms else model.part(names[0]).backbone
        self.head = nn.ModuleDict({name: model.heads[name] for name in names})
        self.run: list[Any] = [model, list(names)]

    def forward(self, images: Tensor) -> Any:
        """Raw outputs by head."""
        model, names = self.run
        return model(images, names)


def _sums(rows: Sequence[PartCost]) -> tuple[int, int]:
    return sum(row.mult_adds for row in rows), sum(row.params for row in rows)


def _share(count: int, of: int) -> list[str]:
    return [f"{count:,}", f"{100 * count / max(of, 1):.1f}"]


def _percent(count: int, of: int) -> str:
    share = 100 * count / of
    return f"{share:.1f} %" if share >= 0.1 or not count else f"{share:.2g} %"
