"""Pictures of people to learn embeddings from, and pairs of pictures to verify them on."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from mnvision.data.attribute_splits import SPLIT_NUMBERS, split_off
from mnvision.data.face_layout import FixedPoints, Missing, face_settings, lay_out
from mnvision.data.identity_dataset import IdentityDataset, collate_identities
from mnvision.data.identity_index import IdentityIndex, People, with_enough_pictures
from mnvision.data.identity_overlap import Overlap, Verified, check_overlap, people_in_both
from mnvision.data.identity_pairs import keep_pairs, pairs_among, pictures_of_pairs, sample_pairs
from mnvision.data.identity_sampler import IdentitySampler
from mnvision.data.loaders import train_loader
from mnvision.data.pairs import PairArrays, read_pairs
from mnvision.data.pictures import PictureDataModule, Split
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.transforms.alignment import FivePoints
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import framing_from_dict
from mnvision.types import IdentityBatch

log = logging.getLogger(__name__)


class IdentityDataModule(PictureDataModule[IdentityIndex]):
    """Loaders of pictures of people; a data set adds how its files are read.

    Training shows the pictures of the training identities. Validation and test show the pictures of pairs, each once:
    those of a file of pairs, of this set or of another one (``pairs_root``), or pairs drawn from identities that are
    not trained on. What is verified is never trained on: people of pairs of this set are left out or refused, and
    names that a training set shares with another set's pairs are reported.

    Args:
        root: Folder of the data set.
        framing: How pictures are laid out, see :func:`~mnvision.transforms.framing.framing_from_dict`:
            ``{"resize": "five_points", "margin": 0.0}`` sets faces upright.
        points: For five_points, where the points lie in pictures that were laid out alike before and have no
            landmarks: five pairs of fractions of width and height, or a template's name.
        landmarks: File of landmarks, below ``root`` or anywhere.
        missing_landmarks: What becomes of pictures without landmarks: "error", "skip", or "median" to take the median
            place of the others' points; also for the pictures of pairs.
        missing: "error" refuses pictures that are named but have no file, "skip" leaves them out, counted.
        min_images: Identities with fewer pictures are not trained on, counted.
        val_fraction: Share of the pictures whose identities are held out, where there are neither pairs nor splits.
        pairs: File of pairs, below ``pairs_root`` or anywhere, see :func:`~mnvision.data.pairs.read_pairs`; None draws
            pairs from held out identities.
        pairs_root: Folder of the pictures of ``pairs``, where they are of another set; None for ``root``.
        pairs_landmarks: File of landmarks of that set.
        pairs_points: As ``points``, for that set.
        num_pairs: Pairs to draw where there is no file.
        overlap: "report" names people who are trained on and verified, and refuses them within one set; "exclude"
            takes them out of training, counted.
        sampling: "shuffle" for pictures in random order, "identities" for batches of several pictures of several
            identities each.
        identities_per_batch: P of a batch with ``sampling="identities"``; None is ``batch_size / images_per_identity``.
        images_per_identity: K of such a batch.
        **common: See :class:`~mnvision.data.pictures.PictureDataModule`.

    Raises:
        UserError: A value is out of range or contradicts another one.
    """

    def __init__(
        self,
        root: str | Path,
        framing: Mapping[str, Any],
        points: FixedPoints = None,
        landmarks: str | Path | None = None,
        missing_landmarks: Missing = "error",
        missing: Literal["error", "skip"] = "error",
        min_images: int = 1,
        val_fraction: float | None = None,
        pairs: str | Path | None = None,
        pairs_root: str | Path | None = None,
        pairs_landmarks: str | Path | None = None,
        pairs_points: FixedPoints = None,
        num_pairs: int = 6000,
        overlap: Overlap = "report",
        sampling: Literal["shuffle", "identities"] = "shuffle",
        identities_per_batch: int | None = None,
        images_per_identity: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(root, framing_from_dict(framing), **common)
        for name, value, known in (
            ("missing", missing, ("error", "skip")),
            ("overlap", overlap, ("report", "exclude")),
            ("sampling", sampling, ("shuffle", "identities")),
        ):
            if value not in known:
                raise UserError(f"data.{name}={value}: choose {' or '.join(known)}")
        for name, number, least in (("min_images", min_images, 1), ("num_pairs", num_pairs, 4)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise UserError(f"data.{name}={number}: give a whole number of at least {least}")
        if val_fraction is not None and not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if pairs_root is None and (pairs_landmarks is not None or pairs_points is not None):
            raise UserError(
                "data.pairs_landmarks and data.pairs_points are for pairs of another set: give data.pairs_root"
            )
        if pairs_root is not None and pairs is None:
            raise UserError("data.pairs_root is given, but not the file of pairs: give data.pairs")
        self.missing, self.min_images, self.val_fraction, self.num_pairs = missing, min_images, val_fraction, num_pairs
        self.overlap, self.sampling, self.images_per_identity = overlap, sampling, images_per_identity
        self.pairs_root = None if pairs_root is None else Path(pairs_root).expanduser()
        self.pairs_file = None if pairs is None else (self.pairs_root or self.root) / Path(pairs).expanduser()
        self.faces = face_settings(self.root, self.framing, landmarks, points, missing_landmarks, "data.")
        self.pairs_faces = (
            self.faces
            if self.pairs_root is None
            else face_settings(
                self.pairs_root, self.framing, pairs_landmarks, pairs_points, missing_landmarks, "data.pairs_"
            )
        )
        self.identities_per_batch = self._identities_per_batch(identities_per_batch) if sampling != "shuffle" else None
        self._pairs: dict[Split, PairArrays] = {}
        self._people: People | None = None

    @abstractmethod
    def list_people(self) -> People:
        """Reads the files that say what the set holds, without pictures that have no file.

        Raises:
            UserError: A file is missing or malformed.
        """

    @property
    def class_names(self) -> list[str]:
        """None: an embedding has no classes."""
        return []

    @property
    def num_identities(self) -> int:
        """Identities to train on."""
        return len(self.source("train").names)

    def identity_names(self, split: Split) -> list[str]:
        """Names by label, which each split numbers on its own."""
        return self.source(split).identity_names()

    def pairs(self, split: Split) -> PairArrays:
        """The pairs of a split, as positions in its pictures.

        Raises:
            UserError: ``split`` is "train", or the data set is missing or malformed.
        """
        if split == "train":
            raise UserError("the training pictures have no pairs; choose split=val or split=test")
        self.source(split)
        return self._pairs[split]

    def also_verified(self, verified: IdentityIndex) -> list[str] | None:
        """Who of the identities trained on is also in the pictures of pairs of any set; None if that is not known."""
        return people_in_both(self._all(), self.source("train"), verified)

    @property
    def collate(self) -> Callable[..., IdentityBatch]:
        """Samples to a batch."""
        return collate_identities

    @property
    def preprocess(self) -> dict[str, Any]:
        """How evaluation makes the network's input from a picture; fixed points are those of its pictures."""
        faces = self.pairs_faces
        if isinstance(self.framing, FivePoints) and faces.landmarks is None:
            return self.framing.at(faces.points).to_dict()
        return self.framing.to_dict()

    def dataset(
        self, source: IdentityIndex, augment: ClassificationAugment | None, teacher: TeacherView | None
    ) -> IdentityDataset:
        """The data set over a split's pictures."""
        return IdentityDataset(source, self.resolution, source.framing, augment, self.seed, teacher)

    def train_dataloader(self) -> DataLoader[Any]:
        """Augmented batches, shuffled or of P identities with K pictures each."""
        if self.identities_per_batch is None:
            return super().train_dataloader()
        teacher = self.teacher_view
        views = None if teacher is None else teacher.views
        sizes = (self.identities_per_batch, self.images_per_identity)
        sampler = IdentitySampler(self.source("train").labels, *sizes, self.seed, views=views)
        dataset = self.train_dataset(teacher)
        return train_loader(dataset, self.batch_size, self.num_workers, self.collate, self.seed, sampler=sampler)

    def read(self, split: Split) -> IdentityIndex:
        """Lists one split.

        Raises:
            UserError: A file is missing or malformed, a picture is missing, or the split is empty.
        """
        return self._read_train() if split == "train" else self._read_pairs(split)

    def _read_train(self) -> IdentityIndex:
        people = with_enough_pictures(self._not_verified(self._part("train")), self.min_images)
        laid_out = lay_out(people, self.faces, self.resolution)
        index = people.take(laid_out.kept).index(laid_out.points, laid_out.framing, "train")
        log.info("%s: %d identities", index.report.source, len(index.names))
        return index

    def _read_pairs(self, split: Split) -> IdentityIndex:
        """The pictures of a split's pairs, and the pairs."""
        pairs: PairArrays | None = None
        if self.pairs_file is None:
            people = self._part(split)
        elif self.pairs_root is not None or (self._all().splits is None):
            listed = read_pairs(self.pairs_file)
            people, pairs = pictures_of_pairs(listed, self.pairs_root or self.root, self.missing)
        else:
            people, pairs = pairs_among(read_pairs(self.pairs_file), self._part(split))
        name = "data." if self.pairs_root is None else "data.pairs_"
        laid_out = lay_out(people, self.pairs_faces, self.resolution, name)
        kept, points = laid_out.kept, laid_out.points
        if pairs is not None:
            pairs = pairs if kept.all() else keep_pairs(pairs, kept, people.found, people.source)
            people = people.take(kept)
        else:
            people = people.take(kept)
            pairs = sample_pairs(people.identities, self.num_pairs, self.seed, people.source)
            used = np.bincount(pairs.positions.ravel(), minlength=len(people)) > 0
            people.found.add(
                "pictures that are in none of the drawn pairs left out", _names(people, ~used), int((~used).sum())
            )
            pairs, points = keep_pairs(pairs, used, None, people.source), None if points is None else points[used]
            people = people.take(used)
        self._pairs[split] = pairs
        same, folds = int(pairs.same.sum()), len(np.unique(pairs.folds))
        log.info("%s: %d + %d pairs in %d folds", people.source, same, len(pairs.same) - same, folds)
        return people.index(points, laid_out.framing, split)

    def _all(self) -> People:
        """All that the set's files say, read once."""
        if self._people is None:
            self._people = self.list_people()
        return self._people

    def _part(self, split: Split) -> People:
        """The part of the set that a split has, or all of it for training where pairs decide what is verified."""
        people = self._all()
        if people.splits is not None:
            part = people.take(people.splits == SPLIT_NUMBERS[split])
            if not len(part):
                raise UserError(f"{people.source}: no picture belongs to the {split} split")
            return part
        if self.pairs_file is not None:
            return people
        if split == "test":
            raise UserError(f"{people.source} has no test split: give a file of pairs (data.pairs)")
        if self.val_fraction is None:
            raise UserError(
                f"{people.source}: nothing to validate on: give a file of pairs (data.pairs), or data.val_fraction to "
                "hold out identities"
            )
        held_out = split_off(len(people), self.val_fraction, self.seed, people.identities)
        return people.take(held_out if split == "val" else ~held_out)

    def _not_verified(self, people: People) -> People:
        """The people to train on, compared with those of the pairs."""
        others, every = self.pairs_root is not None, self._all()
        if self.pairs_file is not None and (others or every.splits is None):
            index = self.source("val")
            verified = Verified(index.report.source, index.identity_names(), index.file_list(), not others)
        elif every.splits is not None:
            held_out = every.take(every.splits > SPLIT_NUMBERS["train"])
            verified = Verified("validation and test", sorted(held_out.present()), [], True)
        else:  # parted by identities just now
            return people
        return check_overlap(people, verified, self.overlap)

    def _identities_per_batch(self, given: int | None) -> int:
        """P, which with K makes ``batch_size``."""
        number, rest = divmod(self.batch_size, self.images_per_identity) if self.images_per_identity > 1 else (0, 0)
        if number < 1 or rest or (given is not None and given != number):
            people = "a whole number" if given is None else f"identities_per_batch={given}"
            raise UserError(
                f"data.batch_size={self.batch_size} is not {people} x images_per_identity={self.images_per_identity}; "
                "make it so, with at least 2 pictures of each"
            )
        return number


def _names(people: People, rows: NDArray[np.bool_]) -> list[str]:
    return [people.file_names[row] for row in np.flatnonzero(rows)[:5]]
