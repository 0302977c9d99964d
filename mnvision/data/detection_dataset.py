"""Pictures of a detection index as samples and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mnvision.data.decoding import SampleDecoder
from mnvision.data.index import DetectionIndex, ImageObjects
from mnvision.data.loaders import SampleKey, planes, sample_rng
from mnvision.data.teacher_view import TeacherView, teacher_fields
from mnvision.errors import UserError
from mnvision.transforms.detection import DetectionAugment
from mnvision.transforms.windows import Placement, Window, centres_inside, place_boxes, render, whole_picture
from mnvision.types import DetectionBatch

_TRIED = 4  # draws that a recipe records


class DetectionSample(NamedTuple):
    """One picture as a data set gives it; boxes in pixels of the network's input.

    Attributes:
        image: ``(3, H, W)`` uint8 RGB.
        boxes: ``(N, 4)`` float32 xyxy.
        labels: ``(N,)`` int64, ``0 .. K-1``.
        crowd: ``(N,)`` bool.
        image_id: The data set's own id.
        size: Height and width of the original picture.
        teacher_image: ``(3, h, w)`` uint8 RGB, the same view for a teacher that runs now.
        teacher_outputs: Its stored answers by name, float16.
    """

    image: Tensor
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    image_id: int
    size: tuple[int, int]
    teacher_image: Tensor | None = None
    teacher_outputs: Mapping[str, NDArray[np.float16]] | None = None


class DetectionDataset(Dataset[DetectionSample]):
    """Pictures of an index, stretched to one resolution, augmented if asked.

    Args:
        index: The annotations.
        resolution: Height and width of the network's input.
        augment: What happens at random; None shows every picture whole.
        seed: Seed of the augmentation.
        reduced_decoding: Decode a large JPEG at 1/2, 1/4 or 1/8 scale where the resolution allows it.
        teacher: How a teacher takes part, if one does.
    """

    def __init__(
        self,
        index: DetectionIndex,
        resolution: tuple[int, int],
        augment: DetectionAugment | None = None,
        seed: int = 0,
        reduced_decoding: bool = True,
        teacher: TeacherView | None = None,
    ) -> None:
        self.index, self.resolution, self.augment = index, resolution, augment
        self.seed, self.reduced_decoding, self.teacher = seed, reduced_decoding, teacher

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> DetectionSample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read, or its size is not the annotated one.
        """
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        decoder, teacher = SampleDecoder(self.reduced_decoding), self.teacher
        image, objects = self._draw(position, epoch, self.resolution, decoder)
        shown, outputs = None, None
        if teacher is not None and teacher.outputs is not None:
            outputs = teacher.outputs.read(epoch, position)
        elif teacher is not None:
            shown = planes(self._draw(position, epoch, teacher.resolution, decoder)[0])
        return DetectionSample(
            planes(image),
            objects["boxes"],
            objects["labels"],
            objects["crowd"],
            int(self.index.image_ids[position]),
            self.index.size(position),
            shown,
            outputs,
        )

    def path(self, position: int) -> Path:
        """File of one picture."""
        return self.index.path(position)

    def teacher_picture(self, key: int | SampleKey) -> Tensor:
        """``(3, h, w)`` uint8 RGB, what a teacher sees of a sample; needs a teacher view."""
        assert self.teacher is not None
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        return planes(self._draw(position, epoch, self.teacher.resolution, SampleDecoder(self.reduced_decoding))[0])

    def recipe(self) -> dict[str, Any]:
        """All that decides, beside the files' contents, what a teacher sees, as plain data.

        The annotations are part of it, since crops are drawn around them. ``draws`` are some actual draws, so that a
        library whose random streams changed is noticed too.
        """
        fixed = {"reduced_decoding": self.reduced_decoding}
        if self.augment is None:
            return {**fixed, "augment": None}
        draws = []
        for position in range(_TRIED):
            rng = sample_rng(self.seed, 0, position)
            window = self.augment.window(rng, (480, 640), np.array([[100, 100, 300, 250]], np.float32))
            colours = self.augment.distort(rng, np.full((16, 16, 3), (40, 90, 140), np.uint8)).mean(axis=(0, 1))
            draws.append([round(float(value), 5) for value in (*window, *colours)])
        # Which objects are too small to learn from is the student's affair.
        augment = {name: value for name, value in self.augment.to_dict().items() if name != "min_size"}
        annotations = hashlib.blake2b(digest_size=16)
        for array in (self.index.sizes, self.index.box_offsets, self.index.boxes, self.index.crowd):
            annotations.update(np.ascontiguousarray(array).tobytes())
        return {
            **fixed,
            "augment": augment,
            "seed": self.seed,
            "draws": draws,
            "annotations": annotations.hexdigest(),
        }

    def _draw(
        self, position: int, epoch: int, resolution: tuple[int, int], decoder: SampleDecoder
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        """One view at one resolution, from a stream of its own: what it shows is the same at any other one."""
        augment = self.augment
        if augment is None:
            return self._show(position, whole_picture(self.index.size(position)), resolution, decoder)
        rng = sample_rng(self.seed, epoch, position)
        if rng.random() < augment.mosaic:
            image, objects = self._mosaic(position, augment, rng, resolution, decoder)
        else:
            image, objects = self._random_window(position, augment, rng, resolution, decoder)
        return augment.distort(rng, image), objects

    def _random_window(
        self,
        position: int,
        augment: DetectionAugment,
        rng: np.random.Generator,
        resolution: tuple[int, int],
        decoder: SampleDecoder,
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        objects = self.index.objects(position)
        window = augment.window(rng, self.index.size(position), objects["boxes"][~objects["crowd"]])
        return self._show(position, window, resolution, decoder, augment.min_size)

    def _show(
        self,
        position: int,
        window: Window,
        resolution: tuple[int, int],
        decoder: SampleDecoder,
        min_size: float = 0.0,
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        """Renders a window of a picture, with the objects whose centre it holds."""
        size = self.index.size(position)
        pixels = self._decode(position, size, window, resolution, decoder)
        image, placement = render(pixels, size, window, resolution)
        return image, self.shown_objects(position, window, placement, min_size)

    def shown_objects(self, position: int, window: Window, placement: Placement, min_size: float = 0.0) -> ImageObjects:
        """The objects whose centre a window of a picture holds, where rendering put them.

        Args:
            position: Of the picture.
            window: What is shown of it.
            placement: From :func:`~mnvision.transforms.windows.render`.
            min_size: Pixels of the result below which a side is too small to learn from.
        """
        objects = self.index.objects(position)
        boxes = place_boxes(objects["boxes"], placement)
        sides = boxes[:, 2:] - boxes[:, :2]
        # Crowd regions stay wherever a part of them shows: what is under them is still not background.
        kept = (objects["crowd"] | centres_inside(objects["boxes"], window)) & (sides > 0).all(axis=1)
        kept &= objects["crowd"] | (sides >= min_size).all(axis=1)
        return {
            "boxes": boxes[kept],
            "labels": objects["labels"][kept],
            "crowd": objects["crowd"][kept],
        }

    def _decode(
        self,
        position: int,
        size: tuple[int, int],
        window: Window,
        resolution: tuple[int, int],
        decoder: SampleDecoder,
    ) -> NDArray[np.uint8]:
        path = self.index.path(position)
        decoded = decoder.read(path, size, (window.y1 - window.y0, window.x1 - window.x0), resolution)
        self.check_size(position, decoded.size)
        return decoded.pixels

    def check_size(self, position: int, found: tuple[int, int]) -> None:
        """Refuses a picture whose height and width are not the annotated ones: its boxes would be wrong.

        Raises:
            UserError: They are not.
        """
        size = self.index.size(position)
        if found != size:
            hint = ": it seems to be annotated without its Exif orientation" if found == size[::-1] else ""
            raise UserError(
                f"{self.index.path(position)} is {found[1]}x{found[0]} but annotated as {size[1]}x{size[0]} "
                f"(image id {self.index.image_ids[position]}){hint}; correct width, height and boxes there"
            )

    def _mosaic(
        self,
        position: int,
        augment: DetectionAugment,
        rng: np.random.Generator,
        resolution: tuple[int, int],
        decoder: SampleDecoder,
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        """Four pictures, this one and three drawn from the set, around a random point of the result."""
        height, width = resolution
        split_y, split_x = (min(max(round(side * rng.uniform(0.3, 0.7)), 1), side - 1) for side in (height, width))
        others = rng.integers(len(self.index), size=3).tolist()
        image = np.empty((height, width, 3), np.uint8)
        shown: list[ImageObjects] = []
        corners = [(0, 0), (0, split_x), (split_y, 0), (split_y, split_x)]
        for place, (top, left) in zip(rng.permutation([position, *others]).tolist(), corners):
            bottom, right = (height if top else split_y), (width if left else split_x)
            tile, objects = self._random_window(place, augment, rng, (bottom - top, right - left), decoder)
            image[top:bottom, left:right] = tile
            shift = np.array([left, top, left, top], np.float32)
            shown.append({"boxes": objects["boxes"] + shift, "labels": objects["labels"], "crowd": objects["crowd"]})
        return image, {
            "boxes": np.concatenate([objects["boxes"] for objects in shown]),
            "labels": np.concatenate([objects["labels"] for objects in shown]),
            "crowd": np.concatenate([objects["crowd"] for objects in shown]),
        }


def collate_detection(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """Stacks samples; objects are padded to the largest number in the batch (at least 1)."""
    count = max(1, *(len(sample.boxes) for sample in samples))
    boxes = np.zeros((len(samples), count, 4), np.float32)
    labels = np.full((len(samples), count), -1, np.int64)
    crowd = np.zeros((len(samples), count), np.bool_)
    for row, sample in enumerate(samples):
        boxes[row, : len(sample.boxes)] = sample.boxes
        labels[row, : len(sample.labels)] = sample.labels
        crowd[row, : len(sample.crowd)] = sample.crowd
    return {
        "images": torch.stack([sample.image for sample in samples]),
        "targets": {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels),
            "crowd": torch.from_numpy(crowd),
        },
        "image_ids": torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        "sizes": torch.tensor([sample.size for sample in samples], dtype=torch.int64),
        **teacher_fields(samples),  # type: ignore[typeddict-item]
    }
