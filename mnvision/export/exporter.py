"""From a checkpoint to a file that is known to answer alike: build, write, run, compare, and only then keep."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mnvision.checkpoints import Metadata, load_model
from mnvision.errors import UserError
from mnvision.export.agreement import Agreement
from mnvision.export.base import INT8, PRECISIONS, Format, Pixels, Wish
from mnvision.export.calibration import Calibration, Samples, check_calibration, read_samples
from mnvision.export.graph import ExportGraph, GraphOptions, build_graph
from mnvision.export.int8_file import OnnxBased, write_int8
from mnvision.export.layer_noise import write_report
from mnvision.export.metadata import FileMetadata, describe, weights_digest
from mnvision.export.parity import (
    LIMITS,
    Difference,
    batches,
    compare,
    drawn_pictures,
    other_size,
    pictures_of,
    require,
)
from mnvision.export.runtime import FileModel
from mnvision.export.suppression import keep_greedily
from mnvision.export.targets import target_path, workshop
from mnvision.types import Detections


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        size: Bytes of all its files.
        seconds: Taken by the conversion.
        difference: Largest difference from the model; of int8, how often it decides alike.
        lines: For the terminal.
    """

    path: Path
    size: int
    seconds: float
    difference: Difference | Agreement
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


@dataclass(frozen=True)
class _Made:
    """Files in the workshop (``beside`` are reports, which are no part of the export), and what is known of them."""

    files: list[Path]
    seconds: float
    difference: Difference | Agreement
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

    Raises:
        UserError: What is asked for does not go together, a package is missing, the folder cannot be written to, the
            converter fails, or the file answers differently; nothing is left behind then.
    """
    asked = calibration or Calibration()
    _check_wish(form, wish, pictures, asked)
    form.require()
    target = target_path(Path(checkpoint), form, wish, output)
    model, metadata = _load(checkpoint, score_threshold)
    options = _options(form, wish, model)
    with workshop(target) as folder:
        graph = build_graph(model, options)
        digest = weights_digest(model.state_dict())
        written = describe(metadata, graph, wish.batch, wish.precision, Path(checkpoint), digest)
        job = _Job(form, graph, wish, written, folder / target.name, model)
        if wish.precision == INT8:
            made = _make_int8(job, _samples(checkpoint, pictures, asked), asked)
        else:
            made = _make(job, _pictures(checkpoint, model, pictures))
        size = sum(file.stat().st_size for file in made.files)
        for file in (*made.files, *made.beside):
            os.replace(file, target.parent / file.name)
    inside = {True: ", NMS inside", False: ", without NMS", None: ""}[written.nms]
    height, width = graph.resolution
    pixels = f"{'any size' if wish.resize else f'{height} x {width}'} {form.layout.upper()}"
    lines = [
        f"{metadata.kind} as {form.name} {wish.precision}: uint8 RGB {pixels}, batch {wish.batch or 'any'} -> "
        f"{', '.join(graph.names)}{inside}; {size / 1e6:.2f} MB in {made.seconds:.1f} s",
        *made.lines,
    ]
    return Exported(target, size, made.seconds, made.difference, lines)


def _make(job: _Job, shown: Pixels) -> _Made:
    start = time.perf_counter()
    files = job.form.write(job.graph, job.wish, job.metadata, job.path)
    seconds = time.perf_counter() - start
    difference, trial = _checked(files[-1], job.form, job.model, shown, job.wish)
    words = difference.words(LIMITS[job.wish.precision], max(job.graph.resolution))
    line = f"compared with torch on {len(shown)} pictures, {trial}: {words}"
    return _Made(files, seconds, difference, [line], [])


def _make_int8(job: _Job, samples: Samples, asked: Calibration) -> _Made:
    start = time.perf_counter()
    form = cast(OnnxBased, job.form)
    made = write_int8(form, job.graph, job.wish, job.metadata, job.path, job.model, samples, asked)
    seconds = time.perf_counter() - start
    lines, beside = made.lines(samples), []
    if asked.report:
        beside = write_report(job.path, made.noise, made.summary(asked, samples))
        lines.append(f"report: {' and '.join(file.name for file in beside)} beside the file")
    return _Made(made.files, seconds, made.agreement, lines, beside)


def _check_wish(form: Format, wish: Wish, pictures: str | Path | None, calibration: Calibration) -> None:
    if wish.precision not in (*PRECISIONS, INT8):
        raise UserError(f"precision={wish.precision}: choose {' or '.join((*PRECISIONS, INT8))}")
    if wish.precision not in form.precisions:
        raise UserError(f"format={form.name} holds {' or '.join(form.precisions)}, not precision={wish.precision}")
    if wish.batch is None and not form.any_batch:
        raise UserError(f"format={form.name} has a fixed batch: give batch=1, or another number")
    if wish.resize and not form.any_size:
        raise UserError(f"format={form.name} cannot hold resize=true: leave it out and resize before")
    check_calibration(wish, pictures, calibration)


def _options(form: Format, wish: Wish, model: Any) -> GraphOptions:
    """How the graph is built, once it is known to go together with the model."""
    if wish.nms and form.keep is None and model.kind == "detection":
        raise UserError(f"format={form.name} cannot hold non-maximum suppression: give nms=false")
    return GraphOptions(
        layout=form.layout,
        keep=form.keep if wish.nms else None,
        resize=wish.resize,
        half=wish.precision == "fp16" and form.half_graph,
    )


def _load(checkpoint: str | Path, score_threshold: float | None) -> tuple[Any, Metadata]:
    model, metadata = load_model(checkpoint)
    if score_threshold is not None:
        if "score_threshold" not in metadata.model["decoder"] and not hasattr(model.decoder, "score_threshold"):
            raise UserError("score_threshold is for detectors: leave it out")
        metadata.model["decoder"]["score_threshold"] = score_threshold
        model, metadata = load_model(checkpoint, metadata.model)
    return model, metadata


def _pictures(checkpoint: str | Path, model: Any, source: str | Path | None) -> Pixels:
    if source is None:
        return drawn_pictures(model.resolution)
    from mnvision.prediction.predictor import load_predictor

    return pictures_of(source, load_predictor(checkpoint).preprocess)


def _samples(checkpoint: str | Path, source: str | Path | None, asked: Calibration) -> Samples:
    from mnvision.prediction.predictor import load_predictor

    assert source is not None
    return read_samples(source, load_predictor(checkpoint).preprocess, asked)


def _checked(path: Path, form: Format, model: Any, pictures: Pixels, wish: Wish) -> tuple[Difference, str]:
    """The difference of a file from its model, and what was tried.

    Raises:
        UserError: It is too large.
    """
    limits, side, total = LIMITS[wish.precision], max(model.resolution), Difference()
    file = FileModel(form.open(path))
    threshold = getattr(model.decoder, "score_threshold", 0.0)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        expected = model.predict(images)
        sizes = batches(len(images), wish.batch)
        for size in sizes:
            total.add(compare(_part(expected, size), file.predict(images[:size]), limits, side, threshold))
        trial = f"batch {wish.batch}" if wish.batch else f"batch {', '.join(map(str, sizes))}"
        if wish.resize:
            total.add(_other_size_difference(file, model, other_size(pictures), wish, threshold))
            trial += " and at another size"
    require(total, limits, side, f"the {form.name} file")
    return total, trial


def _other_size_difference(file: FileModel, model: Any, picture: Pixels, wish: Wish, threshold: float) -> Difference:
    """On a picture that the file has to stretch; the reference is the graph in torch."""
    layout = file.session.metadata.input["layout"]
    graph = build_graph(model, GraphOptions(layout, keep_greedily if wish.nms else None, resize=True))
    pixels = picture if layout == "nhwc" else picture.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.repeat(pixels, wish.batch or 1, axis=0))
    expected = dict(zip(graph.names, graph(images)))
    found = {name: torch.from_numpy(value) for name, value in file.session.run(images.numpy()).items()}
    limits, side = LIMITS[wish.precision], max(picture.shape[1:3])
    if "classes" in found:
        return compare(_detections(expected), _detections(found), limits, side, threshold)
    total = Difference()
    for name, value in expected.items():
        unit = side if name == "boxes" else 1
        total.add(compare(value / unit, found[name] / unit, limits, side))
    return total


def _detections(found: dict[str, Any]) -> Detections:
    return Detections(boxes=found["boxes"], scores=found["scores"], labels=found["classes"])


def _part(answer: Any, size: int) -> Any:
    return answer[:size] if isinstance(answer, torch.Tensor) else {key: value[:size] for key, value in answer.items()}
