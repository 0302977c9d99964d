"""Annotated copies and crops of pictures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

import cv2

from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.prediction.results import ImageDetections, ImageResult, Pixels, Shown

_AS_USUAL = Shown()
_WRITTEN_AS_IS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def crop(pixels: Pixels, box: tuple[float, float, float, float]) -> Pixels:
    """The part of a picture ``(h, w, 3)`` under a box (xyxy, pixels), of at least one pixel each way."""
    height, width = pixels.shape[:2]
    left, top = min(max(math.floor(box[0]), 0), width - 1), min(max(math.floor(box[1]), 0), height - 1)
    right, bottom = min(max(math.ceil(box[2]), left + 1), width), min(max(math.ceil(box[3]), top + 1), height)
    return pixels[top:bottom, left:right]


class PictureWriter:
    """Writes ``images/<name>`` and ``crops/<class>/<name>_<n>.jpg`` below a folder.

    A picture of a format that is not written here (gif, ppm, ...) gets ``.png`` appended to its name.

    Args:
        folder: The folder.
        names: All names to come: where two differ in their suffix only, the crops keep it.
        images: Whether annotated copies are written.
        crops: Whether crops are written.
        shown: How much is drawn.
    """

    def __init__(
        self,
        folder: Path,
        names: Iterable[str] = (),
        images: bool = True,
        crops: bool = False,
        shown: Shown = _AS_USUAL,
    ) -> None:
        self.images_folder, self.crops_folder = result_folders(folder)
        self.images, self.crops, self.shown = images, crops, shown
        stems = Counter(str(PurePath(name).with_suffix("")) for name in names) if crops else {}
        self._shared_stems = {stem for stem, count in stems.items() if count > 1}

    @property
    def written(self) -> list[str]:
        """The folders written to."""
        folders = ((self.images, self.images_folder), (self.crops, self.crops_folder))
        return [f"{folder.name}/" for wanted, folder in folders if wanted and folder.is_dir()]

    def save(self, pixels: Pixels, result: ImageResult, name: str) -> None:
        """Write what was asked for of one picture.

        Args:
            pixels: ``(h, w, 3)`` uint8 RGB, the original picture.
            result: Its prediction.
            name: Relative to the input's folder.
        """
        if self.images:
            suffix = PurePath(name).suffix.lower()
            target = self.images_folder / (name if suffix in _WRITTEN_AS_IS else f"{name}.png")
            write_picture(target, result.draw(pixels, self.shown))
        if self.crops:
            boxes = {head: part for head, part in result.parts.items() if isinstance(part, ImageDetections)}
            for head, found in boxes.items():
                self.save_crops(pixels, found, name, head if len(boxes) > 1 else "")

    def save_crops(self, pixels: Pixels, result: ImageDetections, name: str, head: str = "") -> None:
        """Write every detection of one picture as a picture of its own; ``n`` counts from 0, best first.

        Args:
            pixels: See :meth:`save`.
            result: What was detected.
            name: See :meth:`save`.
            head: A folder below ``crops/``, where several heads detect.
        """
        stem = str(PurePath(name).with_suffix(""))
        stem = name if stem in self._shared_stems else stem
        for number, found in enumerate(result):
            folder = self.crops_folder / head / folder_name(found.name)
            write_picture(folder / f"{stem}_{number}.jpg", crop(pixels, found.box))


def result_folders(output: Path) -> tuple[Path, Path]:
    """Folders of annotated copies and of crops below an output folder."""
    return output / "images", output / "crops"


def folder_name(class_name: str) -> str:
    """A class name without what a file system or a path could read otherwise."""
    return re.sub(r"[^\w\- ]", "_", class_name).strip() or "_"


def write_picture(path: Path, pixels: Pixels) -> None:
    """Write ``(h, w, 3)`` uint8 RGB whole or not at all, in the format of the path's suffix.

    Raises:
        UserError: It cannot be written.
    """
    try:
        written, data = cv2.imencode(path.suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    except cv2.error:  # e.g. a side beyond what the format can hold
        written = False
    if not written:
        height, width = pixels.shape[:2]
        raise UserError(f"cannot write {path}: {width}x{height} pixels do not fit into this format")
    with whole_file(path) as partial:
        try:
            partial.write_bytes(data.tobytes())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
