"""Stanford Dogs in its official layout: 120 breeds, 12,000 training and 8,580 test pictures.

Source: Khosla et al., "Novel Dataset for Fine-Grained Image Categorization" (2011),
http://vision.stanford.edu/aditya86/ImageNetDogs/. The MobileNets paper scores on it (section 4.3, Table 10).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from mnvision.data.class_lists import ClassList, ClassLists, classes_by_id
from mnvision.data.image_folder import imagenet_note
from mnvision.data.index import FindingCounter
from mnvision.data.listed import BoxedDataModule
from mnvision.data.mat_files import read_mat
from mnvision.data.pictures import Split
from mnvision.errors import UserError

_LISTS: dict[Split, str] = {"train": "train_list.mat", "test": "test_list.mat"}
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class StanfordDogsDataModule(BoxedDataModule):
    """``Images/n02085620-Chihuahua/n02085620_10074.jpg``, ``lists/{train,test}_list.mat``; for boxes ``Annotation/``.

    The lists may also lie in the root itself, as the archive unpacks them. Arguments and errors as
    :class:`~mnvision.data.listed.BoxedDataModule`.
    """

    errata = (imagenet_note("Stanford Dogs is made of pictures of ImageNet"),)

    def read_lists(self) -> ClassLists:
        """See :meth:`~mnvision.data.listed.ListedDataModule.read_lists`."""
        read: dict[Split, tuple[Path, list[str], list[int]]] = {}
        for split, name in _LISTS.items():
            path = self.root / "lists" / name
            path = path if path.is_file() or not (self.root / name).is_file() else self.root / name
            content = read_mat(path, ("file_list", "labels"))
            names, ids = content["file_list"].tolist(), content["labels"].tolist()
            if len(names) != len(ids) or not all(isinstance(name, str) and "/" in name for name in names):
                raise UserError(
                    f"{path}: {len(names)} files and {len(ids)} labels; expected as many, and names such as "
                    "n02085620-Chihuahua/n02085620_10074.jpg"
                )
            read[split] = (path, names, ids)
        every_name = [name for _, names, _ in read.values() for name in names]
        every_id = [number for _, _, ids in read.values() for number in ids]
        folders = [name.split("/")[0] for name in every_name]
        by_label, labels = classes_by_id(self.root / "lists", every_id, folders)
        parts = np.split(labels, [len(read["train"][1])])
        splits = {split: ClassList(str(read[split][0]), read[split][1], part) for split, part in zip(_LISTS, parts)}
        return ClassLists(self.root / "Images", _breeds(by_label), splits, FindingCounter())

    def read_boxes(self, names: Sequence[str]) -> NDArray[np.float64]:
        """The largest box of each picture, see :meth:`~mnvision.data.listed.BoxedDataModule.read_boxes`."""
        paths = [self.root / "Annotation" / Path(name).with_suffix("") for name in names]
        return np.array([_largest_box(path) for path in paths], np.float64).reshape(-1, 4)


def _breeds(folders: Sequence[str]) -> tuple[str, ...]:
    """``n02085782-Japanese_spaniel`` -> ``Japanese spaniel``, unless two folders would share a name."""
    names = [folder.partition("-")[2].replace("_", " ") or folder for folder in folders]
    return tuple(names) if len(set(names)) == len(names) else tuple(folders)


def _largest_box(path: Path) -> tuple[float, ...]:
    """The largest of the boxes in an annotation file, xyxy."""
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise UserError(f"annotation not found: {path}; unpack it, or set data.boxes=false") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise UserError(f"{path} is not readable XML: {error}") from None
    try:
        boxes = [tuple(float(item.findtext(side) or "") for side in _SIDES) for item in root.iter("bndbox")]
    except ValueError:
        raise UserError(f"{path}: a side of a box is missing or no number") from None
    if not boxes or not all(math.isfinite(side) for box in boxes for side in box):
        raise UserError(f"{path} holds no box of finite numbers; data.boxes=false does without")
    return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
