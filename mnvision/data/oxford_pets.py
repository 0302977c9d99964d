"""Oxford-IIIT Pets in its official layout: 37 breeds of cats and dogs, 3,680 training and 3,669 test pictures.

Source: Parkhi et al., "Cats and Dogs" (CVPR 2012), https://www.robots.ox.ac.uk/~vgg/data/pets/. Its boxes are of heads
and of the training pictures alone, so there is no option to show them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mnvision.data.class_lists import ClassList, ClassLists, classes_by_id
from mnvision.data.index import FindingCounter
from mnvision.data.listed import ListedDataModule
from mnvision.data.pictures import Split
from mnvision.data.tables import read_lines
from mnvision.errors import UserError

_LISTS: dict[Split, str] = {"train": "trainval.txt", "test": "test.txt"}


class OxfordPetsDataModule(ListedDataModule):
    """``images/Abyssinian_1.jpg``, and ``annotations/{trainval,test}.txt`` with lines ``Abyssinian_1 1 1 1``.

    Class names are those of the files, ``american bulldog``. Arguments and errors as
    :class:`~mnvision.data.listed.ListedDataModule`.
    """

    def read_lists(self) -> ClassLists:
        """See :meth:`~mnvision.data.listed.ListedDataModule.read_lists`."""
        folder = self.root / "annotations"
        read = {split: _read_list(folder / name) for split, name in _LISTS.items()}
        stems = [stem for pictures in read.values() for stem, _ in pictures]
        ids = [number for pictures in read.values() for _, number in pictures]
        breeds = [stem.rpartition("_")[0].replace("_", " ") for stem in stems]
        class_names, labels = classes_by_id(folder, ids, breeds)
        parts = np.split(labels, [len(read["train"])])
        splits = {
            split: ClassList(str(folder / _LISTS[split]), [f"{stem}.jpg" for stem, _ in read[split]], part)
            for split, part in zip(_LISTS, parts)
        }
        return ClassLists(self.root / "images", class_names, splits, FindingCounter())


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Name and number of the class of each picture; lines that begin with ``#`` are comments."""
    pictures = []
    for number, line in enumerate(read_lines(path, "list"), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) < 2 or not fields[1].isdigit() or "_" not in fields[0]:
            raise UserError(f"{path}, line {number}: {line.strip()!r} is no line such as 'Abyssinian_1 1 1 1'")
        pictures.append((fields[0], int(fields[1])))
    return pictures
