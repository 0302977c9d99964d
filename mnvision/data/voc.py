"""Pascal VOC sets: one XML file per image, split lists under ImageSets/Main.

Source: the VOC2012 development kit, section "Data format". Coordinates there count pixels from 1 and name the
first and the last pixel of an object; here a box's edges are ``xmin - 1, ymin - 1, xmax, ymax``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from mnvision.data.detection import DetectionDataModule, Split
from mnvision.data.images import IMAGE_SUFFIXES, image_size
from mnvision.data.index import (
    DataReport,
    DetectionIndex,
    FindingCounter,
    encode_file_names,
    first_few,
    usable_boxes,
)
from mnvision.errors import UserError

_LAYOUT = "expected Annotations/*.xml, JPEGImages/*.jpg and ImageSets/Main/{train,val,test}.txt below it"


class VocObject(NamedTuple):
    """One object as annotated; ``box`` is xyxy in pixels counted from 0."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class VocImage(NamedTuple):
    """One image as annotated."""

    stem: str
    file_name: str
    size: tuple[int, int]
    objects: list[VocObject]


def read_voc_images(root: Path, split: str, one_based: bool = True) -> list[VocImage]:
    """Reads the XML files of one split.

    Args:
        root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets``.
        split: Name of the list in ``ImageSets/Main``, without ``.txt``.
        one_based: Coordinates count from 1, as VOC's do.

    Raises:
        UserError: The list, an XML or an image file is missing or malformed; the text names it.
    """
    if not root.is_dir():
        raise UserError(f"data root not found: {root}; set data.root; {_LAYOUT}")
    stems = _stems(root / "ImageSets" / "Main" / f"{split}.txt")
    files = _files_by_stem(root / "JPEGImages")
    missing = [stem for stem in stems if stem not in files]
    if missing:
        raise UserError(
            f"{root / 'JPEGImages'}: {len(missing)} of {len(stems)} images of split {split} are missing "
            f"({first_few(missing)}); complete the folder or the list"
        )
    return [_read_xml(root, stem, files[stem], one_based) for stem in stems]


def index_voc(
    images: Sequence[VocImage], image_dir: Path, class_names: Sequence[str], keep_difficult: bool, source: str
) -> DetectionIndex:
    """Flat arrays of a split.

    Args:
        images: See :func:`read_voc_images`.
        image_dir: Folder of the pictures.
        class_names: Label -> name.
        keep_difficult: Difficult objects are ordinary ones; otherwise regions that are neither object nor
            background, as COCO's crowds.
        source: What to call the split in the report.

    Raises:
        UserError: An object's class is not among ``class_names``.
    """
    labels_by_name, found = {name: label for label, name in enumerate(class_names)}, FindingCounter()
    unknown = {item.name: image.stem for image in images for item in image.objects if item.name not in labels_by_name}
    if unknown:
        raise UserError(
            f"{source}: classes that the training split does not have: {first_few(sorted(unknown))} "
            f"(in {next(iter(unknown.values()))}.xml); known are {', '.join(class_names)}"
        )
    rows = np.array([row for row, image in enumerate(images) for _ in image.objects], np.int64)
    objects = [item for image in images for item in image.objects]
    sizes = np.array([image.size for image in images], np.int32)
    xyxy = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    shown = [f"{item.name} in {images[row].stem}.xml" for row, item in zip(rows.tolist(), objects)]
    boxes, usable = usable_boxes(xyxy, sizes[rows], shown.__getitem__, found)
    difficult = np.array([item.difficult for item in objects], np.bool_)
    found.add("difficult objects", [shown[row] for row in np.flatnonzero(difficult)])
    crowd = difficult[usable] & (not keep_difficult)
    counts = np.bincount(rows[usable], minlength=len(images))
    return DetectionIndex(
        image_dir=image_dir,
        file_names=encode_file_names([image.file_name for image in images]),
        image_ids=_image_ids(images),
        sizes=sizes,
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[usable],
        labels=np.array([labels_by_name[item.name] for item in objects], np.int64)[usable],
        crowd=crowd,
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        report=DataReport(source, len(images), int((~crowd).sum()), found.findings()),
    )


