"""Fine-grained sets in their official layouts: what is read from them, what is refused, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from mnvision.data.cub200 import Cub200DataModule
from mnvision.data.flowers102 import Flowers102DataModule
from mnvision.data.image_folder import ImageFolderDataModule
from mnvision.data.listed import ListedDataModule
from mnvision.data.noisy_csv import NoisyCsvDataModule
from mnvision.data.oxford_pets import OxfordPetsDataModule
from mnvision.data.stanford_dogs import StanfordDogsDataModule
from mnvision.errors import UserError
from mnvision.transforms.annotated_box import AnnotatedBox
from mnvision.transforms.framing import framing_from_dict
from tests.builders import make_image_folder
from tests.builders_fine_grained import (
    BREEDS,
    make_cub,
    make_dogs,
    make_flowers,
    make_pets,
    make_web,
    write_list,
    write_picture,
)

COMMON: dict[str, Any] = {"resolution": 32, "batch_size": 3, "num_workers": 0}
OFFICIAL = {
    "dogs": (StanfordDogsDataModule, make_dogs, ["Chihuahua", "Japanese spaniel", "Shih-Tzu"]),
    "pets": (OxfordPetsDataModule, make_pets, ["Abyssinian", "american bulldog", "Sphynx"]),
    "cub": (Cub200DataModule, make_cub, ["Black footed Albatross", "Laysan Albatross", "Sooty Albatross"]),
    "flowers": (Flowers102DataModule, make_flowers, ["flower 1", "flower 2", "flower 3"]),
}


def colours_are_labels(data: ListedDataModule, split: str) -> None:
    loader = data.train_dataloader() if split == "train" else data.eval_dataloader(split)
    for batch in loader:
        assert batch["images"].float().mean((2, 3)).argmax(1).tolist() == batch["labels"].tolist()


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_layouts(name: str, tmp_path: Path):
    kind, make, class_names = OFFICIAL[name]
    data = kind(make(tmp_path), val_fraction=0.25, **COMMON)
    data.setup("fit")
    data.setup("test")
    assert data.class_names == class_names
    assert data.num_classes == 3
    sizes = {"dogs": (9, 3, 6), "pets": (9, 3, 6), "cub": (9, 3, 6), "flowers": (6, 3, 9)}[name]
    assert tuple(data.num_images(split) for split in ("train", "val", "test")) == sizes
    for split in ("train", "val", "test"):
        colours_are_labels(data, split)
    paths = [data.source(split).path(i) for split in ("train", "val", "test") for i in range(data.num_images(split))]
    assert len(set(paths)) == 18
    assert all(path.is_file() for path in paths)
    assert all(not report.findings for report in data.reports().values())


def test_flowers_have_a_validation_split_of_their_own(tmp_path: Path):
    data = Flowers102DataModule(make_flowers(tmp_path), val_fraction=None, **COMMON)
    data.setup("fit")
    assert (data.num_images("train"), data.num_images("val")) == (6, 3)
    assert data.notes("val") == []
    names = tmp_path / "names.txt"
    names.write_text("1 pink primrose\n2 rose\n3 sweet pea\n")
    assert Flowers102DataModule(tmp_path, class_names_file=names, **COMMON).class_names[0] == "pink primrose"


def test_without_val_fraction_the_test_pictures_validate_and_the_report_says_so(tmp_path: Path):
    data = StanfordDogsDataModule(make_dogs(tmp_path), val_fraction=None, **COMMON)
    data.setup("fit")
    assert (data.num_images("train"), data.num_images("val")) == (12, 6)
    assert "ImageNet" in data.notes("test")[0]
    assert "validated on the test pictures" in data.notes("val")[-1]
    assert len(StanfordDogsDataModule(tmp_path, **COMMON).notes("val")) == 1


def test_lists_may_lie_in_the_root(tmp_path: Path):
    make_dogs(tmp_path)
    for name in ("train_list.mat", "test_list.mat"):
        (tmp_path / "lists" / name).rename(tmp_path / name)
    data = StanfordDogsDataModule(tmp_path, **COMMON)
    assert data.num_images("test") == 6


def test_a_subset_of_imagenet_is_noticed(tmp_path: Path):
    root = make_image_folder(tmp_path)
    assert ImageFolderDataModule(root, **COMMON).notes("val") == []
    for split in ("train", "val"):
        for name, wordnet in (("red", "n02085620"), ("blue", "n02085782"), ("green", "n02086240")):
            (root / split / name).rename(root / split / wordnet)
    assert "may have been trained on the pictures scored here" in ImageFolderDataModule(root, **COMMON).notes("val")[0]


@pytest.mark.parametrize("name", ["dogs", "cub"])
def test_boxes_show_the_object_alone(name: str, tmp_path: Path):
    kind, make, _ = OFFICIAL[name]
    data = kind(make(tmp_path, whole=False), boxes=True, **COMMON)
    dataset = data.eval_dataset("test", None)
    for position in range(len(dataset)):
        view, label = dataset[position]
        others = [channel for channel in range(3) if channel != label]
        # The middle of the box; JPEG blurs its edge.
        assert view.image[label, 4:-4, 4:-4].min() > 200
        assert view.image[others, 4:-4, 4:-4].max() < 60
    assert data.preprocess == {"resize": "annotated_box"}
    assert isinstance(framing_from_dict(data.preprocess), AnnotatedBox)
    assert "annotated boxes" in data.notes("test")[-1]
    whole = kind(tmp_path, **COMMON).eval_dataset("test", None)[0].view.image
    assert (whole.amax(0) < 60).float().mean() > 0.5


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_square_lies_in_the_picture_and_holds_the_box_where_it_fits(height, width, xs, ys):
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    corners = np.array([[x0 * width, y0 * height], [x1 * width, y1 * height]])
    plane = AnnotatedBox().plane((height, width), corners)
    assert plane.matrix is not None
    left, top = -plane.matrix[:, 2]
    assert 0 <= left <= width - plane.size[1]
    assert 0 <= top <= height - plane.size[0]
    side = max(round(max(corners[1] - corners[0])), 1)
    assert plane.size == (min(side, height), min(side, width))
    # Whole pixels: the box may stick out by less than one.
    assert left <= corners[0, 0] + 1
    assert left + plane.size[1] >= corners[1, 0] - 1
    assert top <= corners[0, 1] + 1
    assert top + plane.size[0] >= corners[1, 1] - 1


def test_pictures_without_a_box_are_shown_whole():
    assert AnnotatedBox().plane((30, 50)).matrix is None


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def relabel(root: Path, number: int) -> None:
    labels = loadmat(root / "imagelabels.mat")["labels"]
    labels[0, 0] = number
    savemat(root / "imagelabels.mat", {"labels": labels})


def dog_list(root: Path, change: Callable[[list[str], list[int]], None], split: str = "train") -> None:
    content = loadmat(root / "lists" / f"{split}_list.mat")
    names = [str(cell[0][0]) for cell in content["file_list"]]
    labels = content["labels"].ravel().tolist()
    change(names, labels)
    write_list(root / "lists" / f"{split}_list.mat", names, labels)


BAD = {
    "no list": ("dogs", lambda root: (root / "lists" / "test_list.mat").unlink(), r"list not found: .*test_list.mat"),
    "damaged list": (
        "dogs",
        lambda root: (root / "lists" / "train_list.mat").write_bytes(b"MATLAB 5.0 MAT-file" + b"\0" * 200),
        "train_list.mat is no readable MATLAB file",
    ),
    "other list": (
        "dogs",
        lambda root: savemat(root / "lists" / "train_list.mat", {"other": 1}),
        "holds no variable 'file_list'",
    ),
    "class of another number": (
        "dogs",
        lambda root: dog_list(root, lambda names, labels: labels.__setitem__(0, 120)),
        "entry 2: class 1 is n02085620-Chihuahua, which is class 120 elsewhere",
    ),
    "class 0": (
        "dogs",
        lambda root: dog_list(root, lambda names, labels: labels.__setitem__(slice(0, 4), [0] * 4)),
        "entry 1: class 0; classes count from 1",
    ),
    "listed twice": (
        "dogs",
        lambda root: dog_list(root, lambda names, labels: (names.append(names[0]), labels.append(labels[0]))),
        "train_list.mat names pictures more than once: n02085620-Chihuahua/n02085620_0.jpg",
    ),
    "in both splits": (
        "pets",
        lambda root: edit(root / "annotations" / "test.txt", "Sphynx_5", "Sphynx_0"),
        r"test.txt names pictures that .*trainval.txt names too: Sphynx_0.jpg",
    ),
    "no file": (
        "pets",
        lambda root: (root / "images" / "Abyssinian_0.jpg").unlink(),
        r"1 of 12 pictures that .*trainval.txt names are not in .*images: Abyssinian_0.jpg; unpack them, or",
    ),
    "pets class 0": (
        "pets",
        lambda root: edit(root / "annotations" / "trainval.txt", "Sphynx_3 3 1 3", "Sphynx_3 0 1 3"),
        "entry 12: class 0; classes count from 1",
    ),
    "pets no line": (
        "pets",
        lambda root: edit(root / "annotations" / "trainval.txt", "Sphynx_3 3 1 3", "Sphynx"),
        r"trainval.txt, line 12: 'Sphynx' is no line such as",
    ),
    "cub class": (
        "cub",
        lambda root: edit(root / "image_class_labels.txt", "18 3", "18 201"),
        r"image_class_labels.txt, entry 18: class 201 is not in 1 .. 3 \(1 such entries\)",
    ),
    "cub number twice": (
        "cub",
        lambda root: edit(root / "images.txt", "2 001", "1 001"),
        "images.txt, line 2: number 1 occurs twice",
    ),
    "cub picture unlabelled": (
        "cub",
        lambda root: edit(root / "image_class_labels.txt", "18 3\n", ""),
        "do not name the same pictures: numbers 18",
    ),
    "cub split": (
        "cub",
        lambda root: edit(root / "train_test_split.txt", "18 0", "18 2"),
        "train_test_split.txt, line 18: '18 2' is no number and 0 or 1",
    ),
    "cub no classes": ("cub", lambda root: (root / "classes.txt").unlink(), "list not found: .*classes.txt"),
    "flowers class 0": ("flowers", lambda root: relabel(root, 0), r"entry 1: class 0 is not in 1 .. 102"),
    "flowers class 103": ("flowers", lambda root: relabel(root, 103), r"entry 1: class 103 is not in 1 .. 102"),
    "flowers picture": (
        "flowers",
        lambda root: savemat(root / "setid.mat", {"trnid": [[1, 99]], "valid": [[2]], "tstid": [[3]]}),
        r"setid.mat, trnid: picture 99 is not in 1 .. 18",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path):
    name, damage, text = BAD[case]
    kind, make, _ = OFFICIAL[name]
    damage(make(tmp_path))
    with pytest.raises(UserError, match=text) as caught:
        kind(tmp_path, **COMMON).setup("fit")
    assert "\n" not in str(caught.value)


def test_bad_boxes_are_refused(tmp_path: Path):
    root = make_dogs(tmp_path / "dogs")
    annotation = root / "Annotation" / BREEDS[0] / "n02085620_0"
    good = annotation.read_text()
    for text, expected in (
        (good.replace("<xmax>36<", "<xmax>wide<"), "a side of a box is missing or no number"),
        ("<annotation></annotation>", "holds no box"),
        ("<annotation>", "is not readable XML"),
    ):
        annotation.write_text(text)
        with pytest.raises(UserError, match=expected):
            StanfordDogsDataModule(root, boxes=True, **COMMON).setup("fit")
    annotation.unlink()
    with pytest.raises(UserError, match=r"annotation not found: .*n02085620_0; unpack it, or set data.boxes=false"):
        StanfordDogsDataModule(root, boxes=True, **COMMON).setup("fit")
    StanfordDogsDataModule(root, **COMMON).setup("fit")

    cub = make_cub(tmp_path / "cub")
    edit(cub / "bounding_boxes.txt", "1 20.0 10.0", "1 120.0 10.0")
    with pytest.raises(
        UserError, match=r"_0000.jpg is 56 x 40, its box \[120.0, 10.0, 136.0, 26.0\], and 1 of 12 boxes"
    ):
        Cub200DataModule(cub, boxes=True, **COMMON).setup("fit")
    edit(cub / "bounding_boxes.txt", "1 120.0 10.0 16.0", "1 50.0 10.0 16.0")
    data = Cub200DataModule(cub, boxes=True, **COMMON)
    data.setup("fit")
    assert data.reports()["train"].findings["boxes clipped to their image"].count == 1


def test_missing_pictures_can_be_left_out(tmp_path: Path):
    root = make_pets(tmp_path)
    (root / "images" / "Abyssinian_0.jpg").unlink()
    data = OxfordPetsDataModule(root, missing="skip", val_fraction=None, **COMMON)
    data.setup("fit")
    assert data.num_images("train") == 11
    assert data.reports()["train"].findings["listed pictures without a file left out"].count == 1


def test_values_out_of_range(tmp_path: Path):
    for words, text in (
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"missing": "ignore"}, "missing"),
        ({"crop": 2.0}, "crop"),
    ):
        with pytest.raises(UserError, match=text):
            OxfordPetsDataModule(tmp_path, **{**COMMON, **words})
    with pytest.raises(UserError, match="data root not found"):
        OxfordPetsDataModule(tmp_path / "absent", **COMMON).setup("fit")


def web(root: Path, **options: Any) -> NoisyCsvDataModule:
    return NoisyCsvDataModule(root, images="images", **{**COMMON, **options})


def test_a_noisy_table_is_read_and_its_flaws_are_counted(tmp_path: Path):
    root = make_web(tmp_path)
    with (root / "train.csv").open("a") as file:
        file.write("red/1.jpg,red\nred/2.jpg,blue\nred/0.jpg,blue\ngone.jpg,red\nblue/4.jpg,\n")
    data = web(root, val_labels="clean.csv")
    data.setup("fit")
    assert data.class_names == ["blue", "green", "red"]
    assert data.num_images("val") == 3
    findings = data.reports()["train"].findings
    assert {what: finding.count for what, finding in findings.items()} == {
        "rows that repeat another one left out": 1,
        "rows without a label left out": 1,
        "pictures with several labels left out": 1,
        "training pictures that are also validation or test pictures left out": 1,
        "listed pictures without a file left out": 1,
    }
    assert findings["pictures with several labels left out"].examples == ("red/2.jpg",)
    assert data.num_images("train") == 14
    assert data.notes("val") == []
    labels = data.source("train").labels
    assert np.bincount(labels).tolist() == [5, 5, 4]


def test_a_noisy_table_without_clean_pictures_is_validated_on_a_part(tmp_path: Path):
    root = make_web(tmp_path)
    edit(root / "train.csv", "path,label", "url;class")
    (root / "train.csv").write_text((root / "train.csv").read_text().replace(",", ";"))
    data = web(root, val_fraction=0.2, columns={"path": "url", "label": "class"})
    data.setup("fit")
    assert (data.num_images("train"), data.num_images("val")) == (12, 3)
    assert "as noisy as those of training" in data.notes("val")[0]
    with pytest.raises(UserError, match="has no test split"):
        data.setup("test")


@pytest.mark.parametrize(
    ("old", "new", "options", "text"),
    [
        ("path,label", "file,label", {}, r"train.csv, line 1: no column 'path'; there are file, label"),
        ("red/1.jpg,red", "red/1.jpg", {}, "train.csv, line 2: 1 fields instead of 2"),
        ("red/1.jpg,red", ",red", {}, "train.csv, line 2: the row names no file"),
        ("blue/1.jpg,blue", "blue/1.jpg,blue", {"val_labels": "odd.csv"}, "classes that train.csv does not have: pink"),
        ("red/1.jpg", "red/one.jpg", {"missing": "error"}, "1 of 15 pictures"),
        ("path,label", "path,label", {"val_fraction": None}, "no validation split"),
        ("path,label", "path,label", {"labels": "none.csv"}, "table of labels not found"),
    ],
)
def test_bad_tables_are_refused(old: str, new: str, options: dict[str, Any], text: str, tmp_path: Path):
    root = make_web(tmp_path)
    (root / "odd.csv").write_text("path,label\nred/0.jpg,pink\n")
    edit(root / "train.csv", old, new)
    with pytest.raises(UserError, match=text):
        web(root, **options).setup("fit")


def test_real_breeds_in_the_layout_of_stanford_dogs(shared_data: Path, tmp_path: Path):
    names: dict[str, tuple[list[str], list[int]]] = {}
    (tmp_path / "Images").mkdir()
    for split, folder in (("train", "train"), ("test", "val")):
        names[split] = ([], [])
        for number, breed in enumerate(sorted((shared_data / "dogs" / folder).iterdir()), start=1):
            target = tmp_path / "Images" / f"{breed.name}-breed_{number}"
            target.mkdir(exist_ok=True)
            for picture in sorted(breed.iterdir())[:3]:
                (target / picture.name).symlink_to(picture)
                names[split][0].append(f"{target.name}/{picture.name}")
                names[split][1].append(number)
        write_list(tmp_path / "lists" / f"{split}_list.mat", *names[split])
    data = StanfordDogsDataModule(tmp_path, val_fraction=0.3, **COMMON)
    data.setup("fit")
    batch = next(iter(data.eval_dataloader("test")))
    assert data.class_names[0] == "breed 1"
    assert data.num_images("test") == 30
    assert torch.equal(batch["labels"], torch.tensor([0, 0, 0]))
    assert batch["images"].float().std() > 20


def test_a_picture_that_is_no_picture_ends_in_one_line(tmp_path: Path):
    root = make_pets(tmp_path)
    (root / "images" / "Abyssinian_5.jpg").write_text("gone")
    data = OxfordPetsDataModule(root, **COMMON)
    with pytest.raises(UserError, match=r"Abyssinian_5.jpg"):
        list(data.test_dataloader())
    write_picture(root / "images" / "Abyssinian_5.jpg", 0)
    assert len(list(data.test_dataloader())) == 2
