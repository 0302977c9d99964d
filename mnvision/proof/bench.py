"""A checkpoint and its files side by side: one measurement after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnvision.errors import UserError
from mnvision.latency.contest import Plan, contest, progress_line
from mnvision.latency.machine import usable_cores
from mnvision.latency.report import busy_note
from mnvision.latency.subjects import MODEL, RUNTIMES, Candidate, file_megabytes
from mnvision.latency.summary import Row, make_rows
from mnvision.prediction.predictor import Predictor
from mnvision.proof import differences as of
from mnvision.proof.answers import Answers
from mnvision.proof.differences import Differences
from mnvision.proof.figure import make_case, save_worst, shown_threshold
from mnvision.proof.scoring import AFFORDABLE, BoxScoring, PairScoring, Scoring
from mnvision.proof.verdict import LOWER_IS_BETTER, FileProof, metadata_failures, tolerance_for


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
    """

    predictors: list[Predictor[Any]]
    candidates: list[Candidate]
    data: Any
    split: str
    positions: Any
    answers: list[Answers]
    scoring: Scoring | None
    metric: str | None


def metric_name(wanted: str | None, scoring: Scoring, answers: Answers, reference: Predictor[Any]) -> str:
    """What is asked for; else what the run monitored, where more of it is better; else the task's own.

    Raises:
        UserError: The task has no such metric.
    """
    known = scoring.scores(answers)
    if scoring.metric not in known:
        raise UserError(f"{scoring.metric} is not defined on so few pictures: raise limit=, or leave it out")
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"metric={wanted}: this task has {', '.join(known)}")
        return wanted
    monitor = str((reference.metadata.run.get("monitor") or {}).get("metric", "")).removeprefix("val/")
    return monitor if monitor in known and monitor not in LOWER_IS_BETTER else scoring.metric


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
    path, precision = Path(str(candidate.file)), vars(predictor)["model"].session.metadata.precision
    proof = FileProof(
        name=candidate.name,
        path=path,
        runtime=RUNTIMES.get(path.suffix.lower(), path.suffix),
        precision=precision,
        size_mb=file_megabytes(path),
        differences=differences_of(bench, number),
        tolerance=tolerance_for(precision, tolerance),
        failures=metadata_failures(bench.predictors[0], predictor, path),
    )
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


def draw_worst(bench: Bench, number: int, proof: FileProof, count: int, folder: Path) -> None:
    """Draw the pictures on which a file differs most; embeddings show nothing that could be seen."""
    worst = proof.differences.worst(count)
    name = f"prove_{proof.name.replace('/', '_')}.png"
    if not worst or bench.predictors[0].kind == "face_embeddings":
        (folder / name).unlink(missing_ok=True)  # an earlier proof's would be taken for this one's
        return
    pair = (bench.predictors[0], bench.predictors[number])
    dataset, threshold = bench.data.eval_dataset(bench.split, None), shown_threshold(pair)
    cases = []
    for row in worst:
        flips, gap = proof.differences.flips[row], proof.differences.outputs[row]
        position = int(bench.positions[row])
        title = f"{dataset.path(position).name}: {flips} flipped, {gap:.1e}"
        cases.append(make_case(pair, dataset, position, threshold, title))
    proof.figure = name
    save_worst(cases, (bench.candidates[0].name, proof.name), folder / name)


def add_latency(bench: Bench, files: Sequence[FileProof], seconds: float) -> tuple[Row, list[str]]:
    """Time them in turn; gives the checkpoint's row, and notes."""
    with progress_line() as report:
        timings = contest(Plan(bench.candidates, parts=(MODEL,), seconds=seconds), report)
    rows = {row.file: row for row in make_rows(timings.blocks, timings.facts, "cpu")}
    busy = busy_note(list(rows.values()), len(usable_cores()))
    for file in files:
        if file.name in rows:
            row = rows[file.name]
            file.median_ms, file.ratio = row.median_ms, row.ratio
            file.cpu_ms, file.cpu_ratio = row.cpu_ms, row.cpu_ratio
    how = "ms: median of one picture, pixels to decoded numbers, one thread; x torch: median of the rounds' ratios"
    return rows[bench.candidates[0].name], [how, *timings.notes, *filter(None, [busy])]


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
