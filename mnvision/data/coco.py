"""COCO-format detection sets: the official COCO 2017 layout, and any other with the same annotation file.

Source: https://cocodataset.org/#format-data, section "Object Detection".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mnvision.data.coco_json import (
    Records,
    annotation_name,
    check_unique,
    collection_paused,
    column,
    integers,
    load_coco_json,
    read_categories,
    read_objects,
)
from mnvision.data.detection import DetectionDataModule, Split
from mnvision.data.images import image_size
from mnvision.data.index import (
    DataReport,
    DetectionIndex,
    FindingCounter,
    encode_file_names,
    first_few,
    missing_files,
    usable_boxes,
)
from mnvision.errors import UserError

Missing = Literal["error", "skip"]

_LAYOUT = (
    "expected train2017/, val2017/ and annotations/instances_{train,val}2017.json as unpacked from "
    "https://cocodataset.org/#download; for another layout give data.train_images, "
    "data.train_annotations, data.val_images and data.val_annotations"
)


@collection_paused()
def read_coco(annotation_file: str | Path, image_dir: str | Path, missing: Missing = "error") -> DetectionIndex:
    """Reads one split.

    Labels are given in rising order of the category ids, which may be any integers. Boxes that cannot be
    used (zero area, outside their image, NaN) are skipped, boxes over the edge clipped, and both counted.

    Args:
        annotation_file: The JSON file.
        image_dir: Folder that its file names are relative to.
        missing: ``"error"`` refuses annotated images without a file, ``"skip"`` counts and leaves them out.

    Raises:
        UserError: The file is missing or not COCO JSON, holds no images or no categories, ids or class names
            repeat, an annotation names an unknown image or category, or image files are missing.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    data, where, found = load_coco_json(annotation_file), str(annotation_file), FindingCounter()
    category_ids, class_names = read_categories(data["categories"], where)
    images, absent_ids = _present_images(data["images"], image_dir, where, missing, found)
    image_ids = integers(column(images, "id", "image", where), "image id", where)
    names = [str(name) for name in column(images, "file_name", "image", where)]
    _count_shared_files(names, found)
    sizes = _sizes(images, names, image_dir, where)
    annotations = data["annotations"]
    if absent_ids:
        annotations = [item for item in annotations if item.get("image_id") not in absent_ids]
    rows, labels, xyxy, crowd = read_objects(annotations, image_ids, category_ids, where)
    boxes, usable = usable_boxes(xyxy, sizes[rows], partial(annotation_name, annotations), found)
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(rows[kept], kind="stable")]
    crowd = crowd[kept]
    found.add("crowd regions", [annotation_name(annotations, row) for row in kept[crowd][:5]], int(crowd.sum()))
    report = DataReport(where, len(images), int((~crowd).sum()), found.findings())
    counts = np.bincount(rows[kept], minlength=len(images))
    return DetectionIndex(
        image_dir=image_dir,
        file_names=encode_file_names(names),
        image_ids=image_ids,
        sizes=sizes,
        box_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[kept],
        labels=labels[kept],
        crowd=crowd,
        class_names=class_names,
        category_ids=category_ids,
        report=report,
    )


