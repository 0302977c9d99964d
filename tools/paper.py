"""The paper's tables beside our own costs and scores: ``python tools/paper.py [tables=[4,6]] [runs=SWEEP]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import CONF, command, compose_config, quoted
from tools.cost import build_settled

if TYPE_CHECKING:
    from mnvision.cost import Cost
    from mnvision.models import Classifier
    from mnvision.paper.measured import Record
    from mnvision.paper.runs import Run
    from mnvision.paper.sections import Section

MEASURED = CONF.parent / "docs" / "measured.json"
FIGURE = "paper.png"
FORMATS = ("terminal", "markdown", "csv")
NUMBERS = range(1, 15)


def expand_lists(words: list[str]) -> list[str]:
    """Take ``tables=4,6`` for a list and ``data_name=`` as it stands: Hydra would start a sweep at a comma."""
    expanded = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "tables" and "," in value and not value.startswith("["):
            word = f"tables=[{value}]"
        elif key == "data_name" and value not in ("", "null") and value[0] not in "'\"":
            word = f"data_name={quoted(value)}"
        expanded.append(word)
    return expanded


class CostBook:
    """Costs of composed models, each computed once."""

    def __init__(self) -> None:
        self._tasks: dict[str, DictConfig] = {}
        self._costs: dict[str, Cost] = {}

    def __call__(self, words: str) -> Cost:
        """Cost of the model that overrides compose; they begin with ``task=NAME``."""
        from mnvision.cost import measure

        if words not in self._costs:
            model = self.model(words)
            self._costs[words] = measure(model, model.resolution)
        return self._costs[words]

    def model(self, words: str) -> Classifier:
        """The model itself, on the meta device where its work does not depend on values."""
        import torch

        task, *values = words.split()
        if task not in self._tasks:
            self._tasks[task] = compose_config("cost", [task])
        # Setting values in the composed config is what Hydra does with them, without reading the files again.
        cfg = deepcopy(self._tasks[task])
        cfg.merge_with_dotlist(values)
        with torch.device(_device(cfg.model._target_)):
            return build_settled(cfg)


def _device(target: str) -> str:
    """Shapes are enough to count with, but for a detector that chooses regions by their scores."""
    from mnvision.build import locate
    from mnvision.models import FasterRCNN

    return "cpu" if locate(target) is FasterRCNN else "meta"


def build_sections(records: Sequence[Record], costs: CostBook, tables: Sequence[int]) -> list[Section]:
    """Sections of the tables asked for; with 6 and 7 comes one for every set of pictures measured here."""
    from mnvision.paper import printed, printed_tasks
    from mnvision.paper.architecture import read_layers
    from mnvision.paper.grid import grid_points, grid_section
    from mnvision.paper.sections import architecture_section, table_section

    sections = []
    if 1 in tables:
        words = printed.ARCHITECTURE
        seen = read_layers(costs.model(words), costs(words), printed.LAYERS)
        sections.append(architecture_section(printed.LAYERS, seen))
    sections += [table_section(table, costs, records) for table in printed.TABLES if table.number in tables]
    if {6, 7} & set(tables):
        groups = grid_points(records, costs)
        sections += [grid_section(data, points) for data, points in groups.items()]
    return [
        *sections,
        *(table_section(table, costs, records) for table in printed_tasks.TABLES if table.number in tables),
    ]


def check_costs(run: Run, costs: CostBook) -> None:
    """Hold the overrides found for a run against its own model.

    Raises:
        UserError: They compose a model of another cost.
    """
    import torch

    from mnvision.build import build_model
    from mnvision.cost import measure

    with torch.device(_device(run.model["_target_"])):
        model = build_model(run.model)
    own, composed = measure(model, model.resolution), costs(run.records[0].words)
    if (own.mult_adds, own.params) != (composed.mult_adds, composed.params):
        raise UserError(
            f"{run.folder}: its model costs {own.mult_adds:,} multiply-adds, {run.records[0].words!r} composes one of "
            f"{composed.mult_adds:,}: its settings have no place in these tables"
        )


def save_figure(records: Sequence[Record], costs: CostBook, path: Path) -> None:
    """Figures 4 and 5: the paper's models, and those measured here."""
    from mnvision.paper import printed
    from mnvision.paper.figure import Dot, save_tradeoff
    from mnvision.paper.grid import grid_points
    from mnvision.paper.measured import knobs

    rows = {
        row.words: float(row.printed[0]) for table in printed.TABLES if table.number in (6, 7) for row in table.rows
    }
    models = [(*knobs(words)[:2], score, True) for words, score in rows.items()]
    models += [(alpha, resolution, score, False) for alpha, resolution, score in printed.SLIM_2017]
    dots = []
    for alpha, resolution, score, own in models:
        cost = costs(f"task=imagenet backbone.alpha={alpha} backbone.resolution={resolution}")
        dots.append(Dot(alpha, resolution, score, cost.mult_adds, cost.params, own))
    save_tradeoff(dots, grid_points(records, costs), path)


