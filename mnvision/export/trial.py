"""A written file in its own runtime beside the model in torch: what was tried, and how far they are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnvision.export.base import Format, Pixels, Wish
from mnvision.export.graph import GraphOptions, build_graph
from mnvision.export.heads import parts_of
from mnvision.export.parity import LIMITS, Difference, batches, compare, other_size, require
from mnvision.export.runtime import FileModel, MultiTaskFile, file_model
from mnvision.export.stretch import at_size
from mnvision.export.suppression import keep_greedily
from mnvision.types import Detections


def checked(path: Path, form: Format, model: Any, pictures: Pixels, wish: Wish) -> tuple[Difference, str]:
    """The difference of a file from its model, and what was tried.

    Args:
        path: The file.
        form: Its format.
        model: Of the checkpoint.
        pictures: ``(N, H, W, 3)`` uint8, of the size that the file takes.
        wish: What was asked of the file.

    Raises:
        UserError: It is too large.
    """
    reference = at_size(model, wish.size)
    limits, side, total = LIMITS[wish.precision], max(reference.resolution), Difference()
    file = file_model(form.open(path))
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        sizes = batches(len(images), wish.batch)
        trial = f"batch {wish.batch}" if wish.batch else f"batch {', '.join(map(str, sizes))}"
        for (_, one), (_, part) in zip(parts_of(reference), parts_of(file), strict=True):
            threshold, expected = getattr(one.decoder, "score_threshold", 0.0), one.predict(images)
            for size in sizes:
                total.add(compare(_part(expected, size), part.predict(images[:size]), limits, side, threshold))
        if wish.any_size:
            total.add(_other_size_difference(file, model, other_size(pictures), wish))
            trial += " and at another size"
    require(total, limits, side, f"the {form.name} file")
    return total, trial


def _other_size_difference(file: FileModel | MultiTaskFile, model: Any, picture: Pixels, wish: Wish) -> Difference:
    """On a picture that the file has to stretch; the reference is the graph in torch."""
    layout = file.session.metadata.input["layout"]
    graph = build_graph(model, GraphOptions(layout, keep_greedily if wish.nms else None, resize=True))
    pixels = picture if layout == "nhwc" else picture.transpose(0, 3, 1, 2)
    images = torch.from_numpy(np.repeat(pixels, wish.batch or 1, axis=0))
    expected = dict(zip(graph.names, graph(images)))
    found = {name: torch.from_numpy(value) for name, value in file.session.run(images.numpy()).items()}
    limits, side, total = LIMITS[wish.precision], max(picture.shape[1:3]), Difference()
    for (_, one), (_, part) in zip(parts_of(model), parts_of(file), strict=True):
        ours, theirs = part.own(expected), part.own(found)
        if "classes" in theirs:
            threshold = one.decoder.score_threshold
            total.add(compare(_detections(ours), _detections(theirs), limits, side, threshold))
            continue
        for name, value in ours.items():
            unit = side if name == "boxes" else 1
            total.add(compare(value / unit, theirs[name] / unit, limits, side))
    return total


def _detections(found: dict[str, Any]) -> Detections:
    return Detections(boxes=found["boxes"], scores=found["scores"], labels=found["classes"])


def _part(answer: Any, size: int) -> Any:
    return answer[:size] if isinstance(answer, torch.Tensor) else {key: value[:size] for key, value in answer.items()}