class VocDataModule(DetectionDataModule):
    """A Pascal VOC set. Category ids are ``label + 1``, image ids the digits of the file names where unique.

    In evaluation, difficult objects are ignored, as in VOC's own protocol: neither found nor missed.

    Args:
        root: Folder with ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.
        train_split: List of training images in ``ImageSets/Main``, without ``.txt``.
        val_split: List of validation images.
        test_split: List of test images.
        class_names: The classes by label; None takes those of the training split, sorted (for Pascal VOC
            itself these are the official twenty in their official order).
        keep_difficult: Train on objects marked difficult as on any other; otherwise they are neither object
            nor background in training either.
        one_based: Coordinates count pixels from 1, as VOC's do; false for tools that count from 0.
        **common: See :class:`~mnvision.data.detection.DetectionDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        class_names: Sequence[str] | None = None,
        keep_difficult: bool = False,
        one_based: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split, "test": test_split}
        self.given_names = tuple(class_names) if class_names is not None else None
        self.keep_difficult, self.one_based = keep_difficult, one_based

    def read(self, split: Split) -> DetectionIndex:
        """Reads one split, see :func:`read_voc_images` and :func:`index_voc`."""
        images = read_voc_images(self.root, self.splits[split], self.one_based)
        names = self.given_names
        if names is None and split == "train":
            names = tuple(sorted({item.name for image in images for item in image.objects}))
        elif names is None:
            names = self.index("train").class_names
        source = str(self.root / "ImageSets" / "Main" / f"{self.splits[split]}.txt")
        return index_voc(images, self.root / "JPEGImages", names, self.keep_difficult, source)

    def ground_truth(self, split: Split) -> dict[str, Any]:
        """COCO-format ground truth; difficult objects are crowds, boxes stand as annotated.

        Boxes without area or with NaN, which nothing could find, are left out.
        """
        index = self.index(split)
        category_ids = dict(zip(index.class_names, index.category_ids))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        read = read_voc_images(self.root, self.splits[split], self.one_based)
        for image_id, image in zip(index.image_ids.tolist(), read):
            height, width = image.size
            images.append({"id": image_id, "file_name": image.file_name, "height": height, "width": width})
            for item in image.objects:
                x0, y0, x1, y1 = item.box
                box = [x0, y0, x1 - x0, y1 - y0]
                if not np.isfinite(box).all() or min(box[2:]) <= 0:
                    continue
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category_ids[item.name],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": int(item.difficult),
                    }
                )
        categories = [{"id": key, "name": name} for name, key in category_ids.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def _stems(path: Path) -> list[str]:
    """Image names in a split list; a second column, as in the lists of single classes, is ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"split list not found: {path}; {_LAYOUT}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read split list {path}: {error}") from None
    stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise UserError(f"split list {path} is empty")
    if len(set(stems)) < len(stems):
        repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
        raise UserError(f"split list {path} names images more than once: {first_few(repeated)}")
    return stems


def _files_by_stem(folder: Path) -> dict[str, str]:
    try:
        names = sorted(os.listdir(folder), reverse=True)  # of a.jpg and a.png, a.jpg wins
    except OSError:
        raise UserError(f"image folder not found: {folder}; {_LAYOUT}") from None
    return {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(IMAGE_SUFFIXES)}


def _read_xml(root: Path, stem: str, file_name: str, one_based: bool) -> VocImage:
    path = root / "Annotations" / f"{stem}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise UserError(f"annotation file not found: {path}; every image of a split needs one") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise UserError(f"{path} is not readable XML: {error}") from None
    height, width = (_side(tree, f"size/{side}", path) for side in ("height", "width"))
    if height < 1 or width < 1:
        height, width = image_size(root / "JPEGImages" / file_name)
    return VocImage(
        stem,
        file_name,
        (height, width),
        [_read_object(item, path, one_based) for item in tree.findall("object")],
    )


def _read_object(item: ElementTree.Element, path: Path, one_based: bool) -> VocObject:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{path}: an object has no name")
    first = 1.0 if one_based else 0.0
    x0, y0, x1, y1 = (_number(item, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = _number(item, "difficult", path, 0.0) == 1.0
    # Equal corners would be an object of one pixel; they occur as slips of the mouse, and count as zero area.
    left, top = (x0 - first if x1 > x0 else x0), (y0 - first if y1 > y0 else y0)
    return VocObject(name, (left, top, x1, y1), difficult)


def _number(node: ElementTree.Element, where: str, path: Path, default: float | None = None) -> float:
    text = node.findtext(where)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise UserError(f"{path}: {where} is {'missing' if text is None else f'{text!r}, not a number'}") from None


def _side(node: ElementTree.Element, where: str, path: Path) -> int:
    value = _number(node, where, path, 0.0)
    if not math.isfinite(value):
        raise UserError(f"{path}: {where} is {value}; give it in pixels, or leave it out")
    return int(value)


def _image_ids(images: Sequence[VocImage]) -> NDArray[np.int64]:
    """The digits of each name as a number if they tell the images apart, otherwise positions from 1."""
    digits = [re.sub(r"\D", "", image.stem)[:18] for image in images]
    if all(digits) and len({int(text) for text in digits}) == len(images):
        return np.array([int(text) for text in digits], np.int64)
    return np.arange(1, len(images) + 1, dtype=np.int64)