@collection_paused()
def coco_ground_truth(annotation_file: str | Path, index: DetectionIndex) -> dict[str, Any]:
    """The annotation file as an evaluator needs it: everything but segmentations, boxes as they stand there.

    Only what cannot be scored is left out: images without a file where those were skipped on reading (with
    their annotations), and boxes that hold NaN or infinity. Annotations without id, or with ids below 1,
    which pycocotools takes for "unmatched", are numbered anew; a missing area is that of the box.

    Args:
        annotation_file: The JSON file.
        index: What :func:`read_coco` made of it.
    """
    where = str(annotation_file)
    data = load_coco_json(Path(annotation_file))
    sizes = dict(zip(index.image_ids.tolist(), index.sizes.tolist()))
    image_ids = integers(column(data["images"], "id", "image", where), "image id", where).tolist()
    images = [
        {"id": key, "file_name": item["file_name"], "height": sizes[key][0], "width": sizes[key][1]}
        for key, item in zip(image_ids, data["images"])
        if key in sizes
    ]
    annotations = []
    for item in data["annotations"]:
        bbox = np.asarray(item["bbox"], np.float64)
        image_id = int(item["image_id"])
        if image_id in sizes and np.isfinite(bbox).all():
            annotations.append(
                {
                    "id": int(item.get("id", 0)),
                    "image_id": image_id,
                    "category_id": int(item["category_id"]),
                    "bbox": bbox.tolist(),
                    "area": float(item.get("area", bbox[2] * bbox[3])),
                    "iscrowd": int(item.get("iscrowd", 0)),
                }
            )
    if any(item["id"] < 1 for item in annotations):
        for number, item in enumerate(annotations, start=1):
            item["id"] = number
    categories = [{"id": key, "name": name} for key, name in zip(index.category_ids, index.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


class CocoDataModule(DetectionDataModule):
    """COCO 2017 in its official layout, or any COCO-format set by its own file names.

    Args:
        root: Folder that holds the images and annotations.
        train_images: Folder of the training images, relative to ``root`` (or absolute), and so on.
        train_annotations: Annotation file of the training split.
        val_images: Folder of the validation images.
        val_annotations: Annotation file of the validation split.
        test_images: Folder of the test images; None where there is no test split.
        test_annotations: Annotation file of the test split.
        missing: What to do with annotated images that have no file: ``"error"`` or ``"skip"``.
        **common: See :class:`~mnvision.data.detection.DetectionDataModule`.

    Raises:
        UserError: A value is out of range. Reading raises what :func:`read_coco` does.
    """

    def __init__(
        self,
        root: str | Path,
        train_images: str = "train2017",
        train_annotations: str = "annotations/instances_train2017.json",
        val_images: str = "val2017",
        val_annotations: str = "annotations/instances_val2017.json",
        test_images: str | None = None,
        test_annotations: str | None = None,
        missing: Missing = "error",
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        if missing not in ("error", "skip"):
            raise UserError(f"missing must be 'error' or 'skip', got {missing!r}")
        self.missing: Missing = missing
        self.files: Mapping[Split, tuple[str | None, str | None]] = {
            "train": (train_images, train_annotations),
            "val": (val_images, val_annotations),
            "test": (test_images, test_annotations),
        }

    def paths(self, split: Split) -> tuple[Path, Path]:
        """Image folder and annotation file of a split.

        Raises:
            UserError: The split is not configured, or its folder or file does not exist.
        """
        images, annotations = self.files[split]
        if images is None or annotations is None:
            raise UserError(f"no {split} split: give data.{split}_images and data.{split}_annotations")
        if not self.root.is_dir():
            raise UserError(f"data root not found: {self.root}; set data.root; {_LAYOUT}")
        if not (self.root / annotations).is_file():
            raise UserError(f"annotation file not found: {self.root / annotations}; {_LAYOUT}")
        if not (self.root / images).is_dir():
            raise UserError(f"image folder not found: {self.root / images}; {_LAYOUT}")
        return self.root / images, self.root / annotations

    def read(self, split: Split) -> DetectionIndex:
        """Reads one split, see :func:`read_coco`."""
        images, annotations = self.paths(split)
        return read_coco(annotations, images, self.missing)

    def ground_truth(self, split: Split) -> dict[str, Any]:
        """See :func:`coco_ground_truth`; the file is read again, so that nothing is held during training."""
        return coco_ground_truth(self.paths(split)[1], self.index(split))


def _present_images(
    images: Records, image_dir: Path, where: str, missing: Missing, found: FindingCounter
) -> tuple[Records, set[Any]]:
    """Images that have a file, and the ids of those that do not."""
    if not images:
        raise UserError(f"{where}: 'images' is empty, so this split has nothing in it")
    check_unique(integers(column(images, "id", "image", where), "image id", where), "image id", where)
    names = [str(name) for name in column(images, "file_name", "image", where)]
    absent = missing_files(image_dir, names)
    if not absent:
        return images, set()
    if missing == "error":
        raise UserError(
            f"{where}: {len(absent)} of {len(images)} image files are not in {image_dir} "
            f"({first_few(absent)}); complete the folder, or set data.missing=skip to leave them out"
        )
    found.add("images without file skipped", absent)
    gone = set(absent)
    present = [item for item in images if str(item["file_name"]) not in gone]
    if not present:
        raise UserError(f"{where}: none of its {len(images)} image files is in {image_dir}")
    return present, {item["id"] for item in images if str(item["file_name"]) in gone}


def _count_shared_files(names: list[str], found: FindingCounter) -> None:
    if len(set(names)) < len(names):
        unique, counts = np.unique(np.array(names), return_counts=True)
        found.add("file names used by several images", unique[counts > 1].tolist())


def _sizes(images: Records, names: list[str], image_dir: Path, where: str) -> NDArray[np.int32]:
    """``(I, 2)`` heights and widths; from the image's own header where the file does not tell."""
    sizes = []
    for item, name in zip(images, names):
        height, width = item.get("height"), item.get("width")
        if height is None or width is None:
            height, width = image_size(image_dir / name)
        sizes.append((height, width))
    try:
        array = np.array(sizes).astype(np.int32)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: an image's width or height is not a number") from None
    bad = np.flatnonzero((array < 1).any(axis=1))
    if len(bad):
        raise UserError(f"{where}: width or height below 1 for image id {first_few([images[i]['id'] for i in bad])}")
    return array
