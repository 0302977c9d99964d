"""A checkpoint and its files side by side: one measurement after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.latency.contest import Plan, contest, progress_line
from mnvision.latency.report import busy_note
from mnvision.latency.subjects import MODEL, RUNTIMES, Candidate, file_megabytes
from mnvision.latency.summary import Row, make_rows
from mnvision.prediction.predictor import Predictor
from mnvision.proof import differences as of
from mnvision.proof.answers import Answers
from mnvision.proof.differences import Differences
from mnvision.proof.figure import make_case, save_worst, shown_threshold
from mnvision.proof.scoring import AFFORDABLE, BoxScoring, PairScoring, Scoring
from mnvision.proof.verdict import FileProof, metadata_failures, tolerance_for
from mnvision.runtime import usable_cores


@dataclass
class Bench:
    """What all files are measured on.

    Attributes:
        predictors: Of the checkpoint, then of the files.
        candidates: The same for the timing, with their names.
        data: The data module.
        split: Of it.
        positions: Of the pictures.
        answers: Of each predictor.
        scoring: None without labels.
        metric: None without labels.
        head: Whose answers they are; empty for a single-task model.
    """

    predictors: list[Predictor[Any]]
    candidates: list[Candidate]
    data: Any
    split: str
    positions: Any
    answers: list[Answers]
    scoring: Scoring | None
    metric: str | None
    head: str = ""


def differences_of(bench: Bench, number: int) -> Differences:
    """Of one file from the checkpoint."""
    reference, file = bench.predictors[0], bench.predictors[number]
    expected, found = bench.answers[0], bench.answers[number]
    if reference.kind == "detection":
        threshold = shown_threshold([reference, file])
        assert threshold is not None
        return of.compare_detections(expected, found, threshold)
    if reference.kind == "face_attributes":
        return of.compare_attributes(expected, found, vars(reference)["thresholds"], vars(file)["thresholds"])
    if reference.kind == "face_embeddings":
        pairs = bench.scoring.pairs if isinstance(bench.scoring, PairScoring) else None
        return of.compare_embeddings(expected, found, pairs, vars(reference)["threshold"])
    return of.compare_classes(expected, found)


def prove_file(bench: Bench, number: int, tolerance: Mapping[str, Any]) -> FileProof:
    """Everything about one file but its speed."""
    candidate, predictor = bench.candidates[number], bench.predictors[number]
    precision, failure = predictor.model.metadata.precision, bench.answers[number].failure
    proof = bare_proof(candidate, precision)
    proof.failures += metadata_failures(bench.predictors[0], predictor, proof.path)
    if failure:
        proof.failures.append(failure)
        return proof
    proof.differences, proof.tolerance = differences_of(bench, number), tolerance_for(precision, tolerance)
    if bench.scoring is not None and bench.metric is not None:
        expected, found = bench.answers[0], bench.answers[number]
        try:
            proof.score = bench.scoring.scores(found)[bench.metric]
        except UserError as error:  # such as answers that are not finite
            proof.failures.append(f"its answers cannot be scored: {error}")
        else:
            proof.change = proof.score - bench.scoring.scores(expected)[bench.metric]
            proof.interval = bench.scoring.interval(expected, found, bench.metric)
    proof.judge(bench.metric)
    return proof


def refused_proof(candidate: Candidate, reason: str) -> FileProof:
    """Of a file that its own runtime does not open, or that is not whole."""
    proof = bare_proof(candidate)
    proof.failures.append(f"it cannot be opened: {reason}")
    return proof


def bare_proof(candidate: Candidate, precision: str = "") -> FileProof:
    """What is known without asking a file."""
    path = Path(str(candidate.file))
    runtime = RUNTIMES.get(path.suffix.lower(), path.suffix)
    return FileProof(candidate.name, path, runtime, precision, file_megabytes(path))


def draw_worst(bench: Bench, number: int, proof: FileProof, count: int, folder: Path) -> None:
    """Draw the pictures on which a file differs most; embeddings show nothing that could be seen."""
    found = proof.differences
    worst = [] if found is None else found.worst(count)
    name = f"prove_{bench.head and f'{bench.head}_'}{proof.name.replace('/', '_')}.png"
    if found is None or not worst or bench.predictors[0].kind == "face_embeddings":
        (folder / name).unlink(missing_ok=True)  # an earlier proof's would be taken for this one's
        return
    pair = (bench.predictors[0], bench.predictors[number])
    dataset, threshold = bench.data.eval_dataset(bench.split, None), shown_threshold(pair)
    cases = []
    for row in worst:
        flips, gap = found.flips[row], found.outputs[row]
        position = int(bench.positions[row])
        title = f"{dataset.path(position).name}: {flips} flipped, {gap:.1e}"
        cases.append(make_case(pair, dataset, position, threshold, title))
    proof.figure = name
    save_worst(cases, (bench.candidates[0].name, proof.name), folder / name)


def add_latency(benches: Sequence[Bench], files: Sequence[FileProof], seconds: float) -> tuple[Row, list[str]]:
    """Time the checkpoint and all files in turn, each with all its heads; gives the checkpoint's row, and notes."""
    asked = [pair for bench in benches for pair in zip(bench.candidates, bench.answers, strict=True)]
    failed = {candidate.name for candidate, answers in asked if answers.failure}
    candidates = list({one.name: one for one, _ in asked if one.name not in failed}.values())
    with progress_line() as report:
        timings = contest(Plan(candidates, parts=(MODEL,), seconds=seconds), report)
    rows = {row.file: row for row in make_rows(timings.blocks, timings.facts, "cpu")}
    busy = busy_note(list(rows.values()), len(usable_cores()))
    for file in files:
        if file.name in rows:
            row = rows[file.name]
            file.median_ms, file.ratio = row.median_ms, row.ratio
            file.cpu_ms, file.cpu_ratio = row.cpu_ms, row.cpu_ratio
    how = "ms: median of one picture, pixels to decoded numbers, one thread; x torch: median of the rounds' ratios"
    whole = "files and checkpoint are timed with all the heads that each has" if benches[0].head else None
    return rows[candidates[0].name], [how, *timings.notes, *filter(None, [whole, busy])]


def notes_on(bench: Bench, files: Sequence[FileProof]) -> list[str]:
    """What a reader of the table should know."""
    if bench.scoring is None:
        return ["the pictures have no labels (or too few pairs of both kinds), so no metric was measured"]
    found = next((file.interval for file in files if file.interval is not None), None)
    if found is None:
        if isinstance(bench.scoring, BoxScoring) and bench.scoring.count > AFFORDABLE:
            return [f"no interval: too many pictures to match their boxes again so often; limit={AFFORDABLE} has one"]
        return ["no interval: most resamples of so few pictures do not define the metric, or nothing could be scored"]
    return [f"interval: percentile bootstrap over {found.over}, {found.resamples} resamples, of the change"]