def checked_tables(cfg: DictConfig, found: Sequence[Record]) -> list[int]:
    """Numbers of the tables to show.

    Raises:
        UserError: One of them does not exist.
    """
    if cfg.tables is None and found:
        filled = {record.table for record in found}
        return sorted(filled | ({7} if 6 in filled else set()))
    tables = list(NUMBERS) if cfg.tables is None else [cfg.tables] if isinstance(cfg.tables, int) else list(cfg.tables)
    for number in tables or [None]:
        if type(number) is not int or number not in NUMBERS:
            raise UserError(f"tables={cfg.tables}: the paper has tables 1 to 14; e.g. tables=[4,6]")
    return tables


def write_documents(sections: Sequence[Section], folder: Path) -> None:
    """``paper.md`` and ``paper.csv``."""
    from mnvision.files import whole_file
    from mnvision.paper.render import markdown, to_csv

    for name, text in (("paper.md", markdown(sections, FIGURE)), ("paper.csv", to_csv(sections))):
        with whole_file(folder / name) as path:
            path.write_text(text, encoding="utf-8")


def read_scores(cfg: DictConfig, costs: CostBook) -> list[Record]:
    """Scores of the runs that ``cfg`` names; what had to be left out is said.

    Raises:
        UserError: There is no usable run, or one whose model these tables cannot hold.
    """
    from mnvision.paper.runs import read_runs

    runs, left_out = read_runs(cfg.runs, cfg.data_name, cfg.epoch)
    records: list[Record] = []
    for run in runs:
        try:
            check_costs(run, costs)
        except UserError as error:
            left_out.append(f"left out: {error}")
        else:
            records += run.records
    if not records:
        raise UserError(f"runs={cfg.runs} holds no score; {left_out[0]}")
    for line in left_out:
        print(line, file=sys.stderr)
    return records


@command("paper", expand_lists)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.paper import render
    from mnvision.paper.measured import merged, read_records, write_records

    if cfg.format not in FORMATS:
        raise UserError(f"format={cfg.format}: choose {', '.join(FORMATS)}")
    if not isinstance(cfg.keep, bool):
        raise UserError(f"keep={cfg.keep}: choose true or false")
    if cfg.keep and not cfg.runs:
        raise UserError("keep=true keeps the scores of runs: give runs=FOLDER")
    checked_tables(cfg, [])
    costs, measured = CostBook(), Path(cfg.measured or MEASURED)
    found = read_scores(cfg, costs) if cfg.runs else []
    records = merged(read_records(measured), found)
    sections = build_sections(records, costs, checked_tables(cfg, [] if cfg.output else found))
    if not cfg.output:
        writers = {"terminal": render.terminal, "markdown": render.markdown, "csv": render.to_csv}
        print(writers[cfg.format](sections).rstrip("\n"))
    if cfg.keep:
        write_records(records, measured)
        print(f"measured: {measured}")
    if cfg.output or cfg.runs:
        folder = Path(cfg.output or cfg.runs)
        write_documents(sections, folder)
        save_figure(records, costs, folder / FIGURE)
        print(f"paper: {folder}")


if __name__ == "__main__":
    main()
