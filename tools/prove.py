"""Prove exported files: ``python tools/prove.py checkpoint=best.ckpt files=[best.onnx,best.xml] [data.root=...]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from mnvision.errors import UserError
from tools.cli import check_overrides, command, compose_config, quoted
from tools.evaluate import expand_checkpoint

if TYPE_CHECKING:
    from mnvision.latency.subjects import Candidate
    from mnvision.prediction.predictor import Predictor
    from mnvision.proof.bench import Bench
    from mnvision.proof.report import Proof
    from mnvision.proof.verdict import FileProof

OWN = (
    *("checkpoint", "files", "split", "limit", "metric", "tolerance", "worst", "latency", "seconds", "overrides"),
    *("output", "hydra"),
)
MODEL = ("backbone", "head", "decoder", "model", "task")


def gather_overrides(words: list[str]) -> list[str]:
    """Put what is meant for the data, such as ``data.root=PATH``, into ``overrides=``, and quote single paths."""
    mine: list[str] = []
    others: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        given = "=" in word and not word.startswith("-") and key.lstrip("+~").split(".")[0] not in OWN
        literal = key in ("checkpoint", "output") and value not in ("", "null") and value[0] not in "'\""
        (others if given else mine).append(f"{key}={quoted(value)}" if literal else word)
    return [*mine, f"overrides=[{','.join(map(quoted, others))}]"] if others else mine


def check(cfg: DictConfig) -> list[str]:
    """The files, once all options are known to be possible.

    Raises:
        UserError: One is not.
    """
    from mnvision.export.runtime import FORMATS

    if not cfg.checkpoint or not cfg.files:
        raise UserError("give checkpoint=FILE and files=[best.onnx,...], which tools/export.py wrote from it")
    files = [str(file) for file in cfg.files] if isinstance(cfg.files, ListConfig) else [str(cfg.files)]
    for file in files:
        if Path(file).suffix.lower() not in FORMATS:
            raise UserError(f"{file}: not a file of tools/export.py, whose names end in {', '.join(FORMATS)}")
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split}: choose train, val or test")
    for name, least in (("limit", 1), ("worst", 0)):
        value = cfg[name]
        if not (value is None and name == "limit") and (type(value) is not int or value < least):
            raise UserError(f"{name}={value}: give a whole number of at least {least}")
    if not isinstance(cfg.latency, bool):
        raise UserError(f"latency={cfg.latency}: give true or false")
    if isinstance(cfg.seconds, bool) or not isinstance(cfg.seconds, int | float) or not 0 < cfg.seconds < 3600:
        raise UserError(f"seconds={cfg.seconds}: give a number above 0")
    wrong = [word for word in cfg.overrides if word.lstrip("+~").split("=")[0].split(".")[0] in MODEL]
    if wrong:
        raise UserError(f"{wrong[0]}: a proof is of the model as it was exported; leave it out")
    return files


def open_data(cfg: DictConfig, reference: Predictor[Any]) -> Any:
    """The data module of the checkpoint's run, or another one that is asked for.

    Raises:
        UserError: It cannot be composed or read.
    """
    from tools.run import build_data

    words = [f"checkpoint={quoted(cfg.checkpoint)}", f"split={cfg.split}", *cfg.overrides, "paths.output_dir=."]
    expanded = expand_checkpoint(words)
    check_overrides("evaluate", expanded)
    evaluation = compose_config("evaluate", expanded)
    evaluation.backbone.resolution = reference.resolution[0]
    return build_data(evaluation, "test" if cfg.split == "test" else "validate")


def open_reference(checkpoint: str) -> Predictor[Any]:
    """The checkpoint's predictor.

    Raises:
        UserError: It is none, or an exported file.
    """
    from mnvision.prediction.predictor import load_predictor

    reference = load_predictor(checkpoint)
    if hasattr(vars(reference)["model"], "session"):
        raise UserError(f"checkpoint={checkpoint}: is an exported file; give the .ckpt that it was made of")
    return reference


def open_files(
    reference: Predictor[Any], candidates: Sequence[Candidate], cfg: DictConfig
) -> tuple[dict[str, Predictor[Any]], list[FileProof]]:
    """Files by name, and those that are damaged or that no runtime here opens.

    Raises:
        UserError: A file of another task or of other classes, or none can be opened.
    """
    from mnvision.export.judge import predictor_of
    from mnvision.export.runtime import open_file
    from mnvision.proof.bench import refused_proof
    from mnvision.proof.verdict import metadata_failures, tolerance_for

    found: dict[str, Predictor[Any]] = {}
    refused: list[FileProof] = []
    for candidate in candidates:
        try:
            predictor = predictor_of(open_file(str(candidate.file)))
        except UserError as error:
            refused.append(refused_proof(candidate, str(error)))
            continue
        metadata_failures(reference, predictor, Path(str(candidate.file)))
        tolerance_for(vars(predictor)["model"].session.metadata.precision, cfg.tolerance)
        found[candidate.name] = predictor
    if not found:
        raise UserError(refused[0].failures[0])
    return found, refused


def set_up(cfg: DictConfig, files: list[str]) -> tuple[Bench, list[FileProof]]:
    """Load everything and ask about every picture; files that cannot be opened beside it."""
    from mnvision.latency.contest import progress_line
    from mnvision.proof.answers import gather
    from mnvision.proof.bench import Bench
    from mnvision.proof.scoring import metric_name
    from mnvision.proof.truth import positions_of, scoring_of
    from tools.benchmark import opened

    candidates = opened([cfg.checkpoint, *files])
    reference = open_reference(cfg.checkpoint)
    found, refused = open_files(reference, candidates[1:], cfg)
    candidates = [candidates[0], *(candidate for candidate in candidates[1:] if candidate.name in found)]
    predictors = [reference, *found.values()]
    data = open_data(cfg, reference)
    positions = positions_of(data, cfg.split, reference.kind, cfg.limit)
    scoring = scoring_of(reference, data, cfg.split, positions)
    with progress_line() as report:
        answers = gather(predictors, data.eval_dataset(cfg.split, None), positions, report)
    metric = None if scoring is None else metric_name(cfg.metric, scoring, answers[0], reference.metadata)
    return Bench(predictors, candidates, data, cfg.split, positions, answers, scoring, metric), refused


def prove(cfg: DictConfig) -> tuple[Proof, Path]:
    """Measure everything; gives the proof and its folder."""
    from mnvision.latency.machine import describe_machine
    from mnvision.latency.subjects import file_megabytes
    from mnvision.proof.bench import add_latency, draw_worst, notes_on, prove_file
    from mnvision.proof.report import Proof

    names = check(cfg)
    order = [Path(name).expanduser() for name in names]
    folder = Path(cfg.output or Path(names[0]).parent).expanduser()
    bench, refused = set_up(cfg, names)
    numbers = range(1, len(bench.predictors))
    files = [prove_file(bench, number, cfg.tolerance) for number in numbers]
    for number, file in zip(numbers, files):
        draw_worst(bench, number, file, cfg.worst, folder)
    row, how = add_latency(bench, files, float(cfg.seconds)) if cfg.latency else (None, [])
    score = None if bench.scoring is None else bench.scoring.scores(bench.answers[0])[str(bench.metric)]
    total = bench.data.num_images(cfg.split)
    proof = Proof(
        checkpoint=bench.candidates[0].name,
        kind=bench.predictors[0].kind,
        data={
            "root": str(bench.data.root),
            "split": cfg.split,
            "pictures": len(bench.positions),
            "of": total,
        },
        metric=bench.metric,
        score=score,
        size_mb=file_megabytes(Path(cfg.checkpoint)),
        files=sorted([*files, *refused], key=lambda file: order.index(file.path)),
        median_ms=None if row is None else row.median_ms,
        cpu_ms=None if row is None else row.cpu_ms,
        machine=describe_machine(),
        notes=[*notes_on(bench, files), *how],
    )
    return proof, folder


@command("prove", gather_overrides)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.latency.report import aligned
    from mnvision.proof.report import remarks, table, write

    proof, folder = prove(cfg)
    write(proof, folder)
    print(aligned(table(proof), text_columns=2))
    print("\n" + "\n".join(remarks(proof)))
    print(f"proof: {folder}")
    if not proof.passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
