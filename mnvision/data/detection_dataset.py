"""Pictures of a detection index as samples and batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mnvision.data.images import min_decode_size, read_image
from mnvision.data.index import DetectionIndex, ImageObjects
from mnvision.data.loaders import SampleKey, planes, sample_rng
from mnvision.errors import UserError
from mnvision.transforms.detection import DetectionAugment
from mnvision.transforms.windows import Window, centres_inside, place_boxes, render, whole_picture
from mnvision.types import DetectionBatch


class DetectionSample(NamedTuple):
    """One picture as a data set gives it; boxes in pixels of the network's input.

    Attributes:
        image: ``(3, H, W)`` uint8 RGB.
        boxes: ``(N, 4)`` float32 xyxy.
        labels: ``(N,)`` int64, ``0 .. K-1``.
        crowd: ``(N,)`` bool.
        image_id: The data set's own id.
        size: Height and width of the original picture.
    """

    image: Tensor
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    image_id: int
    size: tuple[int, int]


class DetectionDataset(Dataset[DetectionSample]):
    """Pictures of an index, stretched to one resolution, augmented if asked.

    Args:
        index: The annotations.
        resolution: Height and width of the network's input.
        augment: What happens at random; None shows every picture whole.
        seed: Seed of the augmentation.
        reduced_decoding: Decode a large JPEG at 1/2, 1/4 or 1/8 scale where the resolution allows it.
    """

    def __init__(
        self,
        index: DetectionIndex,
        resolution: tuple[int, int],
        augment: DetectionAugment | None = None,
        seed: int = 0,
        reduced_decoding: bool = True,
    ) -> None:
        self.index, self.resolution, self.augment = index, resolution, augment
        self.seed, self.reduced_decoding = seed, reduced_decoding

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | SampleKey) -> DetectionSample:
        """One sample; a plain position draws the augmentation of epoch 0.

        Raises:
            UserError: The file cannot be read, or its size is not the annotated one.
        """
        position, epoch = key if isinstance(key, SampleKey) else (key, 0)
        if self.augment is None:
            image, objects = self._show(position, whole_picture(self.index.size(position)), self.resolution)
        else:
            rng = sample_rng(self.seed, epoch, position)
            if rng.random() < self.augment.mosaic:
                image, objects = self._mosaic(position, self.augment, rng)
            else:
                image, objects = self._random_window(position, self.augment, rng, self.resolution)
            image = self.augment.distort(rng, image)
        return DetectionSample(
            planes(image),
            objects["boxes"],
            objects["labels"],
            objects["crowd"],
            int(self.index.image_ids[position]),
            self.index.size(position),
        )

    def _random_window(
        self, position: int, augment: DetectionAugment, rng: np.random.Generator, resolution: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        objects = self.index.objects(position)
        window = augment.window(rng, self.index.size(position), objects["boxes"][~objects["crowd"]])
        return self._show(position, window, resolution, augment.min_size)

    def _show(
        self, position: int, window: Window, resolution: tuple[int, int], min_size: float = 0.0
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        """Renders a window of a picture, with the objects whose centre it holds."""
        size, objects = self.index.size(position), self.index.objects(position)
        pixels = self._decode(position, size, window, resolution)
        image, placement = render(pixels, size, window, resolution)
        boxes = place_boxes(objects["boxes"], placement)
        sides = boxes[:, 2:] - boxes[:, :2]
        # Crowd regions stay wherever a part of them shows: what is under them is still not background.
        kept = (objects["crowd"] | centres_inside(objects["boxes"], window)) & (sides > 0).all(axis=1)
        kept &= objects["crowd"] | (sides >= min_size).all(axis=1)
        return image, {
            "boxes": boxes[kept],
            "labels": objects["labels"][kept],
            "crowd": objects["crowd"][kept],
        }

    def _decode(
        self, position: int, size: tuple[int, int], window: Window, resolution: tuple[int, int]
    ) -> NDArray[np.uint8]:
        path = self.index.path(position)
        part = (window.y1 - window.y0, window.x1 - window.x0)
        decoded = read_image(path, min_decode_size(size, part, resolution) if self.reduced_decoding else None)
        if decoded.size != size:
            hint = ": it seems to be annotated without its Exif orientation" if decoded.size == size[::-1] else ""
            raise UserError(
                f"{path} is {decoded.size[1]}x{decoded.size[0]} but annotated as {size[1]}x{size[0]} "
                f"(image id {self.index.image_ids[position]}){hint}; correct width, height and boxes there"
            )
        return decoded.pixels

    def _mosaic(
        self, position: int, augment: DetectionAugment, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], ImageObjects]:
        """Four pictures, this one and three drawn from the set, around a random point of the result."""
        height, width = self.resolution
        split_y, split_x = (min(max(round(side * rng.uniform(0.3, 0.7)), 1), side - 1) for side in (height, width))
        others = rng.integers(len(self.index), size=3).tolist()
        image = np.empty((height, width, 3), np.uint8)
        shown: list[ImageObjects] = []
        corners = [(0, 0), (0, split_x), (split_y, 0), (split_y, split_x)]
        for place, (top, left) in zip(rng.permutation([position, *others]).tolist(), corners):
            bottom, right = (height if top else split_y), (width if left else split_x)
            tile, objects = self._random_window(place, augment, rng, (bottom - top, right - left))
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
    }
