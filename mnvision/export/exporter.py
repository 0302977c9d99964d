"""From a checkpoint to a file that is known to answer alike: build, write, run, compare, and only then keep."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnvision.checkpoints import Metadata, load_model
from mnvision.errors import UserError
from mnvision.export import regions
from mnvision.export.base import INT8, PRECISIONS, Format, Pixels, Wish
from mnvision.export.calibration import FEWEST, Calibration, Source, check_calibration, folder_source
from mnvision.export.graph import ExportGraph, GraphOptions, build_graph
from mnvision.export.heads import HeadsJudge, chosen_heads, parts_of, share
from mnvision.export.int8_file import Int8Job, write_int8
from mnvision.export.judge import Judge, Judgement
from mnvision.export.layer_noise import write_report
from mnvision.export.metadata import FileMetadata, describe
from mnvision.export.parity import LIMITS, Difference, drawn_pictures, pictures_of
from mnvision.export.stretch import at_size
from mnvision.export.targets import target_path, workshop
from mnvision.export.trial import checked
from mnvision.prediction.predictor import make_predictor
from mnvision.quantization.layers import restore


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        size: Bytes of all its files.
        seconds: Taken by the conversion.
        difference: Largest difference from the model; of int8, what was measured of its answers.
        lines: For the terminal.
    """

    path: Path
    size: int
    seconds: float
    difference: Difference | Judgement
    lines: list[str]


@dataclass(frozen=True)
class _Job:
    """What is to be written where."""

    form: Format
    graph: ExportGraph
    wish: Wish
    metadata: FileMetadata
    path: Path
    model: Any
    checkpoint: Metadata


@dataclass(frozen=True)
class _Made:
    """Files in the workshop (``beside`` are reports, which are no part of the export), and what is known of them."""

    files: list[Path]
    seconds: float
    difference: Difference | Judgement
    lines: list[str]
    beside: list[Path]


def export(
    checkpoint: str | Path,
    form: Format,
    wish: Wish,
    output: str | Path | None = None,
    pictures: str | Path | None = None,
    score_threshold: float | None = None,
    calibration: Calibration | None = None,
    source: Source | None = None,
    heads: Sequence[str] | None = None,
    overrides: Sequence[str] | None = None,
) -> Exported:
    """Write a checkpoint as another format.

    Args:
        checkpoint: Written by ``tools/train.py``.
        form: The format.
        wish: Precision, batch and what goes inside.
        output: The file, or a folder; None is the checkpoint's name beside it.
        pictures: Folder of pictures to compare on, and to calibrate int8 on; None draws some to compare on.
        score_threshold: Lowest score that a detector's file keeps; None is the checkpoint's own.
        calibration: What is asked of int8.
        source: Where int8's pictures come from, in the place of ``pictures``, see
            :func:`~mnvision.export.calibration_data.data_samples`.
        heads: Of a multi-task checkpoint, those that go in; one makes a file as of a single task. None is all.
        overrides: With which ``tools/evaluate.py`` measures the file; None is the checkpoint's own.

    Raises:
        UserError: What is asked for does not go together, a package is missing, the folder cannot be written to, the
            converter fails, or the file answers differently; nothing is left behind then.
    """
    asked = calibration or Calibration()
    if source is None and pictures is not None:
        source = folder_source(pictures)
    _check_wish(form, wish, source is not None, asked)
    form.require()
    target = target_path(Path(checkpoint), form, wish, output)
    model, metadata = _load(checkpoint, score_threshold)
    if heads is not None:
        model, metadata = chosen_heads(model, metadata, heads)
    if wish.precision == INT8:
        form.require_int8(trained=bool(metadata.quantization))
    if overrides is not None:
        metadata = replace(metadata, overrides=list(overrides))
    options = _options(form, wish, model)
    with workshop(target) as folder:
        graph = build_graph(model, options)
        written = describe(metadata, graph, wish.batch, wish.precision, Path(checkpoint), model)
        job = _Job(form, graph, wish, written, folder / target.name, model, metadata)
        if wish.precision == INT8:
            assert source is not None
            made = _make_int8(job, source, asked, pictures is not None)
        else:
            made = _make(job, _pictures(at_size(model, wish.size), metadata, pictures))
        size = sum(file.stat().st_size for file in made.files)
        for file in (*made.files, *made.beside):
            os.replace(file, target.parent / file.name)
    nms = next((head["nms"] for head in written.heads.values() if head["nms"] is not None), written.nms)
    inside = {True: ", NMS inside", False: ", without NMS", None: ""}[nms]
    pixels = f"{'any size' if wish.any_size else _sides(graph.size)} {form.layout.upper()}"
    if wish.resize:
        pixels += f" stretched to {_sides(graph.resolution)} inside"
    lines = [
        f"{metadata.kind} as {form.name} {wish.precision}: uint8 RGB {pixels}, batch {wish.batch or 'any'} -> "
        f"{', '.join(graph.names)}{inside}; {size / 1e6:.2f} MB in {made.seconds:.1f} s",
        *_layouts(metadata, wish),
        *made.lines,
    ]
    return Exported(target, size, made.seconds, made.difference, lines)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _layouts(metadata: Metadata, wish: Wish) -> list[str]:
    """What a user of a file that stretches has to know, where its checkpoint was shown other than whole pictures."""
    rules = {name: metadata.head(name).preprocess for name in metadata.heads} or {"": metadata.preprocess}
    lines = []
    for name, rule in rules.items():
        layout = rule.get("resize", "stretch")
        if wish.resize and layout != "stretch":
            whose = f"head {name}" if name else "the checkpoint"
            lines.append(
                f"mind that {whose} was evaluated on pictures laid out by {layout}, not on whole pictures stretched: "
                "give the file that part of a picture, as mnvision.load does"
            )
    return lines


