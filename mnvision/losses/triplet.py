"""Triplet loss: an anchor lies closer to pictures of its own identity than to those of others, by a margin.

Triplets are chosen within the batch, for all anchors at once. Sources: FaceNet,
https://arxiv.org/abs/1503.03832, section 3; In Defense of the Triplet Loss, https://arxiv.org/abs/1703.07737.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError

_SMALL = 1e-12  # below it a distance has no usable slope


class Triplets(NamedTuple):
    """Positions in the batch, each ``(T,)`` int64."""

    anchors: Tensor
    positives: Tensor
    negatives: Tensor


class TripletLoss(nn.Module):
    """Loss of mined triplets of L2-normalised embeddings, in float32 also inside autocast.

    - ``mining="semi_hard"`` (FaceNet, section 3.2): for every pair of anchor and positive the hardest negative
      that is farther than the positive. The mean runs over the triplets within the margin.
    - ``mining="batch_hard"`` (Hermans et al., equation 5): for every anchor its farthest positive and its
      nearest negative. The mean runs over all anchors.

    Batches should hold several pictures of each of several identities (P x K sampling); pictures whose identity
    is not known (-1) take no part. Under DDP each process mines its own batch.

    Args:
        mining: See above.
        margin: Of the distance, above 0; FaceNet's 0.2 belongs to squared distances.
        squared: Squared Euclidean distances, 0 to 4 (FaceNet), else Euclidean ones, 0 to 2 (Hermans et al.).
        soft_margin: ``log(1 + exp(positive - negative))`` instead of ``max(positive - negative + margin, 0)``
            (Hermans et al., section 2); all triplets count then, and the margin only selects nothing.
        fallback: "semi_hard" only, where no negative is farther than the positive: "easiest" takes the farthest
            one there is, "skip" leaves the pair out.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self,
        mining: Literal["semi_hard", "batch_hard"] = "semi_hard",
        margin: float = 0.2,
        squared: bool = True,
        soft_margin: bool = False,
        fallback: Literal["easiest", "skip"] = "easiest",
    ) -> None:
        super().__init__()
        if mining not in ("semi_hard", "batch_hard"):
            raise UserError(f"loss.mining={mining!r}: choose semi_hard or batch_hard")
        if fallback not in ("easiest", "skip"):
            raise UserError(f"loss.fallback={fallback!r}: choose easiest or skip")
        if not (math.isfinite(margin) and margin > 0):
            raise UserError(f"loss.margin={margin}: give a number above 0, such as 0.2")
        self.mining = mining
        self.margin = margin
        self.squared = squared
        self.soft_margin = soft_margin
        self.fallback = fallback

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            embeddings: ``(B, D)``, any float type, of any length.
            labels: ``(B,)`` int64; ``-1`` where the identity is not known.

        Returns:
            Float32 scalars: ``loss``, 0 if the batch holds no triplet; ``triplets``, how many were chosen, and
            ``active_triplets``, how many of them are within the margin; ``positive_distance`` and
            ``negative_distance``, means over all pairs of one identity and of two, 0 where there is none.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            distances = pairwise_distances(F.normalize(embeddings.float(), dim=1), self.squared)
            same, different = pair_masks(labels)
            with torch.no_grad():
                triplets = self.mine(distances, same, different)
                statistics = {
                    "positive_distance": _masked_mean(distances, same),
                    "negative_distance": _masked_mean(distances, different),
                }
            positive = distances[triplets.anchors, triplets.positives]
            gaps = positive - distances[triplets.anchors, triplets.negatives]
            active = gaps > -self.margin
            losses = F.softplus(gaps) if self.soft_margin else (gaps + self.margin).clamp(min=0)
            counted = active.sum() if self.mining == "semi_hard" and not self.soft_margin else len(gaps)
            loss = losses.sum() / max(int(counted), 1)
            counts = {"triplets": torch.tensor(float(len(gaps))), "active_triplets": active.sum().float()}
            return {"loss": loss, **counts, **statistics}

    def mine(self, distances: Tensor, same: Tensor, different: Tensor) -> Triplets:
        """Triplets of one batch, see the class.

        Args:
            distances: ``(B, B)`` between all pictures.
            same: ``(B, B)`` bool, pairs of one identity, a picture with itself not among them.
            different: ``(B, B)`` bool, pairs of two identities.
        """
        if self.mining == "batch_hard":
            return batch_hard_triplets(distances, same, different)
        return semi_hard_triplets(distances, same, different, self.fallback == "easiest")


def pairwise_distances(unit: Tensor, squared: bool) -> Tensor:
    """``(B, B)`` Euclidean distances of embeddings ``(B, D)`` of length one, squared or not."""
    distances = (2 - 2 * unit @ unit.T).clamp(min=0)
    return distances if squared else distances.clamp(min=_SMALL).sqrt()


def pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """``(B, B)`` bool: pairs of one identity without the diagonal, and pairs of two; none with a label of -1."""
    known = (labels >= 0)[:, None] & (labels >= 0)
    equal = labels[:, None] == labels
    return (known & equal).fill_diagonal_(False), known & ~equal


def batch_hard_triplets(distances: Tensor, same: Tensor, different: Tensor) -> Triplets:
    """For every anchor that has both: the farthest positive and the nearest negative."""
    anchors = (same.any(1) & different.any(1)).nonzero().squeeze(1)
    positives = distances.masked_fill(~same, -torch.inf).argmax(1)
    negatives = distances.masked_fill(~different, torch.inf).argmin(1)
    return Triplets(anchors, positives[anchors], negatives[anchors])


def semi_hard_triplets(distances: Tensor, same: Tensor, different: Tensor, fallback: bool = True) -> Triplets:
    """For every pair of anchor and positive: the nearest negative that is farther than the positive.

    Args:
        distances: ``(B, B)``.
        same: ``(B, B)`` bool, pairs of anchor and positive.
        different: ``(B, B)`` bool, pairs of anchor and negative.
        fallback: Take the farthest negative where none is farther than the positive, else leave the pair out.
    """
    # Each anchor's negatives are sorted once, and its positives find their places among them by bisection.
    ordered, order = distances.masked_fill(~different, torch.inf).sort(dim=1)
    # As many columns as the anchor with most positives needs; what fills up the rows of others is masked.
    columns = same.float().topk(int(same.sum(1).amax()), dim=1).indices
    place = torch.searchsorted(ordered, distances.gather(1, columns), right=True)
    count = different.sum(1, keepdim=True)
    valid = same.gather(1, columns) & (count > 0 if fallback else place < count)
    place = torch.minimum(place, (count - 1).clamp(min=0))
    anchors, column = valid.nonzero(as_tuple=True)
    return Triplets(anchors, columns[anchors, column], order[anchors, place[anchors, column]])


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)
