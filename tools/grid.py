"""The grid of widths and resolutions that tools/choose.py looks at: composed, counted and timed."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.benchmark import described, listed, positive, resolved_device, settled_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mnvision.cost import Cost
    from mnvision.latency.choice import Point
    from mnvision.latency.subjects import Candidate

_STEP = 16
_SEVENTHS = (4, 5, 6)


def alphas_of(cfg: DictConfig) -> list[float]:
    """The widths of the grid.

    Raises:
        UserError: None, or one that is no number above 0.
    """
    found = [float(positive("alphas", value)) for value in listed(cfg.alphas)]
    if not found:
        raise UserError("alphas=[]: give at least one width, e.g. alphas=[0.25,0.5]")
    return sorted(set(found))


def resolutions_of(cfg: DictConfig) -> list[int]:
    """The resolutions of the grid; by default the paper's four steps (128, 160, 192, 224) below the task's own.

    Raises:
        UserError: One that is no whole number above 0.
    """
    if cfg.resolutions is None:
        own = int(cfg.backbone.resolution)
        return sorted({*(max(round(own * part / 7 / _STEP), 1) * _STEP for part in _SEVENTHS), own})
    found = [positive("resolutions", value, whole=True, least=1) for value in listed(cfg.resolutions)]
    if not found:
        raise UserError("resolutions=[]: give at least one, e.g. resolutions=[128,160]")
    return sorted(set(found))


def model_at(cfg: DictConfig, alpha: float, resolution: int) -> dict[str, Any]:
    """The composed model at another width and resolution, as plain data that rebuilds it."""
    changed = deepcopy(cfg)
    changed.backbone.alpha, changed.backbone.resolution = alpha, resolution
    return settled_config(changed)


def counted(cfg: DictConfig, knobs: Sequence[tuple[float, int]]) -> dict[Point, dict[str, Any]]:
    """A point per width and resolution with what it costs, and its model's config."""
    from mnvision.latency.choice import Point, file_megabytes
    from mnvision.latency.published import published_accuracy

    published = published_accuracy() if is_published(cfg) else {}
    found = {}
    for alpha, resolution in knobs:
        config = model_at(cfg, alpha, resolution)
        cost = cost_of(config)
        size = file_megabytes(cost, str(cfg.precision))
        known = published.get((alpha, resolution))
        found[Point(alpha, resolution, cost.mult_adds, cost.params, size, published=known)] = config
    return found


def cost_of(config: dict[str, Any]) -> Cost:
    """What a model costs, counted without memory for its weights where its layers allow that."""
    import torch

    from mnvision.build import build_model
    from mnvision.cost import measure

    side = int(config["backbone"]["resolution"])
    try:
        with torch.device("meta"):
            return measure(build_model(config), side)
    except (RuntimeError, NotImplementedError):  # it looks at values, as region proposals do
        return measure(build_model(config), side)


def is_published(cfg: DictConfig) -> bool:
    """Whether the model is a classifier on the paper's own backbone, whose ImageNet scores mean something for it."""
    backbone = cfg.backbone
    plain = (backbone.variant, backbone.depth_multiplier, backbone.output_stride, backbone.stem_stride)
    return str(cfg.model._target_).endswith(".Classifier") and plain == ("separable", 1, 32, 2)


def timed(cfg: DictConfig, grid: dict[Point, dict[str, Any]]) -> tuple[list[Point], list[str]]:
    """The points with their median latency: one picture, pixels to answers; and what a reader should know."""
    from mnvision.latency.contest import Plan, contest, progress_line
    from mnvision.latency.machine import thread_counts
    from mnvision.latency.report import busy_note
    from mnvision.latency.subjects import MODEL, Candidate
    from mnvision.latency.summary import make_rows
    from mnvision.runtime import usable_cores

    threads = thread_counts(listed(cfg.threads)[:1], len(usable_cores()))
    device = resolved_device(str(cfg.device))
    candidates = [Candidate(point.name, config=config) for point, config in grid.items()]
    with TemporaryDirectory() as folder, progress_line() as tell:
        if cfg.runtime == "onnx":
            candidates = [exported(one, Path(folder), str(cfg.precision), tell) for one in candidates]
        plan = Plan(
            candidates=candidates,
            parts=(MODEL,),
            threads=threads,
            seconds=positive("seconds", cfg.seconds),
            rounds=positive("rounds", cfg.rounds, whole=True, least=1),
            device=device,
            together=True,
        )
        timings = contest(plan, tell)
    machine = described(device)
    where = machine.get("device", machine["processor"])
    rows = make_rows(timings.blocks, timings.facts, where)
    notes = [f"latency: {cfg.runtime} {cfg.precision}, batch 1, {threads[0]} threads, {where}; random weights"]
    if cfg.precision == "int8":
        notes.append(
            "int8 of random weights, calibrated on drawn pictures: times and sizes hold, accuracy was not looked at"
        )
    busy = busy_note(rows, machine["cores"])
    by_cpu = busy is not None and threads[0] == 1 and device == "cpu"
    if by_cpu:
        notes.append("latency is processor time of one thread: what a call takes when the machine is quiet")
    points = []
    for point, row in zip(grid, rows, strict=True):
        size = timings.facts[point.name]["file_mb"]
        latency = row.cpu_ms if by_cpu else row.median_ms
        points.append(replace(point, latency_ms=latency, file_mb=point.file_mb if size is None else size))
    return points, [*notes, *timings.notes, *filter(None, [busy])]


def exported(candidate: Candidate, folder: Path, precision: str, tell: Callable[[str], None]) -> Candidate:
    """The same model as an ONNX file, its weights random.

    Raises:
        UserError: A package is missing, or the export fails.
    """
    from mnvision.export.onnx import Onnx
    from mnvision.latency.subjects import Candidate
    from mnvision.latency.untrained import untrained_file

    tell(f"exporting {candidate.name}")
    return Candidate(candidate.name, file=str(untrained_file(candidate, Onnx(), precision, folder)))