def _make(job: _Job, shown: Pixels) -> _Made:
    start = time.perf_counter()
    files = job.form.write(job.graph, job.wish, job.metadata, job.path)
    seconds = time.perf_counter() - start
    difference, trial = checked(files[-1], job.form, job.model, shown, job.wish)
    words = difference.words(LIMITS[job.wish.precision], max(job.graph.size))
    line = f"compared with torch on {len(shown)} pictures, {trial}: {words}"
    return _Made(files, seconds, difference, [line], [])


def _make_int8(job: _Job, source: Source, asked: Calibration, folder: bool) -> _Made:
    trained = job.checkpoint.quantization
    quantizer = job.form.trained_quantizer(job.graph, job.wish, trained) if trained else None
    judge = _judge(job, source, asked, trained if quantizer else {}, folder)
    start = time.perf_counter()
    quantizer = quantizer or job.form.quantizer(job.graph, job.wish)
    made = write_int8(Int8Job(job.form, quantizer, job.metadata, job.path), judge, asked)
    seconds = time.perf_counter() - start
    lines, beside = made.lines(judge.samples), []
    if asked.report:
        beside = write_report(job.path, made.noise, made.summary(asked, judge.samples))
        lines.append(f"report: {' and '.join(file.name for file in beside)} beside the file")
    return _Made(made.files, seconds, made.compared.judgement, lines, beside)


def _judge(job: _Job, source: Source, asked: Calibration, trained: dict[str, Any], folder: bool) -> Judge | HeadsJudge:
    """What files are held against: the checkpoint, rounded as in its training where it was trained so.

    Heads share what is asked for, but in a folder, whose pictures are the same ones for all of them.
    """
    model = restore(job.model, trained) if trained else job.model
    reference = make_predictor(at_size(model, job.wish.size), job.checkpoint)
    if trained:  # its ranges come with it
        asked = replace(asked, limit=FEWEST)
    most = min(regions.calibrated_pictures(part) for _, part in parts_of(model))
    asked = replace(asked, limit=max(min(asked.limit, most), FEWEST))
    each = asked if folder else share(asked, len(reference.parts))
    samples = {name: source(predictor, each, name) for name, predictor in reference.parts.items()}
    if trained:
        samples = {name: found.uncalibrated() for name, found in samples.items()}
    return HeadsJudge(reference, samples) if job.checkpoint.heads else Judge(reference, samples[""])


def _check_wish(form: Format, wish: Wish, there: bool, calibration: Calibration) -> None:
    if wish.precision not in (*PRECISIONS, INT8):
        raise UserError(f"precision={wish.precision}: choose {' or '.join((*PRECISIONS, INT8))}")
    if wish.precision not in form.precisions:
        raise UserError(f"format={form.name} holds {' or '.join(form.precisions)}, not precision={wish.precision}")
    if wish.batch is None and not form.any_batch:
        raise UserError(f"format={form.name} has a fixed batch: give batch=1, or another number")
    if wish.any_size and not form.any_size:
        raise UserError(
            f"format={form.name} takes pictures of one size only: give their height and width, such as resize=[480,640]"
        )
    check_calibration(wish, there, calibration)


def _options(form: Format, wish: Wish, model: Any) -> GraphOptions:
    """How the graph is built, once it is known to go together with the model."""
    kinds = {part.kind for _, part in parts_of(model)}
    detects = bool(kinds & {"detection", regions.KIND})
    if regions.KIND in kinds and form.keep is None:
        raise UserError(
            f"format={form.name} cannot hold a Faster R-CNN, which suppresses its proposals inside, nms=false or not: "
            "give format=onnx, openvino or pt2"
        )
    if wish.nms and form.keep is None and detects:
        raise UserError(f"format={form.name} cannot hold non-maximum suppression: give nms=false")
    return GraphOptions(
        layout=form.layout,
        keep=form.keep if wish.nms else None,
        proposals=form.keep,
        resize=wish.resize,
        half=wish.precision == "fp16" and form.half_graph,
    )


def _load(checkpoint: str | Path, score_threshold: float | None) -> tuple[Any, Metadata]:
    model, metadata = load_model(checkpoint)
    if score_threshold is not None:
        found = [name for name, part in parts_of(model) if hasattr(part.decoder, "score_threshold")]
        if not found:
            raise UserError("score_threshold is for detectors: leave it out")
        for name in found:
            config = metadata.model["heads"][name] if name else metadata.model
            config["decoder"]["score_threshold"] = score_threshold
        model, metadata = load_model(checkpoint, metadata.model)
    return model, metadata


def _pictures(model: Any, metadata: Metadata, source: str | Path | None) -> Pixels:
    if source is None:
        return drawn_pictures(model.resolution)
    predictor = make_predictor(model, metadata)
    return pictures_of(source, next(iter(predictor.parts.values())).preprocess)
