"""How much of the sphere a set of embeddings uses, to notice when training has thrown them all together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# Nearer than this on average, or on fewer axes, people cannot be told apart any more. Trained networks lie near
# cosine 0 between different people.
COLLAPSED_COSINE = 0.9
COLLAPSED_RANK = 1.5
RECOVERED_COSINE = 0.8
RECOVERED_RANK = 2.0
# So few pictures may be alike by chance.
_FEWEST = 8


@dataclass(frozen=True)
class EmbeddingSpread:
    """Statistics of N embeddings of length one; NaN where an embedding is.

    Attributes:
        mean_cosine: Mean cosine over all pairs of different identities, in [-1, 1]; near 0 if the sphere is used
            evenly, 1 if all lie in one point. NaN if there is no such pair.
        effective_rank: Exponential of the entropy of the eigenvalues of the second-moment matrix, as shares of
            their sum: from 1 (a line) to min(N, D) (Roy and Vetterli, "The effective rank", EUSIPCO 2007). The
            mean is not taken off first, so that a single point has rank 1.
        std: Mean standard deviation per axis times the root of D; about 1 for an even spread, 0 for a point
            (SimSiam, https://arxiv.org/abs/2011.10566, section 4.1).
        dim: D.
        count: N.
    """

    mean_cosine: float
    effective_rank: float
    std: float
    dim: int
    count: int

    @property
    def collapsed(self) -> bool:
        """Whether the embeddings hardly differ, or lie on one line."""
        if self.count < _FEWEST:
            return False
        return self.mean_cosine > COLLAPSED_COSINE or self.effective_rank < COLLAPSED_RANK

    @property
    def recovered(self) -> bool:
        """Whether they differ clearly; between the two lies a band that says neither."""
        return self.mean_cosine < RECOVERED_COSINE and self.effective_rank > RECOVERED_RANK

    def scalars(self) -> dict[str, float]:
        """The numbers to follow over time, by name; what is not defined is left out."""
        values = {k: v for k, v in asdict(self).items() if k in ("mean_cosine", "effective_rank", "std")}
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def __str__(self) -> str:
        """One phrase for a message."""
        return (
            f"mean cosine {self.mean_cosine:.2f} between different identities, effective rank "
            f"{self.effective_rank:.1f} of {min(self.dim, self.count)}"
        )


@torch.no_grad()
def embedding_spread(embeddings: Tensor, labels: Tensor) -> EmbeddingSpread:
    """Measure embeddings in time linear in their number.

    Args:
        embeddings: ``(N, D)`` float, rows of length one.
        labels: ``(N,)`` int64, identities; ``-1`` (not known) counts as someone of their own.
    """
    count, dim = embeddings.shape
    if not count or not bool(torch.isfinite(embeddings).all()):
        return EmbeddingSpread(math.nan, math.nan, math.nan, dim, count)
    rows, labels = embeddings.cpu().double(), labels.cpu()  # not every device has float64
    return EmbeddingSpread(
        mean_cosine=_cosine_between(rows, labels),
        effective_rank=_effective_rank(rows),
        std=float(rows.std(dim=0, correction=0).mean()) * math.sqrt(dim),
        dim=dim,
        count=count,
    )


def _cosine_between(rows: Tensor, labels: Tensor) -> float:
    """Mean over ordered pairs of two identities: all pairs less those within an identity, by sums of vectors."""
    alone = labels.max() + 1 + torch.arange(len(labels))
    _, group = torch.where(labels >= 0, labels, alone).unique(return_inverse=True)
    sizes = torch.bincount(group).double()
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, group, rows)
    pairs = len(rows) ** 2 - float(sizes.square().sum())
    if not pairs:
        return math.nan
    return (float(rows.sum(dim=0).square().sum()) - float(sums.square().sum())) / pairs


def _effective_rank(rows: Tensor) -> float:
    count, dim = rows.shape
    products = rows @ rows.T if count < dim else rows.T @ rows
    values = torch.linalg.eigvalsh(products).clamp(min=0)
    total = values.sum()
    if not total:
        return math.nan
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())
