"""Prove exported files: ``python tools/prove.py checkpoint=best.ckpt files=[best.onnx,best.xml] [data.root=...]``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from mnvision.errors import UserError
from tools.cli import command, quoted
from tools.evaluate import data_config

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
MODEL = ("backbone", "head", "heads", "decoder", "model", "task")


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


def open_data(cfg: DictConfig, reference: Predictor[Any], head: str) -> Any:
    """The data module of the checkpoint's run, or another one that is asked for.

    Args:
        cfg: The command's config.
        reference: Of the checkpoint, or of one head of it.
        head: The head's name, where there are several.

    Raises:
        UserError: It cannot be composed or read.
    """
    from tools.run import build_data

    composed = data_config(cfg.checkpoint, [f"split={cfg.split}", *cfg.overrides], reference, head)
    return build_data(composed, "test" if cfg.split == "test" else "validate")


def open_reference(checkpoint: str) -> Predictor[Any]:
    """The checkpoint's predictor.

    Raises:
        UserError: It is none, or an exported file.
    """
    from mnvision.prediction.predictor import load_predictor

    reference = load_predictor(checkpoint)
    if hasattr(reference.model, "session"):
        raise UserError(f"checkpoint={checkpoint}: is an exported file; give the .ckpt that it was made of")
    return reference


def open_files(
    reference: Predictor[Any], candidates: Sequence[Candidate], cfg: DictConfig
) -> tuple[dict[str, Mapping[str, Predictor[Any]]], list[FileProof]]:
    """Files by name, of each the predictors by head, and those that are damaged or that no runtime here opens.

    Raises:
        UserError: A file of another task or of other classes, or none can be opened.
    """
    from mnvision.export.runtime import open_file
    from mnvision.prediction.predictor import make_predictor
    from mnvision.proof.bench import refused_proof
    from mnvision.proof.verdict import metadata_failures, tolerance_for

    found: dict[str, Mapping[str, Predictor[Any]]] = {}
    refused: list[FileProof] = []
    for candidate in candidates:
        try:
            file = open_file(str(candidate.file))
            predictor = make_predictor(file, file.metadata.as_checkpoint())
        except UserError as error:
            refused.append(refused_proof(candidate, str(error)))
            continue
        parts = heads_of_file(reference, predictor, Path(str(candidate.file)))
        for head, part in parts.items():
            metadata_failures(reference.parts[head], part, Path(str(candidate.file)))
        tolerance_for(file.metadata.precision, cfg.tolerance)
        found[candidate.name] = parts
    if not found:
        raise UserError(refused[0].failures[0])
    return found, refused


def heads_of_file(reference: Predictor[Any], file: Predictor[Any], path: Path) -> Mapping[str, Predictor[Any]]:
    """A file's predictors by the checkpoint's heads; a file of one head is that of the same kind and classes.

    Raises:
        UserError: It answers for none of them.
    """
    ours = reference.parts
    if file.parts.keys() <= ours.keys():
        return file.parts
    alike = [name for name, one in ours.items() if (one.kind, one.class_names) == (file.kind, file.class_names)]
    if "" in ours or not alike:
        known = ", ".join(ours) if "" not in ours else f"a {reference.kind} model"
        raise UserError(f"{path} is a {file.kind} file, the checkpoint has {known}: give its own files")
    return {alike[0]: file}


def shown_alike(reference: Predictor[Any], files: Sequence[Predictor[Any]]) -> Predictor[Any]:
    """The checkpoint as its files are used: where they stretch pictures of one size inside, so does it, in torch.

    Raises:
        UserError: The files take pictures of different sizes.
    """
    from mnvision.export.stretch import AtSize
    from mnvision.prediction.predictor import make_predictor

    sizes = {None if one.resolution == one.preprocess.network else one.resolution for one in files}
    if len(sizes) > 1:
        named = " and ".join("the model's own" if size is None else f"{size[0]} x {size[1]}" for size in sizes)
        raise UserError(f"files: they take pictures of different sizes ({named}): prove those of each size apart")
    size = sizes.pop()
    return reference if size is None else make_predictor(AtSize(reference.model, size), reference.metadata)


def set_up(cfg: DictConfig, head: str, candidates: Sequence[Candidate], predictors: Sequence[Predictor[Any]]) -> Bench:
    """Ask the checkpoint, which comes first, and its files about every picture.

    Args:
        cfg: The command's config.
        head: Whose answers are compared; empty for a single-task model.
        candidates: For the timing.
        predictors: In the same order.
    """
    from mnvision.latency.contest import progress_line
    from mnvision.proof.answers import gather
    from mnvision.proof.bench import Bench
    from mnvision.proof.scoring import metric_name
    from mnvision.proof.truth import positions_of, scoring_of

    reference = predictors[0]
    data = open_data(cfg, reference, head)
    positions = positions_of(data, cfg.split, reference.kind, cfg.limit)
    scoring = scoring_of(reference, data, cfg.split, positions)
    with progress_line() as report:
        answers = gather(predictors, data.eval_dataset(cfg.split, None), positions, report)
    metric = None if scoring is None else metric_name(cfg.metric, scoring, answers[0], reference.metadata)
    return Bench(list(predictors), list(candidates), data, cfg.split, positions, answers, scoring, metric, head)


def set_up_all(cfg: DictConfig, files: Sequence[str]) -> tuple[list[Bench], list[FileProof]]:
    """One bench, or one for each head that a file answers for; and the files that cannot be opened."""
    from tools.benchmark import opened

    candidates = opened([cfg.checkpoint, *files])
    reference = open_reference(cfg.checkpoint)
    found, refused = open_files(reference, candidates[1:], cfg)
    reference = shown_alike(reference, [part for parts in found.values() for part in parts.values()])
    benches = []
    for head, part in reference.parts.items():
        own = [candidate for candidate in candidates[1:] if head in found.get(candidate.name, {})]
        if own:
            predictors = [part, *(found[candidate.name][head] for candidate in own)]
            benches.append(set_up(cfg, head, [candidates[0], *own], predictors))
    return benches, refused


def prove_bench(bench: Bench, cfg: DictConfig, folder: Path) -> Proof:
    """Everything about the files of one bench but their speed."""
    from mnvision.latency.machine import describe_machine
    from mnvision.latency.subjects import file_megabytes
    from mnvision.proof.bench import draw_worst, notes_on, prove_file
    from mnvision.proof.report import Proof

    numbers = range(1, len(bench.predictors))
    files = [prove_file(bench, number, cfg.tolerance) for number in numbers]
    for number, file in zip(numbers, files):
        draw_worst(bench, number, file, cfg.worst, folder)
    return Proof(
        checkpoint=bench.candidates[0].name,
        kind=bench.predictors[0].kind,
        data={
            "root": str(bench.data.root),
            "split": cfg.split,
            "pictures": len(bench.positions),
            "of": bench.data.num_images(cfg.split),
        },
        metric=bench.metric,
        score=None if bench.scoring is None else bench.scoring.scores(bench.answers[0])[str(bench.metric)],
        size_mb=file_megabytes(Path(cfg.checkpoint)),
        files=files,
        median_ms=None,
        cpu_ms=None,
        machine=describe_machine(),
        notes=notes_on(bench, files),
        head=bench.head,
    )


def prove(cfg: DictConfig) -> tuple[list[Proof], Path]:
    """Measure everything; gives the proof, or one for each head, and their folder."""
    from mnvision.proof.bench import add_latency

    names = check(cfg)
    order = [Path(name).expanduser() for name in names]
    folder = Path(cfg.output or Path(names[0]).parent).expanduser()
    benches, refused = set_up_all(cfg, names)
    proofs = [prove_bench(bench, cfg, folder) for bench in benches]
    if cfg.latency:
        row, how = add_latency(benches, [file for proof in proofs for file in proof.files], float(cfg.seconds))
        for proof in proofs:
            proof.median_ms, proof.cpu_ms = row.median_ms, row.cpu_ms
            proof.notes += how
    for proof in proofs:
        proof.files = sorted([*proof.files, *refused], key=lambda file: order.index(file.path))
    return proofs, folder


@command("prove", gather_overrides)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.latency.report import aligned
    from mnvision.proof.report import remarks, table, write

    proofs, folder = prove(cfg)
    write(proofs, folder)
    for proof in proofs:
        if proof.head:
            print(f"head {proof.head}:")
        print(aligned(table(proof), text_columns=2))
        print("\n" + "\n".join(remarks(proof)) + "\n" * bool(proof.head))
    print(f"proof: {folder}")
    if not all(proof.passed for proof in proofs):
        sys.exit(1)


if __name__ == "__main__":
    main()
