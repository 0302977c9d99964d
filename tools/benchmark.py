"""Time models: ``python tools/benchmark.py files=[best.ckpt,best.onnx] [task=ssd_coco backbone.alpha=0.5,1.0]``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import check_overrides, command, compose_config, quoted

if TYPE_CHECKING:
    from mnvision.latency.contest import Plan, Timings
    from mnvision.latency.report import Report
    from mnvision.latency.subjects import Candidate

# Keys of conf/benchmark.yaml; all other words compose models.
OWN = (
    *("files", "overrides", "import", "batch", "threads", "parts", "by", "seconds", "rounds", "cold", "picture"),
    *("device", "output", "paths", "hydra"),
)
KNOBS = ("backbone.alpha", "backbone.resolution")


def gather_overrides(words: list[str]) -> list[str]:
    """Put the words that compose models into ``overrides=``.

    Raises:
        UserError: A word looks like a misspelt key of this tool.
    """
    flags = {word for word in words if word.startswith("-")}
    others = [
        word
        for word in words
        if "=" in word and word not in flags and word.lstrip("+~").split("=")[0].split(".")[0] not in OWN
    ]
    rest = [word for word in words if word not in others]
    return [*rest, f"overrides=[{','.join(map(quoted, others))}]"] if others else rest


def listed(value: Any) -> list[Any]:
    """A list of one where a single value was given."""
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig | list) else [value]


def positive(name: str, value: Any, whole: bool = False, least: float = 0.0) -> Any:
    """``value`` itself.

    Raises:
        UserError: It is no number, or too small.
    """
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right or not (value >= least if least else value > 0):
        raise UserError(
            f"{name}={value}: give a {'whole ' if whole else ''}number {'of at least 1' if whole else '> 0'}"
        )
    return value


def settled_config(cfg: DictConfig) -> dict[str, Any]:
    """The model of a composed config as plain data that rebuilds it, its class count from the config alone.

    Raises:
        UserError: The class count is not known without data.
    """
    from tasks.composition import settle

    config: Any = OmegaConf.to_container(cfg.model, resolve=True)
    if "num_classes" in config["head"] and config["head"]["num_classes"] is None:
        config["head"]["num_classes"] = cfg.classes_without_data
    return settle(config, None, None)


def preprocess_rule(cfg: DictConfig) -> dict[str, Any]:
    """How pictures of the composed data set become the network's input; none of its files are read."""
    from hydra.utils import instantiate

    return dict(instantiate(cfg.data, _convert_="all").preprocess)


def composed(overrides: Sequence[str], whole: bool) -> list[Candidate]:
    """A candidate per combination of the values that words such as ``backbone.alpha=0.5,1.0`` list.

    Args:
        overrides: As for ``tools/cost.py``.
        whole: Whether the whole predictor is timed, which needs to know how the data are laid out.

    Raises:
        UserError: A wrong word, with the nearest valid one.
    """
    from mnvision.latency.subjects import Candidate

    if not overrides:
        return []
    if "task=multitask" in overrides:
        raise UserError("task=multitask: tools/cost.py time=true times trunk and heads; here give files=[all.ckpt,...]")
    parser = OverridesParser.create()
    choices: list[list[str]] = []
    for word in overrides:
        override = parser.parse_override(word)
        key = word.split("=", 1)[0]
        several = override.is_sweep_override()
        choices.append([f"{key}={value}" for value in override.sweep_string_iterator()] if several else [word])
    candidates = []
    for words in product(*choices):
        check_overrides("cost", words)
        cfg = compose_config("cost", [*words, "paths.output_dir=."])
        task = next((word.split("=", 1)[1] for word in words if word.startswith("task=")), "imagenet")
        varied = [w for w, several in zip(words, choices) if len(several) > 1 and not w.startswith((*KNOBS, "task="))]
        name = " ".join([f"{task} {cfg.backbone.alpha:g}-{cfg.backbone.resolution}", *varied])
        rule = preprocess_rule(cfg) if whole else None
        candidates.append(Candidate(name, config=settled_config(cfg), preprocess=rule))
    return candidates


