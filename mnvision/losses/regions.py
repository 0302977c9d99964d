"""The training loss of Faster R-CNN: which anchors and proposals learn what, and the four parts of their loss.

Sources: Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.2; the TensorFlow Object Detection API
(``faster_rcnn_meta_arch.py``, ``faster_rcnn_inception_v2_coco.config``), whose counts, thresholds and weights are the
defaults. From torchvision is that the objects themselves are among the proposals in training, so that the classifier
has positives from the first step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.boxes.coder import encode_boxes
from mnvision.boxes.matcher import BACKGROUND, match_default_boxes
from mnvision.boxes.sampling import sample_balanced
from mnvision.errors import UserError
from mnvision.types import DetectionTargets, Proposals

# Of the streams of random numbers that choose proposals, so that they are not those that choose anchors.
SECOND_STREAM = 0x5DEECE66D


@dataclass(frozen=True)
class Regions:
    """Boxes that the classifier learns from; R of the whole batch, positives first.

    Attributes:
        image: ``(R,)`` int64: position in the batch.
        row: ``(R,)`` int64: position among the candidates of that image.
        boxes: ``(R, 4)`` float32, xyxy in pixels of the network's input.
        columns: ``(R,)`` int64: column of the logits, 0 for background, ``1 .. K`` for classes.
        truth: ``(P, 4)`` float32: true boxes of the P positives.
    """

    image: Tensor
    row: Tensor
    boxes: Tensor
    columns: Tensor
    truth: Tensor


class RegionLoss(nn.Module):
    """Loss of the proposal network and of the classifier of its proposals, without a loop over images, in float32.

    Anchors: positive from an IoU of ``rpn_iou[1]`` and at least one per object, negative below ``rpn_iou[0]``, neither
    in between. Proposals: positive from ``region_iou``, else negative. What lies inside a crowd region is neither. Of
    both kinds a random, balanced choice learns: cross-entropy on all of it and smooth L1 (beta 1) of the encoded
    offsets on its positives, both divided by the number of the choice in the whole batch.

    Args:
        rpn_count: Anchors of an image that learn.
        rpn_positive_share: Most of them that are positive.
        rpn_iou: IoU below which an anchor is negative, and from which it is positive.
        region_count: Proposals of an image that learn.
        region_positive_share: Most of them that are positive.
        region_iou: IoU from which a proposal is positive, in (0, 1].
        box_weight: Weight of both localisation losses, not negative.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self,
        rpn_count: int = 256,
        rpn_positive_share: float = 0.5,
        rpn_iou: tuple[float, float] = (0.3, 0.7),
        region_count: int = 64,
        region_positive_share: float = 0.25,
        region_iou: float = 0.5,
        box_weight: float = 2.0,
    ) -> None:
        super().__init__()
        for name, count in (("rpn_count", rpn_count), ("region_count", region_count)):
            if type(count) is not int or count < 1:
                raise UserError(f"{name} of the loss must be a whole number >= 1, got {count!r}")
        shares = {"rpn_positive_share": rpn_positive_share, "region_positive_share": region_positive_share}
        for name, share in shares.items():
            if not 0 < share <= 1:
                raise UserError(f"{name} of the loss must lie in (0, 1], got {share}")
        if len(rpn_iou) != 2 or not 0 < rpn_iou[0] <= rpn_iou[1] <= 1:
            raise UserError(f"rpn_iou of the loss must be two numbers, 0 < negative <= positive <= 1, got {rpn_iou}")
        if not 0 < region_iou <= 1:
            raise UserError(f"region_iou of the loss must lie in (0, 1], got {region_iou}")
        if not (math.isfinite(box_weight) and box_weight >= 0):
            raise UserError(f"box_weight of the loss must be a number >= 0, got {box_weight}")
        self.rpn_count, self.rpn_positive_share, self.rpn_iou = rpn_count, rpn_positive_share, rpn_iou
        self.region_count, self.region_positive_share = region_count, region_positive_share
        self.region_iou, self.box_weight = region_iou, box_weight

    @torch.no_grad()
    def choose(self, proposals: Proposals, targets: DetectionTargets, streams: Tensor, with_truth: bool) -> Regions:
        """The boxes that the classifier learns from.

        Args:
            proposals: Of the proposal network.
            targets: Padded ground truth.
            streams: ``(B,)`` from :func:`~mnvision.boxes.sampling.random_streams`.
            with_truth: Let the objects be among the candidates, behind the proposals.
        """
        candidates, real = proposals["proposals"], proposals["proposal_scores"] > 0
        if with_truth:
            candidates = torch.cat([candidates, targets["boxes"].float()], dim=1)
            real = torch.cat([real, (targets["labels"] >= 0) & ~targets["crowd"]], dim=1)
        matched = match_default_boxes(targets, candidates, self.region_iou, force=False)
        positive, negative = real & (matched >= 0), real & (matched == BACKGROUND)
        share = self.region_positive_share
        image, row = sample_balanced(positive, negative, streams ^ SECOND_STREAM, self.region_count, share)
        learned = matched[image, row]
        objects = learned >= 0
        columns = torch.zeros_like(learned)
        columns[objects] = targets["labels"][image[objects], learned[objects]] + 1
        truth = targets["boxes"][image[objects], learned[objects]].float()
        return Regions(image, row, candidates[image, row], columns, truth)

    def forward(
        self,
        proposals: Proposals,
        regions: Regions,
        logits: Tensor,
        offsets: Tensor,
        targets: DetectionTargets,
        anchors: Tensor,
        streams: Tensor,
    ) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            proposals: Of the proposal network, any float type.
            regions: From :meth:`choose`.
            logits: ``(R, K + 1)`` of those regions.
            offsets: ``(R, K, 4)`` of those regions.
            targets: Padded ground truth; images without objects and crowd regions are welcome.
            anchors: ``(A, 4)`` float32 xyxy in pixels of the network's input.
            streams: As in :meth:`choose`.

        Returns:
            ``loss`` = ``loss_rpn_cls`` + ``loss_cls`` + ``box_weight`` * (``loss_rpn_box`` + ``loss_box``), scalars,
            float32.

        Raises:
            UserError: A label outside ``0 .. K-1`` (other than the padding's -1).
        """
        _check_labels(targets["labels"], offsets.shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            rpn_cls, rpn_box = self._proposal_losses(proposals, targets, anchors, streams)
            count = max(len(logits), 1)
            cls = F.cross_entropy(logits.float(), regions.columns, reduction="sum") / count
            positives = torch.arange(len(regions.truth), device=logits.device)
            chosen = offsets[positives, regions.columns[positives] - 1].float()
            box = _offset_loss(chosen, regions.truth, regions.boxes[positives]) / count
            loss = rpn_cls + cls + self.box_weight * (rpn_box + box)
        return {"loss": loss, "loss_rpn_cls": rpn_cls, "loss_rpn_box": rpn_box, "loss_cls": cls, "loss_box": box}

    def _proposal_losses(
        self, proposals: Proposals, targets: DetectionTargets, anchors: Tensor, streams: Tensor
    ) -> tuple[Tensor, Tensor]:
        low, high = self.rpn_iou
        matched = match_default_boxes(targets, anchors, high, background_threshold=low)
        image, index = sample_balanced(
            matched >= 0, matched == BACKGROUND, streams, self.rpn_count, self.rpn_positive_share
        )
        count = max(len(image), 1)
        objects = matched[image, index] >= 0
        logits = proposals["objectness"][image, index].float()
        cls = F.binary_cross_entropy_with_logits(logits, objects.float(), reduction="sum") / count
        image, index = image[objects], index[objects]
        truth = targets["boxes"][image, matched[image, index]].float()
        offsets = proposals["anchor_offsets"][image, index].float()
        return cls, _offset_loss(offsets, truth, anchors[index]) / count


def _offset_loss(offsets: Tensor, truth: Tensor, boxes: Tensor) -> Tensor:
    """Sum over ``(P, 4)`` offsets of smooth L1 towards those that move ``boxes`` onto ``truth``."""
    return F.smooth_l1_loss(offsets, encode_boxes(truth, boxes), reduction="sum")


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.numel() and int(labels.max()) >= num_classes:
        raise UserError(
            f"label {int(labels.max())} in the targets, but the head has {num_classes} classes (0 is the first): build "
            "the model with the data's class count"
        )
