"""Softmax over identities with a margin: ArcFace, CosFace and ArcFace with several centres per identity.

All compare an embedding with one direction per identity by the cosine of their angle, make the true identity
harder by a margin, and take the cross-entropy of the scaled cosines. Sources: ArcFace,
https://arxiv.org/abs/1801.07698; CosFace, https://arxiv.org/abs/1801.09414; Sub-center ArcFace, ECCV 2020
(Deng, Guo, Liu, Gong, Zafeiriou).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.losses.sharding import Shard, gather_rows, gather_with_gradient, shard_of, sharded_cross_entropy

_SMALL = 1e-7  # keeps the root in a sine away from zero, where its slope has no end


class MarginSoftmax(nn.Module, ABC):
    """What the margin losses share: centres, cosines, cross-entropy; all in float32, also inside autocast.

    The centres are parameters of the loss: trained with the model, saved for resuming, not shipped with it.

    Args:
        num_identities: C, identities of the training data, at least 2.
        dim: D, length of an embedding.
        margin: See the loss; not negative.
        scale: Factor of the cosines, above 0 (s in the papers).
        centres_per_identity: Directions that stand for one identity; its cosine is that of the closest.

    Attributes:
        centres: ``(C * centres_per_identity, D)`` float32, of any length, those of one identity in consecutive
            rows; only the rows of this process once :meth:`shard_over` was called.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(self, num_identities: int, dim: int, margin: float, scale: float, centres_per_identity: int) -> None:
        super().__init__()
        if num_identities < 2:
            raise UserError(f"a margin loss needs at least 2 identities to tell apart, the data have {num_identities}")
        if not (math.isfinite(margin) and margin >= 0):
            raise UserError(f"loss.margin={margin}: give a number of 0 or more")
        if not (math.isfinite(scale) and scale > 0):
            raise UserError(f"loss.scale={scale}: give a number above 0, such as 64 (30 where identities are few)")
        if centres_per_identity < 1:
            raise UserError(f"loss.sub_centres={centres_per_identity}: give 1 or more")
        self.num_identities = num_identities
        self.margin = margin
        self.scale = scale
        self.centres_per_identity = centres_per_identity
        self.shard: Shard | None = None
        self.centres = nn.Parameter(torch.empty(num_identities * centres_per_identity, dim))
        nn.init.normal_(self.centres, std=0.01)

    def shard_over(self, rank: int, world_size: int) -> None:
        """Keep only the rows of this process; its losses then run over the batches of all processes at once.

        Call it in every process before the optimizer is made. DDP must be told to leave ``centres`` alone, and
        must average the gradients of the model, as it does by default.

        Raises:
            UserError: There are fewer identities than processes.
        """
        if world_size > self.num_identities:
            raise UserError(f"{self.num_identities} identities cannot be spread over {world_size} processes: use fewer")
        self.shard = shard_of(rank, world_size, self.num_identities)
        self.centres = nn.Parameter(self.own_rows(self.centres.detach()).clone())

    def own_rows(self, rows: Tensor) -> Tensor:
        """The rows of this process out of those of all identities."""
        if self.shard is None:
            return rows
        return rows[self.shard.first * self.centres_per_identity : self.shard.end * self.centres_per_identity]

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            embeddings: ``(B, D)``, any float type, of any length.
            labels: ``(B,)`` int64, ``0 .. C-1``; rows of ``-1`` (identity not known) take no part.

        Returns:
            ``loss``: float32 scalar, mean over the rows with a label; 0 if there are none. Sharded: over the
            rows of all processes, which must all give equally many.

        Raises:
            UserError: A label of C or more.
        """
        if labels.numel() and int(labels.max()) >= self.num_identities:
            raise UserError(
                f"identity {int(labels.max())} in a batch, but the loss was built for {self.num_identities} (0 is the "
                "first): build it with the data's number of identities"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.float(), dim=1)
            if self.shard is not None:
                unit, labels = gather_with_gradient(unit, self.shard), gather_rows(labels, self.shard)
            known = labels >= 0
            unit, labels = unit[known], labels[known]
            if not len(labels):
                return {"loss": unit.sum() + 0 * self.centres.sum()}
            cosines = self._cosines(unit)
            if self.shard is None:
                return {"loss": F.cross_entropy(self._logits(cosines, labels), labels)}
            inside = (labels >= self.shard.first) & (labels < self.shard.end)
            own = torch.where(inside, labels - self.shard.first, -1)
            return {"loss": sharded_cross_entropy(self._logits(cosines, own), own)}

    def _cosines(self, unit: Tensor) -> Tensor:
        """``(B, C_own)`` from embeddings ``(B, D)`` of length one."""
        cosines = unit @ F.normalize(self.centres, dim=1).T
        if self.centres_per_identity == 1:
            return cosines
        return cosines.unflatten(1, (-1, self.centres_per_identity)).amax(dim=2)

    def _logits(self, cosines: Tensor, labels: Tensor) -> Tensor:
        """Scaled cosines, those of the true identities made harder; labels of -1 have none here."""
        rows = (labels >= 0).nonzero().squeeze(1)
        columns = labels[rows]
        harder = self.harden(cosines[rows, columns])
        return self.scale * cosines.index_put((rows, columns), harder)

    @abstractmethod
    def harden(self, cosines: Tensor) -> Tensor:
        """Cosines ``(B,)`` to the true identities, less the margin; still rising with the cosine."""


class ArcFace(MarginSoftmax):
    """Additive angular margin: cos(theta + margin) for the true identity (ArcFace, equation 3).

    Where theta + margin would pass 180 degrees and the cosine rise again, it goes on as
    ``cos(theta) - margin * sin(margin)``, as in the authors' code (insightface).

    Args:
        num_identities: See :class:`MarginSoftmax`.
        dim: See :class:`MarginSoftmax`.
        margin: In radians, below pi; the paper's 0.5.
        scale: See :class:`MarginSoftmax`; the paper's 64.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(self, num_identities: int, dim: int, margin: float = 0.5, scale: float = 64.0) -> None:
        super().__init__(num_identities, dim, _checked_angle(margin), scale, 1)

    def harden(self, cosines: Tensor) -> Tensor:
        """See :meth:`MarginSoftmax.harden`."""
        return _with_angle(cosines, self.margin)