def file_names(paths: Sequence[Path]) -> list[str]:
    """What tells the files apart: as few of the last parts of their paths as needed; "checkpoints" says nothing.

    Raises:
        UserError: A file is named twice.
    """
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError(f"files=[{','.join(map(str, paths))}]: one of them is named twice")
    parts = [[part for part in path.resolve().parts if part != "checkpoints"] for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def opened(files: Sequence[Any]) -> list[Candidate]:
    """A candidate per file.

    Raises:
        UserError: A file is missing, or given twice.
    """
    from mnvision.latency.subjects import Candidate

    paths = [Path(str(file)).expanduser() for file in files]
    for path in paths:
        if not path.is_file():
            raise UserError(f"files: {path} does not exist; give checkpoints or files written by tools/export.py")
    return [Candidate(name, file=str(path)) for name, path in zip(file_names(paths), paths)]


def make_plan(cfg: DictConfig) -> Plan:
    """What to time.

    Raises:
        UserError: A value that cannot be.
    """
    from mnvision.latency.contest import Plan
    from mnvision.latency.machine import thread_counts
    from mnvision.latency.subjects import PARTS, WHOLE, make_picture
    from mnvision.runtime import usable_cores

    parts = [str(part) for part in listed(cfg.parts)]
    wrong = [part for part in parts if part not in PARTS]
    if wrong or not parts:
        raise UserError(f"parts=[{','.join(parts)}]: choose from {', '.join(PARTS)}")
    batches = [positive("batch", batch, whole=True, least=1) for batch in listed(cfg.batch)]
    if not batches:
        raise UserError("batch=[]: give at least one number, e.g. batch=[1,16]")
    if cfg.picture is not None:
        make_picture(str(cfg.picture))  # refused before anything is timed
    return Plan(
        candidates=[*opened(listed(cfg.files)), *composed([str(word) for word in cfg.overrides], WHOLE in parts)],
        parts=[part for part in PARTS if part in parts],
        batches=list(dict.fromkeys(batches)),
        threads=thread_counts(listed(cfg.threads), len(usable_cores())),
        seconds=positive("seconds", cfg.seconds),
        rounds=positive("rounds", cfg.rounds, whole=True, least=1),
        device=resolved_device(str(cfg.device)),
        picture=None if cfg.picture is None else str(cfg.picture),
    )


def resolved_device(name: str) -> str:
    """The device in words that every process understands alike.

    Raises:
        UserError: It is not there.
    """
    from mnvision.prediction.predictor import as_device

    return str(as_device(name))


def described(device: str) -> dict[str, Any]:
    """The machine, with the GPU where one is used."""
    from mnvision.latency.machine import describe_machine

    machine = describe_machine()
    if device.startswith("cuda"):
        import torch

        machine["device"] = f"{torch.cuda.get_device_name(torch.device(device))}, CUDA {torch.version.cuda}"
    return machine


def notes_on(timings: Timings, plan: Plan) -> list[str]:
    """What a reader of the table should know."""
    kinds = {name: fact["kind"] for name, fact in timings.facts.items()}
    notes = list(timings.notes)
    if len(set(kinds.values())) > 1:
        notes.append(
            f"models of different tasks ({', '.join(sorted(set(kinds.values())))}): their answers differ in kind"
        )
    if any(candidate.config is not None for candidate in plan.candidates):
        text = "composed models have random weights"
        if {"detection", "faster_rcnn"}.intersection(kinds.values()):
            text += "; how long a detector's decoding takes depends on what it sees, so time a trained one for that"
        notes.append(text)
    if plan.device.startswith("cuda"):
        notes.append("device times by CUDA's events, the whole predictor's by the host's clock")
    return notes


def measured(cfg: DictConfig, plan: Plan) -> tuple[Report, dict[Any, Any]]:
    """Time everything, and put it beside what was imported; the blocks behind the rows come second."""
    from mnvision.latency.contest import cold_starts, contest, layer_times, progress_line
    from mnvision.latency.imports import read_times
    from mnvision.latency.report import Report, busy_note
    from mnvision.latency.summary import make_cold_rows, make_rows

    imported = [row for path in listed(cfg["import"]) for row in read_times(str(path))]
    machine = described(plan.device)
    report = Report(machine, imported)
    if not plan.candidates:
        return report, {}
    device = machine.get("device", machine["processor"])
    with progress_line() as tell:
        if cfg.by:
            first = (plan.batches[0], plan.threads[0], plan.seconds, plan.device)
            report.layers = {one.name: layer_times(one, *first) for one in plan.candidates}
            report.notes = [f"layers: batch {first[0]}, {first[1]} threads; watching them makes a pass a little slower"]
            return report, {}
        timings = contest(plan, tell)
        rows = make_rows(timings.blocks, timings.facts, device)
        starts = cold_starts(plan, cfg.cold, tell)
    report.rows, report.facts = [*rows, *imported], timings.facts
    report.cold = make_cold_rows(starts, timings.facts, device, plan.threads[-1])
    report.notes = [*notes_on(timings, plan), *filter(None, [busy_note(rows, machine["cores"])])]
    report.settings = {"seconds": plan.seconds, "rounds": plan.rounds, "device": plan.device, **timings.settings}
    return report, timings.blocks


@command("benchmark", gather_overrides)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.latency.layers import by_type
    from mnvision.latency.report import aligned, machine_lines, tables, write_report

    if cfg.by not in (None, "layer", "type"):
        raise UserError(f"by={cfg.by}: choose layer or type, or leave it out")
    if isinstance(cfg.cold, bool) or not isinstance(cfg.cold, int) or cfg.cold < 0:
        raise UserError(f"cold={cfg.cold}: give a whole number of starts, 0 for none")
    if not (listed(cfg.files) or cfg.overrides or listed(cfg["import"])):
        raise UserError("nothing to time: give files=[best.ckpt,...], task=NAME, or import=[times.csv]")
    report, blocks = measured(cfg, make_plan(cfg))
    if cfg.by == "type":
        report.layers = {name: by_type(rows) for name, rows in report.layers.items()}
    print("\n".join(machine_lines(report.machine)))
    for cells in tables(report):
        print("\n" + aligned(cells, text_columns=3 if report.layers else 1))
    print("".join(f"\nnote: {note}" for note in report.notes))
    folder = Path(cfg.output)
    write_report(report, blocks, folder)
    print(f"benchmark: {folder}")


if __name__ == "__main__":
    main()
