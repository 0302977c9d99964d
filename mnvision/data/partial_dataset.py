"""Pictures with labels of several heads, any of them missing: read, decoded and augmented once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mnvision.data.decoding import SampleDecoder
from mnvision.data.detection_dataset import DetectionDataset, DetectionSample, collate_detection
from mnvision.data.images import image_size
from mnvision.data.loaders import SampleKey, TrainSampler, planes, sample_rng
from mnvision.data.partial_pictures import SharedPictures
from mnvision.data.picture_views import PictureViews, View
from mnvision.data.pictures import PictureDataset, PictureSample
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.framing import Framing, Plane, show, shown_part
from mnvision.transforms.windows import Pixels, Placement, Window, render
from mnvision.types import JointBatch, JointPart

NO_PICTURE = torch.empty(0, dtype=torch.uint8)
"""In samples of the heads' own kinds: their collating stacks pictures, which here are stacked once for all."""


class Shown(NamedTuple):
    """What became of a picture.

    Attributes:
        size: Height and width of the original.
        window: The part of it that is shown.
        placement: Where rendering put it; None where the picture was turned.
    """

    size: tuple[int, int]
    window: Window
    placement: Placement | None


class HeadLabels(Protocol):
    """One head's labels, as its own data set has them."""

    @property
    def teacher_size(self) -> tuple[int, int] | None:
        """Height and width of its teacher's input; None without a teacher."""
        ...

    @property
    def reduced(self) -> bool:
        """Whether it allows large JPEGs to be decoded at reduced scale."""
        ...

    def landmarks(self, row: int) -> NDArray[np.float64] | None:
        """What the framing goes by, where known."""
        ...

    def sample(self, row: int, shown: Shown, taught: Tensor | None) -> Any:
        """A sample of the head's own kind without its picture.

        Args:
            row: Position in the head's data set.
            shown: What became of the picture.
            taught: ``(3, h, w)`` uint8, the same view for its teacher.
        """
        ...

    def collate(self, samples: Sequence[Any]) -> Mapping[str, Any]:
        """Such samples to a batch of the head's own kind, with ``images`` to be ignored."""
        ...


@dataclass(frozen=True)
class PictureLabels:
    """Labels of whole pictures; see :class:`HeadLabels`."""

    dataset: PictureDataset[Any, Any]
    collate_samples: Callable[..., Mapping[str, Any]]
    teacher_size: tuple[int, int] | None
    reduced: bool = True

    def landmarks(self, row: int) -> NDArray[np.float64] | None:
        """See :class:`HeadLabels`."""
        points: NDArray[np.float64] | None = self.dataset.source.landmarks(row)
        return points

    def sample(self, row: int, shown: Shown, taught: Tensor | None) -> Any:
        """See :class:`HeadLabels`."""
        return self.dataset.labelled(PictureSample(NO_PICTURE, row, taught))

    def collate(self, samples: Sequence[Any]) -> Mapping[str, Any]:
        """See :class:`HeadLabels`."""
        return self.collate_samples(samples)


@dataclass(frozen=True)
class BoxLabels:
    """Objects in pictures that are shown upright; see :class:`HeadLabels`."""

    dataset: DetectionDataset
    teacher_size: tuple[int, int] | None

    @property
    def reduced(self) -> bool:
        """See :class:`HeadLabels`."""
        return self.dataset.reduced_decoding

    def landmarks(self, row: int) -> None:
        """None are known."""

    def sample(self, row: int, shown: Shown, taught: Tensor | None) -> DetectionSample:
        """See :class:`HeadLabels`.

        Raises:
            UserError: The picture's size is not the annotated one.
        """
        assert shown.placement is not None
        self.dataset.check_size(row, shown.size)
        least = 0.0 if self.dataset.augment is None else self.dataset.augment.min_size
        objects = self.dataset.shown_objects(row, shown.window, shown.placement, least)
        image_id = int(self.dataset.index.image_ids[row])
        return DetectionSample(
            NO_PICTURE, objects["boxes"], objects["labels"], objects["crowd"], image_id, shown.size, taught
        )

    def collate(self, samples: Sequence[DetectionSample]) -> Mapping[str, Any]:
        """See :class:`HeadLabels`."""
        return collate_detection(samples)


class PartialSample(NamedTuple):
    """One picture ``(3, H, W)`` uint8 and a sample of each head, None where it has no label of it."""

    image: Tensor
    samples: tuple[Any, ...]