class CosFace(MarginSoftmax):
    """Additive cosine margin: cos(theta) - margin for the true identity (CosFace, equation 4).

    Args:
        num_identities: See :class:`MarginSoftmax`.
        dim: See :class:`MarginSoftmax`.
        margin: Of cosine; the paper's 0.35.
        scale: See :class:`MarginSoftmax`; the paper's 64.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(self, num_identities: int, dim: int, margin: float = 0.35, scale: float = 64.0) -> None:
        super().__init__(num_identities, dim, margin, scale, 1)

    def harden(self, cosines: Tensor) -> Tensor:
        """See :meth:`MarginSoftmax.harden`."""
        return cosines - self.margin


class SubCentreArcFace(MarginSoftmax):
    """ArcFace where each identity has several centres and the closest one counts (Sub-center ArcFace, section 3.2).

    Wrongly labelled pictures gather at centres of their own instead of pulling at the right one.

    Args:
        num_identities: See :class:`MarginSoftmax`.
        dim: See :class:`MarginSoftmax`.
        margin: In radians, below pi; the paper's 0.5.
        scale: See :class:`MarginSoftmax`; the paper's 64.
        sub_centres: Per identity, at least 1; the paper's 3.

    Raises:
        UserError: An argument outside its range.
    """

    def __init__(
        self, num_identities: int, dim: int, margin: float = 0.5, scale: float = 64.0, sub_centres: int = 3
    ) -> None:
        super().__init__(num_identities, dim, _checked_angle(margin), scale, sub_centres)

    def harden(self, cosines: Tensor) -> Tensor:
        """See :meth:`MarginSoftmax.harden`."""
        return _with_angle(cosines, self.margin)


def _checked_angle(margin: float) -> float:
    if not margin < math.pi:
        raise UserError(f"loss.margin={margin}: an angle in radians below pi, such as 0.5 (28.6 degrees)")
    return margin


def _with_angle(cosines: Tensor, margin: float) -> Tensor:
    """Cosine of the angle plus ``margin`` radians."""
    sines = (1 - cosines.square()).clamp(min=_SMALL).sqrt()
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > -math.cos(margin), shifted, cosines - margin * math.sin(margin))
