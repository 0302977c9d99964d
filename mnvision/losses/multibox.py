"""The training loss of SSD: matching, classification with hard negatives or focal weights, localisation.

Sources: SSD, https://arxiv.org/abs/1512.02325, section 2.2; the TensorFlow Object Detection API
(``ssd_mobilenet_v1_coco.config`` and the ``coco14_sync`` configs); focal loss,
https://arxiv.org/abs/1708.02002.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss

from mnvision.boxes.coder import decode_boxes, encode_boxes
from mnvision.boxes.matcher import BACKGROUND, match_default_boxes
from mnvision.errors import UserError
from mnvision.types import DetectionTargets, SSDOutputs


class MultiBoxLoss(nn.Module):
    """Classification plus localisation loss of a batch, without a loop over images and in float32.

    Classification:

    - ``"softmax"``: cross-entropy over K + 1 columns on the positives and the hardest negatives (SSD paper).
    - ``"sigmoid"``: binary cross-entropy over the K class columns, on the same selection by its own values.
      TF's ``ssd_mobilenet_v1_coco.config`` mines by a non-maximum suppression of the losses at IoU 0.99
      among at most 3000 boxes; the plain choice of the highest losses made here differs only where two
      default boxes decode to practically the same box. TF also trains the background column; here, as its
      score is never used, it takes no part.
    - ``"focal"``: sigmoid focal loss on every default box that is not ignored. The defaults are those of TF's
      coco14_sync SSD configs (alpha 0.75, gamma 2); the paper and TF's FPN config use alpha 0.25.

    Hard negatives: per image, ``neg_pos_ratio`` times its positives but at least ``min_negatives`` (neither
    paper nor TF has that floor; without it images without objects train nothing).

    Localisation, on positives: ``"smooth_l1"`` (beta 1) of the encoded offsets, or ``"giou"`` / ``"diou"``
    of the decoded boxes. Both sums are divided by the number of matched default boxes of the whole batch,
    at least 1.

    Args:
        classification: See above; the decoder must be built with the same word.
        localization: See above.
        neg_pos_ratio: Negatives per positive, not negative.
        min_negatives: Least number of negatives per image, not negative.
        box_weight: Weight of the localisation loss in the sum, not negative.
        focal_alpha: Weight of positives, 1 minus that of negatives; in (0, 1).
        focal_gamma: Exponent of the focal factor, not negative.
        iou_threshold: Least IoU of an unforced match, in (0, 1].

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self,
        classification: Literal["softmax", "sigmoid", "focal"] = "softmax",
        localization: Literal["smooth_l1", "giou", "diou"] = "smooth_l1",
        neg_pos_ratio: float = 3.0,
        min_negatives: int = 3,
        box_weight: float = 1.0,
        focal_alpha: float = 0.75,
        focal_gamma: float = 2.0,
        iou_threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if classification not in ("softmax", "sigmoid", "focal"):
            raise UserError(f"classification must be softmax, sigmoid or focal, got {classification!r}")
        if localization not in ("smooth_l1", "giou", "diou"):
            raise UserError(f"localization must be smooth_l1, giou or diou, got {localization!r}")
        for name, value in (
            ("neg_pos_ratio", neg_pos_ratio),
            ("min_negatives", min_negatives),
            ("box_weight", box_weight),
            ("focal_gamma", focal_gamma),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} of the loss must be a number >= 0, got {value}")
        if not 0 < focal_alpha < 1:
            raise UserError(f"focal_alpha must lie between 0 and 1, got {focal_alpha}")
        if not 0 < iou_threshold <= 1:
            raise UserError(f"iou_threshold must lie in (0, 1], got {iou_threshold}")
        self.classification = classification
        self.localization = localization
        self.neg_pos_ratio = neg_pos_ratio
        self.min_negatives = min_negatives
        self.box_weight = box_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.iou_threshold = iou_threshold

    def forward(self, outputs: SSDOutputs, targets: DetectionTargets, default_boxes: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            outputs: Raw outputs of the head, any float type.
            targets: Padded ground truth; images without objects and crowd regions are welcome.
            default_boxes: ``(A, 4)`` float32 xyxy in pixels of the network's input.

        Returns:
            ``loss`` = ``loss_cls`` + ``box_weight`` * ``loss_box``, scalars, float32.

        Raises:
            UserError: A label outside ``0 .. K-1`` (other than the padding's -1), or a number of outputs
                that is not that of the default boxes.
        """
        logits, offsets = outputs["cls_logits"], outputs["box_offsets"]
        _check_shapes(logits, targets["labels"], default_boxes)
        with torch.autocast(logits.device.type, enabled=False):
            matched = match_default_boxes(targets, default_boxes, self.iou_threshold)
            image, default_index = (matched >= 0).nonzero(as_tuple=True)
            object_index = matched[image, default_index]
            labels = targets["labels"][image, object_index]
            normalizer = max(len(image), 1)
            truth = targets["boxes"][image, object_index].float()
            loss_box = self._box_loss(offsets[image, default_index], truth, default_boxes[default_index])
            loss_box = loss_box / normalizer
            if self.classification == "focal":
                loss_cls = self._focal_loss(logits, matched, image, default_index, labels) / normalizer
            else:
                loss_cls = self._mined_loss(logits, matched, image, default_index, labels) / normalizer
            return {"loss": loss_cls + self.box_weight * loss_box, "loss_cls": loss_cls, "loss_box": loss_box}

    def _box_loss(self, offsets: Tensor, truth: Tensor, default_boxes: Tensor) -> Tensor:
        """Sum over the P positives: ``(P, 4)`` offsets, true boxes and default boxes."""
        if self.localization == "smooth_l1":
            return F.smooth_l1_loss(offsets.float(), encode_boxes(truth, default_boxes), reduction="sum")
        boxes = decode_boxes(offsets, default_boxes)
        iou_loss = generalized_box_iou_loss if self.localization == "giou" else distance_box_iou_loss
        return iou_loss(boxes, truth, reduction="sum")

    def _mined_loss(
        self, logits: Tensor, matched: Tensor, image: Tensor, default_index: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum over positives and hard negatives; the gradient touches the rows of those only."""
        with torch.no_grad():
            negative_image, negative_index = self._hard_negatives(logits, matched)
        image = torch.cat([image, negative_image])
        default_index = torch.cat([default_index, negative_index])
        columns = torch.cat([labels + 1, labels.new_zeros(len(negative_image))])
        rows = logits[image, default_index].float()
        if self.classification == "softmax":
            return F.cross_entropy(rows, columns, reduction="sum")
        one_hot = F.one_hot(columns, rows.shape[1])[:, 1:].to(rows.dtype)
        return F.binary_cross_entropy_with_logits(rows[:, 1:], one_hot, reduction="sum")

    def _hard_negatives(self, logits: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
        """Image and default box index of the highest background losses."""
        if self.classification == "softmax":
            # One fused pass over the logits, unlike logsumexp's four.
            loss = -logits.float().log_softmax(dim=-1)[..., 0]
        else:
            loss = F.softplus(logits[..., 1:].float()).sum(dim=-1)
        negative = matched == BACKGROUND
        wanted = (self.neg_pos_ratio * (matched >= 0).sum(dim=1)).floor().long().clamp(min=self.min_negatives)
        wanted = torch.minimum(wanted, negative.sum(dim=1))
        order = loss.masked_fill(~negative, -math.inf).topk(int(wanted.max()), dim=1).indices
        image, rank = (torch.arange(order.shape[1], device=order.device) < wanted[:, None]).nonzero(as_tuple=True)
        return image, order[image, rank]

    def _focal_loss(
        self, logits: Tensor, matched: Tensor, image: Tensor, default_index: Tensor, labels: Tensor
    ) -> Tensor:
        """Sum over all columns as if all were negative, then corrected at the positives' own columns."""
        counted = (matched >= BACKGROUND)[..., None]
        class_logits = logits[..., 1:].float()
        loss = ((1 - self.focal_alpha) * self._focal_term(class_logits) * counted).sum()
        positive = class_logits[image, default_index, labels]
        correction = self.focal_alpha * self._focal_term(-positive)
        return loss + (correction - (1 - self.focal_alpha) * self._focal_term(positive)).sum()

    def _focal_term(self, logits: Tensor) -> Tensor:
        """Unweighted focal loss of negatives; of positives when given the negated logits."""
        cross_entropy = F.softplus(logits)
        # sigmoid(x) ** gamma by its logarithm: its gradient stays finite where the sigmoid rounds to zero.
        return (self.focal_gamma * (logits - cross_entropy)).exp() * cross_entropy


def _check_shapes(logits: Tensor, labels: Tensor, default_boxes: Tensor) -> None:
    if logits.shape[1] != len(default_boxes):
        raise UserError(f"the head gives {logits.shape[1]} outputs for {len(default_boxes)} default boxes")
    if labels.numel() and int(labels.max()) >= logits.shape[2] - 1:
        raise UserError(
            f"label {int(labels.max())} in the targets, but the head has {logits.shape[2] - 1} classes "
            "(0 is the first): build the model with the data's class count"
        )