class PartialDataset(Dataset[PartialSample]):
    """Shared pictures at one resolution.

    Args:
        pictures: The pictures, and each head's rows.
        heads: Labels by head, in the order of ``pictures.heads``.
        resolution: Height and width of the network's input.
        framing: How pictures are laid out.
        augment: What happens at random; area and proportions of its crops are relative to the framed picture's. None
            shows it whole.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        pictures: SharedPictures,
        heads: Mapping[str, HeadLabels],
        resolution: tuple[int, int],
        framing: Framing,
        augment: ClassificationAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.pictures, self.heads = pictures, tuple(heads.values())
        self.views = PictureViews(resolution, framing, augment, seed)
        self.reduced = all(head.reduced for head in self.heads)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | SampleKey) -> PartialSample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read, or its size is not the annotated one.
        """
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        own = list(zip(self.heads, self.pictures.rows[position].tolist()))
        points = next((found for head, row in own if row >= 0 and (found := head.landmarks(row)) is not None), None)
        view, decoder = self._view(position, epoch, points), SampleDecoder(self.reduced)
        # Of a copy, so that the teachers' pictures get the very same distortion and take no draw from the student's.
        image, shown = self._draw(view._replace(rng=deepcopy(view.rng)), decoder)
        samples = [
            head.sample(row, shown, self._taught(head, view, decoder)) if row >= 0 else None for head, row in own
        ]
        return PartialSample(planes(image), tuple(samples))

    def _view(self, position: int, epoch: int, points: NDArray[np.float64] | None) -> View:
        path, augment = self.pictures.path(position), self.views.augment
        rng, size = sample_rng(self.views.seed, epoch, position), image_size(path)
        plane = self.views.framing.plane(size, points)
        window = None if augment is None else _stretched(augment.window(rng, (1, 1)), plane)
        return View(path, size, plane, window, rng)

    def _draw(self, view: View, decoder: SampleDecoder) -> tuple[Pixels, Shown]:
        resolution, augment, placement = self.views.resolution, self.views.augment, None
        window = self.views.framing.eval_window(view.plane.size, resolution) if view.window is None else view.window
        pixels = decoder.read(view.path, view.size, shown_part(view.plane, window), resolution).pixels
        if view.plane.matrix is None:
            image, placement = render(pixels, view.size, window, resolution)
        else:
            image = show(pixels, view.size, view.plane, window, resolution)
        image = image if augment is None else augment.distort(view.rng, image)
        return image, Shown(view.size, window, placement)

    def _taught(self, head: HeadLabels, view: View, decoder: SampleDecoder) -> Tensor | None:
        if head.teacher_size is None:
            return None
        copied = view._replace(rng=deepcopy(view.rng))
        return planes(self.views.draw_for_teacher(copied, head.teacher_size, decoder))


class PartialCollate:
    """Samples to a joint batch.

    A head with labels of a single picture of the batch sits it out: batch normalisation over one picture is not
    defined. Another epoch has that picture in other company.

    Args:
        heads: Labels by head.
        together: All pictures pass through the trunk together; otherwise those of each head alone.
    """

    def __init__(self, heads: Mapping[str, HeadLabels], together: bool) -> None:
        self.heads, self.together = dict(heads), together

    def __call__(self, samples: Sequence[PartialSample]) -> JointBatch:
        """See :class:`~mnvision.types.JointBatch`; rows of different heads may be the same pictures."""
        images, parts = torch.stack([sample.image for sample in samples]), list[JointPart]()
        for number, (name, labels) in enumerate(self.heads.items()):
            rows = [row for row, sample in enumerate(samples) if sample.samples[number] is not None]
            if rows:
                batch = dict(labels.collate([samples[row].samples[number] for row in rows]))
                del batch["images"]
                parts.append({"head": name, "rows": torch.tensor(rows), "batch": batch})
        parts = [part for part in parts if len(part["rows"]) > 1] or parts
        if self.together:
            return {"groups": [{"images": images, "parts": parts}]}
        alone: list[JointPart] = [{**part, "rows": torch.arange(len(part["rows"]))} for part in parts]
        return {"groups": [{"images": images[part["rows"]], "parts": [own]} for part, own in zip(parts, alone)]}


class MixedSampler(TrainSampler):
    """An order in which every stretch has each kind of picture in its share, so that no batch lacks a head by chance.

    Kind k's pictures, shuffled, get the places ``(i + u) / n_k`` with u random in [0, 1).

    Args:
        kinds: ``(P,)`` int64, kind of each picture.
        seed: See :class:`~mnvision.data.loaders.TrainSampler`.
        rank: See :class:`~mnvision.data.loaders.TrainSampler`.
        world_size: See :class:`~mnvision.data.loaders.TrainSampler`.
    """

    def __init__(
        self, kinds: NDArray[np.int64], seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        super().__init__(len(kinds), seed, rank, world_size)
        self.kinds, self.counts = kinds, np.bincount(kinds)

    def positions(self, epoch: int, start: int) -> Iterator[NDArray[np.int64]]:
        """See :meth:`~mnvision.data.loaders.TrainSampler.positions`."""
        rng = sample_rng(self.seed, epoch, -1)
        order = rng.permutation(self.length)
        by_kind = order[np.argsort(self.kinds[order], kind="stable")]
        starts = np.cumsum(self.counts) - self.counts
        kinds = self.kinds[by_kind]
        places = (np.arange(self.length) - starts[kinds] + rng.random(self.length)) / self.counts[kinds]
        mixed = by_kind[np.argsort(places, kind="stable")]
        yield np.resize(mixed, len(self) * self.world_size)[self.rank :: self.world_size][start:]


def _stretched(window: Window, plane: Plane) -> Window:
    """A window of the unit square as one of a plane."""
    height, width = plane.size
    return Window(window.x0 * width, window.y0 * height, window.x1 * width, window.y1 * height, window.flip)
