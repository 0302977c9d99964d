"""Verification by the protocol of Labeled Faces in the Wild: are the two pictures of a pair of one person?

A pair is answered "the same" where the squared L2 distance of its unit embeddings lies below a threshold. Each fold
is answered with the threshold that serves the other folds best (Huang et al. 2007, "View 2").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mnvision.errors import UserError
from mnvision.metrics.processes import from_all_processes
from mnvision.metrics.verification_rates import (
    FALSE_ACCEPT_RATES,
    Distances,
    Flags,
    Integers,
    acceptance,
    check_rate,
    equal_error_rate,
    resolved_rates,
    roc_curve,
    sorted_distances,
    validation_rate,
)
from mnvision.metrics.verification_scores import AcceptanceRate, FoldScore, VerificationScores

Candidates = Literal["grid", "exact"]

_CHUNK = 65536  # pairs
_UNIT = 1e-3
# The candidates of facenet's and insightface's code.
_GRID = np.arange(0, 4, 0.01)


def verify(
    embeddings: NDArray[Any],
    pairs: NDArray[Any],
    same: NDArray[Any],
    folds: NDArray[Any],
    candidates: Candidates = "grid",
    rates: Sequence[float] | None = None,
) -> VerificationScores:
    """Score pairs of pictures.

    Args:
        embeddings: ``(N, D)`` float, rows of unit length.
        pairs: ``(P, 2)`` int, rows of ``embeddings``.
        same: ``(P,)`` bool, whether both are of one person.
        folds: ``(P,)`` int, the fold of each pair; any numbers, at least two different ones.
        candidates: Among which thresholds a fold's is chosen, the first of the best. "grid": 0, 0.01 .. 3.99, as
            published results are measured. "exact": every midpoint between neighbouring distances of the other
            folds, for embeddings whose distances crowd in a small part of the grid.
        rates: False accept rates at which true accepts are reported; None is those of
            :data:`~mnvision.metrics.verification_rates.FALSE_ACCEPT_RATES` that the pairs resolve.

    Raises:
        UserError: Shapes do not fit, an embedding is not of unit length, a pair names no embedding, there are no
            pairs of one kind or fewer than two folds, or a rate is lower than one in the number of
            different-person pairs (of all, or of all folds but one).
    """
    check_candidates(candidates)
    embeddings, pairs, same, folds = _checked(embeddings, pairs, same, folds)
    distances = squared_distances(embeddings, pairs)
    roc = roc_curve(distances, same)
    limits = resolved_rates(rates, same, folds)
    scores = [_score_fold(distances, same, folds == fold, fold, candidates) for fold in np.unique(folds).tolist()]
    accuracies = np.array([score.accuracy for score in scores])
    threshold, right = _best_cut(distances, same)
    return VerificationScores(
        accuracy=float(accuracies.mean()),
        std=float(accuracies.std()),
        standard_error=float(accuracies.std(ddof=1) / math.sqrt(len(scores))),
        auc=float(np.trapezoid(roc.tar, roc.far)),
        eer=equal_error_rate(roc),
        threshold=threshold,
        threshold_accuracy=right,
        tar_at_far=tuple(acceptance(roc, limit) for limit in limits),
        val_at_far=tuple(validation_rate(distances, same, folds, limit) for limit in limits),
        folds=tuple(scores),
        num_same=int(same.sum()),
        num_different=int((~same).sum()),
        unresolved=() if rates is not None else tuple(r for r in FALSE_ACCEPT_RATES if r not in limits),
        same=same,
        similarities=1 - distances / 2,
        roc=roc,
    )


def check_candidates(candidates: str) -> None:
    """Refuses an unknown choice of thresholds.

    Raises:
        UserError: Neither "grid" nor "exact".
    """
    if candidates not in get_args(Candidates):
        raise UserError(f"candidates={candidates}: choose one of {', '.join(get_args(Candidates))}")


def squared_distances(embeddings: NDArray[Any], pairs: NDArray[Any]) -> Distances:
    """``(P,)`` float64 squared L2 distances of the rows that ``pairs`` ``(P, 2)`` names."""
    result = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        first, second = pairs[start : start + _CHUNK].T
        difference = embeddings[first].astype(np.float64) - embeddings[second].astype(np.float64)
        result[start : start + _CHUNK] = np.square(difference).sum(axis=1)
    return result


def acceptance_at(scores: VerificationScores, limit: float) -> AcceptanceRate:
    """The highest share of true accepts at a false accept rate of at most ``limit``.

    Raises:
        UserError: So few different-person pairs cannot resolve the rate.
    """
    if scores.roc is None:
        raise UserError("no pairs were scored")
    check_rate(limit, scores.num_different)
    return acceptance(scores.roc, limit)


def _checked(
    embeddings: NDArray[Any], pairs: NDArray[Any], same: NDArray[Any], folds: NDArray[Any]
) -> tuple[NDArray[Any], Integers, Flags, Integers]:
    embeddings, pairs, same, folds = (np.asarray(array) for array in (embeddings, pairs, same, folds))
    if embeddings.ndim != 2 or pairs.ndim != 2 or pairs.shape[1] != 2:
        raise UserError(f"embeddings {embeddings.shape} and pairs {pairs.shape}: give (N, D) and (P, 2)")
    if same.shape != (len(pairs),) or folds.shape != (len(pairs),):
        raise UserError(f"{len(pairs)} pairs, {same.size} answers, {folds.size} folds; give one of each per pair")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= len(embeddings)):
        row = int(np.flatnonzero(((pairs < 0) | (pairs >= len(embeddings))).any(axis=1))[0])
        raise UserError(f"pair {row} names rows {pairs[row].tolist()}; there are {len(embeddings)} embeddings")
    lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))  # also where the length is NaN
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"embedding {row} has length {lengths[row]:.4g}, as {len(wrong)} of {len(embeddings)} are not of length 1; "
            "divide each by its length (a length of 0 or NaN comes from a broken model)"
        )
    same, folds = same.astype(np.bool_), folds.astype(np.int64)
    if not 0 < same.sum() < len(same):
        raise UserError(f"{int(same.sum())} of {len(same)} pairs are of one person; pairs of both kinds are needed")
    if len(np.unique(folds)) < 2:
        raise UserError("all pairs are of one fold; the threshold of a fold comes from others, so give at least two")
    return embeddings, pairs.astype(np.int64), same, folds


def _right_answers(distances: Distances, same: Flags, thresholds: Distances) -> Integers:
    """``(T,)`` pairs answered right by "below the threshold is the same"."""
    ours, others = sorted_distances(distances, same)
    return np.asarray(np.searchsorted(ours, thresholds) + len(others) - np.searchsorted(others, thresholds))


def _midpoints(distances: Distances) -> Distances:
    """Every threshold that matters: below all distances, between neighbours, above all."""
    known = np.unique(distances)
    return np.concatenate([known[:1] / 2, (known[:-1] + known[1:]) / 2, known[-1:] + 1])


def _score_fold(distances: Distances, same: Flags, own: Flags, fold: int, candidates: Candidates) -> FoldScore:
    thresholds = _GRID if candidates == "grid" else _midpoints(distances[~own])
    best = thresholds[np.argmax(_right_answers(distances[~own], same[~own], thresholds))]
    right = int(_right_answers(distances[own], same[own], best[None])[0])
    return FoldScore(fold, right / int(own.sum()), float(best), int(own.sum()))


def _best_cut(distances: Distances, same: Flags) -> tuple[float, float]:
    """The threshold of most right answers and their share; among equals the one with most room around it."""
    known = np.unique(distances)
    thresholds = _midpoints(distances)
    room = np.concatenate([known[:1], np.diff(known), [0.0]])
    right = _right_answers(distances, same, thresholds)
    best = np.flatnonzero(right == right.max())
    chosen = best[np.argmax(room[best])]
    return float(thresholds[chosen]), float(right[chosen] / len(distances))


class VerificationEvaluator:
    """Collects embeddings of a data set's pictures and scores its pairs, each picture once.

    A picture is known by its position in the data set. One given again is left out and counted, since distributed
    samplers repeat samples to fill the last batch. Pairs with a picture that was not given are left out and counted.

    Args:
        pairs: ``(P, 2)`` int, positions in the data set.
        same: ``(P,)`` bool, whether both are of one person.
        folds: ``(P,)`` int, the fold of each pair.
        candidates: See :func:`verify`.
        rates: See :func:`verify`.
    """

    def __init__(
        self,
        pairs: NDArray[Any],
        same: NDArray[Any],
        folds: NDArray[Any],
        candidates: Candidates = "grid",
        rates: Sequence[float] | None = None,
    ) -> None:
        self.pairs, self.same, self.folds = (np.asarray(array) for array in (pairs, same, folds))
        self.candidates, self.rates = candidates, rates
        self.reset()

    def reset(self) -> None:
        """Forget all embeddings."""
        self._indices: list[NDArray[np.int64]] = []
        self._embeddings: list[NDArray[np.float32]] = []
        self._repeated = 0

    def update(self, embeddings: Tensor, indices: Tensor, mirrored: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            embeddings: ``(B, D)`` of any length but 0; scaled to unit length.
            indices: ``(B,)`` int64, position of each picture in its data set.
            mirrored: ``(B, D)``, of the same pictures mirrored; added to the others before they are scaled.

        Raises:
            UserError: Shapes do not fit, or a value is NaN or infinite.
        """
        if embeddings.ndim != 2 or indices.shape != embeddings.shape[:1]:
            raise UserError(f"embeddings {tuple(embeddings.shape)}, indices {tuple(indices.shape)}: one per row")
        embeddings = embeddings.detach().float()
        if mirrored is not None:
            if mirrored.shape != embeddings.shape:
                raise UserError(f"mirrored {tuple(mirrored.shape)} for embeddings {tuple(embeddings.shape)}")
            embeddings = embeddings + mirrored.detach().float()
        embeddings = functional.normalize(embeddings)
        bad = ~torch.isfinite(embeddings).all(dim=1)
        if bad.any():
            raise UserError(f"sample {int(indices[bad.nonzero()[0, 0]])}: its embedding has NaN or infinite values")
        self._indices.append(indices.cpu().numpy().astype(np.int64))
        self._embeddings.append(embeddings.cpu().numpy())

    def gather(self) -> None:
        """Exchange embeddings, so that every process holds all of them. Does nothing in a single process."""
        theirs = from_all_processes(lambda: (*self._unique(), self._repeated))
        if theirs is None:
            return
        self.reset()
        for indices, embeddings, repeated in theirs:
            if len(indices):
                self._indices.append(indices)
                self._embeddings.append(embeddings)
            self._repeated += repeated

    def _unique(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """All embeddings by rising index, each once; what is left out is counted."""
        if not self._indices:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        indices, embeddings = np.concatenate(self._indices), np.concatenate(self._embeddings)
        kept, first = np.unique(indices, return_index=True)
        self._repeated += len(indices) - len(kept)
        self._indices, self._embeddings = [kept], [embeddings[first]]
        return kept, self._embeddings[0]

    def compute(self) -> VerificationScores:
        """Score the pairs whose pictures were collected.

        Returns:
            The scores; all -1 where the remaining pairs lack one kind or a second fold.

        Raises:
            UserError: An embedding has length 0, or see :func:`verify`.
        """
        indices, embeddings = self._unique()
        known = np.isin(self.pairs, indices).all(axis=1)
        left_out = int((~known).sum())
        same, folds = self.same[known], self.folds[known]
        if left_out and (len(np.unique(same)) < 2 or len(np.unique(folds)) < 2):
            return VerificationScores.unscored(left_out, self._repeated)
        rows = np.searchsorted(indices, self.pairs[known])
        # A part of a validation need not resolve what the whole of it does.
        rates = None if left_out else self.rates
        scores = verify(embeddings, rows, same, folds, self.candidates, rates)
        return replace(scores, num_left_out=left_out, num_repeated=self._repeated)
