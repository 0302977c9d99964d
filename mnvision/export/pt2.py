"""torch's own exported programs (.pt2): run by torch alone, without the code of the model."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnvision.errors import UserError
from mnvision.export.base import Format, Pixels, Session, Wish, check_outputs, one_line
from mnvision.export.graph import ExportGraph
from mnvision.export.metadata import KEY, FileMetadata
from mnvision.export.onnx import quiet_torch
from mnvision.export.suppression import KeepRule, NmsSettings

EXTRA_FILE = f"{KEY}.json"
MAX_SIDE = 16384
ROWS = 512
"""Candidates that are compared with all better ones at once."""
_DAMAGED = (RuntimeError, ValueError, KeyError, TypeError, OSError, AttributeError, AssertionError, EOFError)


class Pt2(Format):
    """A program of ``torch.export``, saved with its weights; a step on the way to other compilers, too."""

    name = "pt2"
    suffix = ".pt2"
    any_size: ClassVar[bool] = True

    @property
    def keep(self) -> KeepRule:
        """See :attr:`Format.keep`."""
        return keep_in_rounds

    def write(self, graph: ExportGraph, wish: Wish, metadata: FileMetadata, target: Path) -> list[Path]:
        """See :meth:`Format.write`."""
        program = exported_program(graph, wish)
        with quiet_torch():
            torch.export.save(program, target, extra_files={EXTRA_FILE: metadata.to_text()})
        return [target]

    @staticmethod
    def open(path: Path) -> Pt2Session:
        """See :meth:`Format.open`."""
        return Pt2Session(path)


class Pt2Session(Session):
    """A program in torch.

    Args:
        path: The file.

    Raises:
        UserError: See :meth:`Format.open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        extra = {EXTRA_FILE: ""}
        try:
            damaged = zipfile.ZipFile(path).testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} does not fit")
            with quiet_torch():
                program = torch.export.load(path, extra_files=extra)
                self._module: Any = program.module()
        except (*_DAMAGED, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a usable program of torch.export ({one_line(error)})") from None
        text: Any = extra[EXTRA_FILE]
        self.metadata = FileMetadata.from_text(text.decode() if isinstance(text, bytes) else text, path)
        self._names = list(self.metadata.outputs)
        check_outputs(path, self.metadata, self._names[: len(program.graph_signature.user_outputs)])

    @torch.inference_mode()
    def run(self, images: Pixels) -> dict[str, NDArray[Any]]:
        """See :meth:`Session.run`."""
        try:
            found = self._module(torch.from_numpy(np.ascontiguousarray(images)))
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"{self.path}: torch failed on {images.shape} ({one_line(error)})") from None
        return {name: value.numpy() for name, value in zip(self._names, found)}


def exported_program(graph: ExportGraph, wish: Wish) -> torch.export.ExportedProgram:
    """The graph as torch's exporter sees it.

    Raises:
        UserError: It cannot be traced.
    """
    axes: dict[int, Any] = {} if wish.batch else {0: torch.export.Dim("batch", min=1, max=65536)}
    if wish.any_size:
        axes |= {axis: torch.export.Dim(name, min=1, max=MAX_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    try:
        with quiet_torch(), torch.no_grad():
            return torch.export.export(
                graph, (graph.example(wish.batch or 2),), dynamic_shapes=(axes,) if axes else None
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torch.export cannot trace this model ({one_line(error)})") from None


def keep_in_rounds(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, settings: NmsSettings) -> Tensor:
    """The :data:`~mnvision.export.suppression.KeepRule` in plain torch operators, with a loop that can be traced.

    A candidate is kept unless a better, kept one of its class overlaps it too much. Starting from "all kept", that
    rule is repeated until nothing changes, which is the greedy result (see ``mnvision/boxes/nms.py``). All pairs of
    candidates are compared, which takes M x M numbers per image.
    """
    from torch._higher_order_ops import while_loop

    total = scores.shape[1]
    # As numbers: a product with those kept says which are beaten, six times as fast as a look at every pair.
    beaten_by = _by_better_ones(boxes, scores, labels, settings.nms_iou)

    def unsettled(kept: Tensor, before: Tensor) -> Tensor:
        return (kept != before).any()

    def again(kept: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        beaten = torch.bmm(beaten_by, kept.to(beaten_by.dtype)[..., None])[..., 0] > 0
        return ~beaten, kept.clone()

    every = torch.ones_like(scores, dtype=torch.bool)
    kept: Tensor
    kept, _ = while_loop(unsettled, again, (every, torch.zeros_like(every)))
    if settings.max_per_class >= min(total, settings.max_detections):
        return kept  # no class can have too many among those that are answered
    alike = (labels[:, :, None] == labels[:, None, :]) & (scores > 0)[:, None, :]
    better = torch.ones(total, total, dtype=torch.bool, device=scores.device).tril(-1)
    return kept & ((alike & better & kept[:, None, :]).sum(2) < settings.max_per_class)


def _by_better_ones(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """``(B, M, M)`` float32, 1 where a candidate overlaps a better one of its class by more than ``iou``, else 0.

    A few rows at a time, which stay in the processor's cache, and only as far as there are better ones.
    """
    total, parts = scores.shape[1], []
    for start in range(0, total, ROWS):
        end = min(start + ROWS, total)
        alike = (labels[:, start:end, None] == labels[:, None, :end]) & (scores > 0)[:, None, :end]
        better = torch.ones(end - start, end, dtype=torch.bool, device=scores.device).tril(start - 1)
        beaten = alike & better & (_pairwise_iou(boxes[:, start:end], boxes[:, :end]) > iou)
        parts.append(torch.nn.functional.pad(beaten.float(), (0, total - end)))
    return torch.cat(parts, dim=1)


def _pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """``(B, N, M)``: IoU of all pairs of ``(B, N, 4)`` and ``(B, M, 4)``; 0 where both have no area."""
    one, two = first[:, :, None].unbind(-1), second[:, None].unbind(-1)
    common = _overlap(one[0], one[2], two[0], two[2]) * _overlap(one[1], one[3], two[1], two[3])
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, two)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-12)


def _overlap(low: Tensor, high: Tensor, other_low: Tensor, other_high: Tensor) -> Tensor:
    """What intervals have in common."""
    return (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(min=0)
