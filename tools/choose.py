"""Choose width and resolution: ``python tools/choose.py task=ssd_coco budget.latency_ms=20``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mnvision.errors import UserError
from tools.benchmark import settled_config
from tools.cli import command, one_task
from tools.grid import alphas_of, counted, resolutions_of, timed

if TYPE_CHECKING:
    from mnvision.latency.choice import Budget, Choice, Point

# Keys of conf/choose.yaml that are no part of a training; conf/config.yaml has the others.
OWN = (
    *("budget", "alphas", "resolutions", "runs", "measure", "runtime", "precision", "threads", "seconds", "rounds"),
    *("device", "output", "hydra", "paths", "backbone.alpha", "backbone.resolution"),
)
_SCORES = {
    "own": "Score of your own runs",
    "published": "Top-1 on ImageNet, published",
    "mult_adds": "Million multiply-adds",
}


def check_runtime(cfg: DictConfig) -> None:
    """Refuse what cannot be timed before anything is.

    Raises:
        UserError: An unknown runtime, or a precision that it cannot have.
    """
    from mnvision.latency.choice import BYTES

    if cfg.runtime not in ("torch", "onnx"):
        raise UserError(f"runtime={cfg.runtime}: choose torch or onnx")
    if cfg.precision not in BYTES:
        raise UserError(f"precision={cfg.precision}: choose {', '.join(BYTES)}")
    timed = cfg.measure or (cfg.measure is None and cfg.budget.latency_ms is not None)
    if not timed:
        return
    if cfg.runtime == "torch" and cfg.precision != "fp32":
        raise UserError(f"runtime=torch is timed in fp32: leave precision={cfg.precision} out, or give runtime=onnx")


def own_scores(cfg: DictConfig) -> tuple[dict[tuple[float, int], list[float]], list[str]]:
    """Scores of the runs in ``runs=`` whose model is the composed one at any width and resolution.

    Raises:
        UserError: No run fits, or they were scored by different metrics or on different pictures.
    """
    from mnvision.paper.runs import read_runs

    runs, notes = read_runs(str(cfg.runs))
    wanted = settled_config(cfg)
    alike = [run for run in runs if _family(run.model) == _family(wanted)]
    if not alike:
        kinds = ", ".join(sorted({_family(run.model)[0].rpartition(".")[2] for run in runs}))
        raise UserError(f"runs={cfg.runs}: none of the {len(runs)} runs is of this task and head; they are: {kinds}")
    if len(alike) < len(runs):
        notes.append(f"{len(runs) - len(alike)} runs of other tasks, heads or variants were left out")
    for what, values in (
        ("data", {run.records[0].data for run in alike}),
        ("metrics", {run.records[0].metric for run in alike}),
    ):
        if len(values) > 1:
            raise UserError(f"runs={cfg.runs}: scores of different {what} do not compare ({', '.join(sorted(values))})")
    scores: dict[tuple[float, int], list[float]] = {}
    for run in alike:
        alpha, resolution, _ = run.records[0].knobs
        scores.setdefault((alpha, resolution), []).append(run.records[0].value)
    record = alike[0].records[0]
    return scores, [*notes, f"your scores: {record.metric} on {record.data}, last epochs of {len(alike)} runs"]


def _family(model: dict[str, Any]) -> tuple[str, str, bool, str]:
    head = model["head"]
    variant = str(model["backbone"].get("variant", "separable"))
    return str(model["_target_"]), str(head["_target_"]), bool(head.get("lite", False)), variant


def train_command(point: Point) -> str:
    """The line that trains it, with the words of this command that belong to a training."""
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    kept = [word for word in words if not _is_own(word.lstrip("+~").split("=")[0])]
    task = [] if any(word.startswith("task=") for word in kept) else ["task=imagenet"]
    knobs = [f"backbone.alpha={point.alpha:g}", f"backbone.resolution={point.resolution}"]
    return " ".join(["python tools/train.py", *task, *kept, *knobs])


def _is_own(key: str) -> bool:
    return any(key == own or key.startswith(f"{own}.") for own in OWN)


def main_cost(budget: Budget, points: Sequence[Point]) -> str:
    """What the table is sorted by and the figure shows: latency where it is known, else the first limit."""
    if all(point.latency_ms is not None for point in points):
        return "latency_ms"
    return next(iter(budget.limits), "madds")


def cells(points: Sequence[Point], budget: Budget, choice: Choice, main: str) -> list[list[str]]:
    """A heading and a line per point, the cheapest first."""
    from mnvision.latency.choice import frontier
    from mnvision.latency.report import number

    ordered = sorted(points, key=lambda point: point.cost(main))
    best = frontier([p.cost(main) for p in ordered], [p.score(choice.ranking) for p in ordered])
    if says_nothing(choice, main):
        best = [False] * len(ordered)
    lines = [["alpha-pixels", "ms", "mult-adds", "params", "MB", "ImageNet top-1", "your runs", "frontier", "fits"]]
    for point, on in zip(ordered, best, strict=True):
        over = max(budget.excess(point).values(), default=0.0)
        fits = "chosen" if point == choice.best else "yes" if over <= 1 else f"{number(over)} x"
        own = "-" if point.own is None else f"{point.own:.4f}" + (f" ({point.runs})" if point.runs > 1 else "")
        published = "-" if point.published is None else f"{point.published:.3f}"
        costs = [number(point.latency_ms, 4), f"{point.mult_adds / 1e6:.1f}M", f"{point.params / 1e6:.2f}M"]
        lines.append([point.name, *costs, number(point.file_mb), published, own, "*" if on else "", fits])
    empty = [all(line[i] in ("-", "") for line in lines[1:]) for i in range(len(lines[0]))]
    return [[cell for cell, drop in zip(line, empty, strict=True) if not drop] for line in lines]


def says_nothing(choice: Choice, main: str) -> bool:
    """Whether the points are ranked by the very cost that they are shown over."""
    return choice.ranking == "mult_adds" and main == "madds"


@command("choose", one_task)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.latency.choice import Budget, choose, shortfall, with_scores
    from mnvision.latency.published import SOURCE
    from mnvision.latency.report import aligned

    limits: Any = OmegaConf.to_container(cfg.budget, resolve=True)
    budget = Budget.from_mapping(limits)
    check_runtime(cfg)
    if not budget.limits and not cfg.measure:
        raise UserError("no budget given: e.g. budget.latency_ms=8, budget.madds=150e6, budget.params=2e6")
    scores, notes = own_scores(cfg) if cfg.runs is not None else ({}, [])
    knobs = sorted({*((a, r) for a in alphas_of(cfg) for r in resolutions_of(cfg)), *scores})
    grid = counted(cfg, knobs)
    points = list(grid)
    if cfg.measure or (cfg.measure is None and budget.latency_ms is not None):
        points, more = timed(cfg, grid)
        notes += more
    points = with_scores(points, scores)
    chief = main_cost(budget, points)
    choice = choose(points, budget, chief)
    print(aligned(cells(points, budget, choice, chief)))
    if any(point.published is not None for point in points):
        notes.append(SOURCE)
    print("".join(f"note: {note}\n" for note in notes), end="")
    folder = Path(cfg.output)
    write(points, budget, choice, chief, folder, str(HydraConfig.get().runtime.choices["task"]))
    print(f"choice: {folder}")
    if choice.best is None:
        raise UserError(shortfall(choice, budget))
    print(f"ranked {choice.reason}")
    print(train_command(choice.best))


def write(points: Sequence[Point], budget: Budget, choice: Choice, chief: str, folder: Path, task: str) -> None:
    """``choice.csv``, and ``choice.png`` where there is something to draw against the cost."""
    from mnvision.figures_latency import save_choice
    from mnvision.files import whole_file

    with whole_file(folder / "choice.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(points[0]), "fits", "chosen"])
        writer.writeheader()
        for point in points:
            writer.writerow(asdict(point) | {"fits": budget.fits(point), "chosen": point == choice.best})
    if says_nothing(choice, chief):
        return
    title = f"{task}: alpha and resolution"
    save_choice(points, budget, choice, chief, title, _SCORES[choice.ranking], folder / "choice.png")


if __name__ == "__main__":
    main()
