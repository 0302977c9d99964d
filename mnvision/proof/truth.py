"""Which pictures of a data set are asked about, and what is true of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnvision.errors import UserError
from mnvision.prediction.attributes import stored_thresholds
from mnvision.prediction.cell_table import stored_partition
from mnvision.prediction.predictor import Predictor
from mnvision.proof.scoring import (
    AttributeScoring,
    BoxScoring,
    ClassScoring,
    PairScoring,
    PlaceScoring,
    Scoring,
)

UNSCORED = -1
"""Category of a detector's classes that the data lack."""


def spread(count: int, limit: int | None) -> NDArray[np.int64]:
    """Up to ``limit`` of ``0 .. count - 1`` at equal distances; data sets are often sorted by class."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.floor(np.arange(limit) * (count / limit)).astype(np.int64)


def positions_of(data: Any, split: str, kind: str, limit: int | None) -> NDArray[np.int64]:
    """Positions of the pictures in their data set; of faces to be verified whole pairs, so about ``limit``.

    Raises:
        UserError: The split is empty.
    """
    if kind == "face_embeddings" and data.labelled:
        pairs = np.asarray(data.pairs(split)[0])
        chosen = pairs[spread(len(pairs), None if limit is None else max(1, limit // 2))]
        positions = np.unique(chosen).astype(np.int64)
    else:
        positions = spread(data.num_images(split), limit)
    if not len(positions):
        raise UserError(f"split={split} of {data.root} has no pictures: choose another split, or give data.root=PATH")
    return positions


def pairs_of(data: Any, split: str, positions: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Pairs ``(P, 2)`` as rows of ``positions``, whether they are of one person, and their folds."""
    pairs, same, folds = (np.asarray(column) for column in data.pairs(split))
    known = np.isin(pairs, positions).all(axis=1)
    return np.searchsorted(positions, pairs[known]), same[known].astype(np.bool_), folds[known]


def scoring_of(predictor: Predictor[Any], data: Any, split: str, positions: NDArray[np.int64]) -> Scoring | None:
    """What is true of the pictures, classes found by name; None where nothing is known.

    Raises:
        UserError: The data have classes that the model does not know, or none that it knows.
    """
    if not data.labelled:
        return None
    names = list(predictor.class_names)
    if predictor.kind == "detection":
        ids = dict(zip(data.class_names, data.category_ids, strict=True))
        _require(any(name in ids for name in names), names, data.class_names)
        known = [ids.get(name, UNSCORED) for name in names]
        return BoxScoring(data.ground_truth(split), data.index(split).image_ids[positions], known)
    source = data.source(split)
    if predictor.kind == "classification":
        place = {name: number for number, name in enumerate(names)}
        _require(all(name in place for name in data.class_names), names, data.class_names)
        mapped = np.array([place[name] for name in data.class_names], np.int64)
        return ClassScoring(mapped[source.labels[positions]], names)
    if predictor.kind == "face_attributes":
        given = list(data.class_names)
        shared = [name for name in names if name in given]
        _require(bool(shared), names, given)
        columns = [names.index(name) for name in shared]
        thresholds = stored_thresholds(predictor.metadata)
        labels = source.labels[positions][:, [given.index(name) for name in shared]]
        return AttributeScoring(labels, shared, columns, None if thresholds is None else thresholds[columns])
    if predictor.kind == "face_embeddings":
        pairs, same, folds = pairs_of(data, split, positions)
        varied = len(np.unique(same)) == 2 and len(np.unique(folds)) > 1
        return PairScoring(pairs, same, folds) if varied else None
    partition = stored_partition(predictor.metadata)
    assert partition is not None  # its predictor has refused others
    places = np.stack([source.place(position) for position in positions.tolist()])
    return PlaceScoring(partition.labels(places[:, 0], places[:, 1]), places, partition.positions)


def _require(fits: bool, known: list[str], given: list[str]) -> None:
    if not fits:
        raise UserError(
            f"the data's classes ({', '.join(list(given)[:5])}, ...) are not those of the model "
            f"({', '.join(known[:5])}, ...): give data=NAME and data.root=PATH of a set with them"
        )
