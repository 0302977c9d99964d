"""Oxford Flowers-102 in its official layout: 102 flowers, 1,020 training, 1,020 validation and 6,149 test pictures.

Source: Nilsback & Zisserman, "Automated flower classification over a large number of classes" (ICVGIP 2008),
https://www.robots.ox.ac.uk/~vgg/data/flowers/102/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnvision.data.class_lists import ClassList, ClassLists, labels_of
from mnvision.data.folder_index import read_class_names
from mnvision.data.index import FindingCounter
from mnvision.data.listed import ListedDataModule
from mnvision.data.mat_files import read_mat
from mnvision.data.pictures import Split
from mnvision.errors import UserError

NUM_CLASSES = 102
_KEYS: dict[Split, str] = {"train": "trnid", "val": "valid", "test": "tstid"}


class Flowers102DataModule(ListedDataModule):
    """``jpg/image_00001.jpg``, ``imagelabels.mat`` and ``setid.mat``.

    Args:
        root: Folder of the data set.
        class_names_file: Text file with a class's number (from 1) and its name on each line, for the set has no names
            of its own: without it they are ``flower 1`` and so on.
        **common: See :class:`~mnvision.data.listed.ListedDataModule`.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(self, root: str | Path, class_names_file: str | Path | None = None, **common: Any) -> None:
        super().__init__(root, **common)
        self.class_names_file = None if class_names_file is None else Path(class_names_file)

    def read_lists(self) -> ClassLists:
        """See :meth:`~mnvision.data.listed.ListedDataModule.read_lists`."""
        path = self.root / "imagelabels.mat"
        labels = labels_of(path, read_mat(path, ("labels",))["labels"].tolist(), 1, NUM_CLASSES)
        split_path = self.root / "setid.mat"
        splits: dict[Split, ClassList] = {}
        for split, key in _KEYS.items():
            numbers = read_mat(split_path, (key,))[key]
            if ((numbers < 1) | (numbers > len(labels))).any():
                wrong = int(numbers[(numbers < 1) | (numbers > len(labels))][0])
                raise UserError(f"{split_path}, {key}: picture {wrong} is not in 1 .. {len(labels)}, as {path.name} is")
            names = [f"image_{number:05d}.jpg" for number in numbers.tolist()]
            splits[split] = ClassList(f"{split_path} ({key})", names, labels[numbers - 1])
        count = int(labels.max()) + 1 if len(labels) else 0
        ids = [str(number) for number in range(1, count + 1)]
        given = self.class_names_file
        names = [f"flower {number}" for number in ids] if given is None else read_class_names(given, ids)
        return ClassLists(self.root / "jpg", tuple(names), splits, FindingCounter())
