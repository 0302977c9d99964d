"""Compare models: ``python tools/compare.py checkpoints=[teacher.ckpt,student.ckpt,student.onnx] split=test``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import check_overrides, command, compose_config, quoted
from tools.evaluate import expand_checkpoint

COLUMNS = ("checkpoint", "alpha", "resolution", "score", "difference", "mult-adds", "share", "params")

# Kinds that are scored by the same numbers as another one.
SCORED_AS = {"faster_rcnn": "detection"}

# Keys of conf/compare.yaml; all others are those of tools/evaluate.py.
OWN = ("checkpoints", "split", "metric", "overrides", "output", "paths", "hydra")


def gather_overrides(words: list[str]) -> list[str]:
    """Put what is meant for every evaluation, such as ``data.root=PATH``, into ``overrides=``."""
    others = [
        word
        for word in words
        if "=" in word and not word.startswith("-") and word.lstrip("+~").split("=")[0].split(".")[0] not in OWN
    ]
    rest = [word for word in words if word not in others]
    return [*rest, f"overrides=[{','.join(map(quoted, others))}]"] if others else rest


@dataclass(frozen=True)
class Entry:
    """One checkpoint: its name, its two knobs, its score and what one picture costs it."""

    name: str
    alpha: float
    resolution: int
    score: float
    mult_adds: int
    params: int

    def row(self, reference: Entry) -> list[str]:
        """Cells of the table: millions of multiply-adds and parameters, the share of the reference's cost."""
        return [
            self.name,
            f"{self.alpha:g}",
            str(self.resolution),
            f"{self.score:.4f}",
            f"{self.score - reference.score:+.4f}",
            f"{self.mult_adds / 1e6:.1f}M",
            f"{self.mult_adds / reference.mult_adds:.1%}",
            f"{self.params / 1e6:.2f}M",
        ]


def measure_entry(cfg: DictConfig, checkpoint: str, name: str) -> tuple[Entry, str]:
    """Score one checkpoint or exported file as ``tools/evaluate.py`` does, and count its cost.

    Returns:
        The entry, and the metric's name.

    Raises:
        UserError: The checkpoint is unreadable, or its task has no such metric.
    """
    from mnvision.build import build_model
    from mnvision.cost import measure
    from mnvision.export.runtime import is_exported
    from tools.run import evaluate, evaluated_model

    folder = quoted(Path(cfg.output) / name)
    words = [f"checkpoint={quoted(checkpoint)}", f"split={cfg.split}", *cfg.overrides, f"paths.output_dir={folder}"]
    expanded = expand_checkpoint(words)
    check_overrides("evaluate", expanded)
    evaluation = compose_config("evaluate", expanded)
    model, metadata, _ = evaluated_model(evaluation, words)  # its input may be another one than in training
    scores = evaluate(evaluation, words)
    metric = f"val/{cfg.metric}" if cfg.metric else metadata.run["monitor"]["metric"]
    if metric not in scores:
        known = ", ".join(sorted(key.removeprefix("val/") for key in scores))
        raise UserError(f"{checkpoint} was not scored by {metric.removeprefix('val/')}: give metric=, one of {known}")
    resolution = model.backbone.resolution
    if is_exported(checkpoint):
        model = build_model(metadata.model)  # a file is no torch model; what it computes is counted on its like
    cost = measure(model, resolution)
    return Entry(name, model.backbone.alpha, resolution, scores[metric], cost.mult_adds, cost.params), metric


def short_names(checkpoints: list[str]) -> list[str]:
    """What tells the checkpoints apart: the run folder of ``RUN/checkpoints/best.ckpt``, else the file's name.

    Exported files keep their suffix.

    Raises:
        UserError: A checkpoint is named twice.
    """
    paths = [Path(path) for path in checkpoints]
    names = [_short_name(path) for path in paths]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        for i in same:
            names[i] = "_".join(
                part for part in (*paths[i].parts[:-1], _file_name(paths[i])) if part not in ("/", "..", "checkpoints")
            )
    if len(set(names)) < len(names):
        raise UserError(f"checkpoints={checkpoints}: one of them is named twice")
    return names


def _short_name(path: Path) -> str:
    name = _file_name(path)
    if path.parent.name != "checkpoints":
        return name
    return path.parents[1].name if path.suffix == ".ckpt" else f"{path.parents[1].name}_{name}"


def _file_name(path: Path) -> str:
    return path.stem if path.suffix == ".ckpt" else path.name


def require_one_kind(checkpoints: list[str]) -> None:
    """Refuse what cannot be compared before anything is measured.

    Raises:
        UserError: A checkpoint is unreadable or has several heads, or they are of different tasks.
    """
    from mnvision.export.runtime import open_metadata

    kinds = {path: open_metadata(path).kind for path in checkpoints}
    kinds = {path: SCORED_AS.get(kind, kind) for path, kind in kinds.items()}
    several = next((path for path in checkpoints if kinds[path] == "multitask"), None)
    if several is not None:
        raise UserError(
            f"{several} has several heads, and this table is of one: cut it out with tools/merge.py {several} "
            "out=one.ckpt heads=[NAME], or export a file with heads=[NAME]"
        )
    other = next((path for path in checkpoints if kinds[path] != kinds[checkpoints[0]]), None)
    if other is not None:
        raise UserError(
            f"{checkpoints[0]} is a {kinds[checkpoints[0]]} model, {other} one of {kinds[other]}: give checkpoints "
            "of one task"
        )


def markdown(rows: list[list[str]]) -> str:
    """A table of cells as Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


@command("compare", gather_overrides)
def main(cfg: DictConfig) -> None:
    """Command line."""
    import csv

    from mnvision.files import whole_file

    if not cfg.checkpoints:
        raise UserError("no checkpoints given; e.g. checkpoints=[teacher.ckpt,student.ckpt]")
    if isinstance(cfg.checkpoints, str):
        raise UserError(f"checkpoints={cfg.checkpoints}: write a list, checkpoints=[{cfg.checkpoints}]")
    checkpoints = [str(path) for path in cfg.checkpoints]
    require_one_kind(checkpoints)
    measured = [measure_entry(cfg, path, name) for path, name in zip(checkpoints, short_names(checkpoints))]
    entries, metrics = [entry for entry, _ in measured], {metric for _, metric in measured}
    if len(metrics) > 1:
        raise UserError(f"the checkpoints were scored by different metrics, {', '.join(sorted(metrics))}: give metric=")
    header = [*COLUMNS]
    header[3] = f"{metrics.pop().removeprefix('val/')} ({cfg.split})"
    rows = [header, *(entry.row(entries[0]) for entry in entries)]
    folder = Path(cfg.output)
    with whole_file(folder / "comparison.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with whole_file(folder / "comparison.md") as path:
        path.write_text(markdown(rows))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
            )
        )
    print(f"comparison: {folder}")


if __name__ == "__main__":
    main()
