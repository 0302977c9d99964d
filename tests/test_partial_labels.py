"""Pictures with labels of several heads, any of them missing: who learns what, and that all labels stay right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnvision.data import decoding
from mnvision.data.celeba import CelebaDataModule
from mnvision.data.joint import JointDataModule
from mnvision.data.loaders import SampleKey
from mnvision.data.partial import PartialLabelsDataModule
from mnvision.data.partial_dataset import MixedSampler
from mnvision.data.shapes import ShapesAttributesDataModule
from mnvision.data.shapes_boxes import ShapesPortraitsDataModule
from mnvision.data.shapes_identities import ShapesIdentitiesDataModule
from mnvision.data.teacher_view import TeacherView
from tests.builders_faces import make_tiny_celeba
from tests.builders_joint import same
from tests.builders_partial import (
    ATTRIBUTES,
    BARE,
    LEAK,
    PEOPLE,
    ROWS,
    make_partial,
    partial_heads,
    partial_module,
    place_of,
)

LETTERS = {"b": "ssd", "a": "attributes", "p": "embedding"}
CROPS = {"area": [0.4, 0.9], "aspect": [0.7, 1.4], "flip": 0.5, "brightness": 0, "saturation": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_partial(tmp_path_factory.mktemp("partial") / "set")


def number_of(path: str) -> int:
    return int(Path(path).stem[1:])


def test_every_picture_is_there_once_with_all_its_labels(root: Path):
    pictures = partial_module(root).pictures
    numbers = [number_of(pictures.path(position)) for position in range(len(pictures))]
    assert numbers == list(ROWS)
    for number, row in zip(numbers, pictures.rows.tolist()):
        assert {name for name, own in zip(pictures.heads, row) if own >= 0} == {LETTERS[x] for x in ROWS[number]}
    assert pictures.describe().startswith("11 pictures: 2 with ")
    assert "2 with ssd and attributes and embedding" in pictures.describe()


def test_what_is_left_out_is_counted(root: Path):
    data = partial_module(root)
    assert "train" not in data.reports()
    assert data.num_images("train") == len(ROWS)
    findings = data.reports()["train"].findings
    assert {what: finding.count for what, finding in findings.items()} == {
        "training pictures that a head is evaluated on left out": 1,
        "pictures without any label left out": len(BARE),
    }
    (leak,) = findings["training pictures that a head is evaluated on left out"].examples
    assert number_of(leak) == LEAK
    assert [number_of(path) for path in findings["pictures without any label left out"].examples] == list(BARE[:5])


def batches_by_picture(data: PartialLabelsDataModule, epochs: int = 1) -> list[dict[int, dict[str, Any]]]:
    """For each epoch, number of a picture -> its pixels, and each head's fields for it."""
    found = []
    loader = data.train_dataloader()
    pictures, names = data.pictures, list(data.data)
    of_row = {
        name: {int(row): number_of(pictures.path(place)) for place, row in enumerate(pictures.rows[:, column])}
        for column, name in enumerate(names)
    }
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        shown: dict[int, dict[str, Any]] = {}
        for batch in loader:
            (group,) = batch["groups"]
            for part in group["parts"]:
                fields = part["batch"]
                own = fields["indices"].tolist() if "indices" in fields else fields["image_ids"].tolist()
                for place, (row, key) in enumerate(zip(part["rows"].tolist(), own)):
                    number = of_row[part["head"]][key] if "indices" in fields else key - 100
                    entry = shown.setdefault(number, {"image": group["images"][row]})
                    assert torch.equal(entry["image"], group["images"][row])
                    targets = fields.get("targets")
                    entry[part["head"]] = (
                        fields["labels"][place]
                        if targets is None
                        else {name: value[place] for name, value in targets.items()}
                    )
        found.append(shown)
    return found


def test_labels_are_those_of_the_files_and_unknown_ones_stay_unknown(root: Path):
    data = partial_module(root, batch_size=11)
    (shown,) = batches_by_picture(data)
    assert sorted(shown) == sorted(ROWS)
    value = {"1": 1, "0": 0, "": -1}
    people = data.data["embedding"].identity_names("train")
    for number, entry in shown.items():
        assert set(entry) - {"image"} == {LETTERS[x] for x in ROWS[number]}
        if "attributes" in entry:
            assert entry["attributes"].tolist() == [value[text] for text in ATTRIBUTES[number].split(",")]
            assert entry["attributes"].dtype == torch.int8
        if "embedding" in entry:
            assert people[int(entry["embedding"])] == PEOPLE[number]


def bright(image: torch.Tensor) -> tuple[int, int, int, int]:
    """Edges of the bright rectangle, by its pixels."""
    y, x = np.nonzero(image[0].numpy() > 130)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_boxes_move_with_crops_and_mirroring(root: Path):
    """Against the pixels themselves; boxes of objects whose centre is cut away are gone."""
    data = partial_module(root, augment=CROPS, batch_size=11, num_workers=0)
    boxes = flips = 0
    for epoch in batches_by_picture(data, epochs=8):
        for number, entry in epoch.items():
            if "ssd" not in entry or entry["ssd"]["labels"][0] < 0:
                continue
            boxes += 1
            assert entry["ssd"]["boxes"][0].tolist() == pytest.approx(bright(entry["image"]), abs=1.5)
            x, _, width, _ = place_of(number)
            flips += bool(entry["ssd"]["boxes"][0][[0, 2]].mean() > 24) != (x + width / 2 > 40)
    assert boxes > 50
    assert 5 < flips < boxes - 5


def test_pictures_without_augmentation_are_whole(root: Path):
    data = partial_module(root, augment=False, batch_size=11)
    for number, entry in batches_by_picture(data)[0].items():
        x, y, width, height = place_of(number)
        corners = np.array([x, y, x + width, y + height]) * [48 / 80, 48 / 60, 48 / 80, 48 / 60]
        if "ssd" in entry:
            assert entry["ssd"]["boxes"][0].tolist() == pytest.approx(corners.tolist(), abs=1e-4)
        assert bright(entry["image"]) == pytest.approx(corners.tolist(), abs=1)


def test_a_picture_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch):
    read = Counter[str]()

    def counted(path: Any, *args: Any) -> Any:
        read[str(path)] += 1
        return plain(path, *args)

    plain = decoding.read_image
    loader = partial_module(root, batch_size=11).train_dataloader()
    monkeypatch.setattr(decoding, "read_image", counted)
    list(loader)
    assert len(read) == len(ROWS)
    assert set(read.values()) == {1}


def test_a_mirrored_upright_face_is_what_the_heads_alone_would_see(tmp_path: Path):
    """The same seed, augmentation and position give the very pixels of the head's own data set: here the face is set
    upright by its landmarks, cropped and mirrored."""
    make_tiny_celeba(tmp_path)
    augment = {"area": [0.5, 1.0], "aspect": [0.8, 1.25], "flip": 0.5, "brightness": 20, "saturation": 0.3}
    common = {"framing": {"resize": "five_points"}, "resolution": 40, "batch_size": 4, "num_workers": 0}
    own = {
        "attributes": CelebaDataModule(tmp_path, augment=augment, **common),
        "colour": CelebaDataModule(tmp_path, augment=augment, attributes=["Red"], **common),
    }
    data = PartialLabelsDataModule(own)
    dataset, alone = data.train_dataloader().dataset, own["attributes"].train_dataloader().dataset
    assert len(dataset) == len(alone) == 16
    for key in [SampleKey(position, epoch) for position in range(16) for epoch in (0, 3)]:
        view = alone[key].view
        assert torch.equal(dataset[key].image, view.image)
        assert [sample.view.position for sample in dataset[key].samples] == [key.position] * 2


def test_a_teacher_sees_the_same_view(root: Path):
    data = partial_module(root, augment=CROPS, batch_size=11)
    data.data["attributes"].teacher_view = TeacherView((48, 48))
    (group,) = next(iter(data.train_dataloader()))["groups"]
    part = next(part for part in group["parts"] if part["head"] == "attributes")
    assert torch.equal(part["batch"]["teacher_images"], group["images"][part["rows"]])
    assert all("teacher_images" not in other["batch"] for other in group["parts"] if other is not part)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 5), st.integers(1, 3))
def test_every_stretch_has_every_kind_in_its_share(sizes: list[int], seed: int, world: int):
    """Up to place t, kind k has n_k t of its pictures to within one; with K kinds, any beginning to within K + 1."""
    kinds = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    samplers = [MixedSampler(kinds, seed, rank, world) for rank in range(world)]
    order = [key.position for key in MixedSampler(kinds, seed, 0, 1)]
    assert sorted(order) == list(range(len(kinds)))
    counts = np.cumsum(np.eye(len(sizes), dtype=int)[kinds[order]], axis=0)
    ideal = np.arange(1, len(kinds) + 1)[:, None] * np.array(sizes) / len(kinds)
    assert (np.abs(counts - ideal) <= len(sizes) + 1).all()
    shares = [[key.position for key in sampler] for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])}
    assert set().union(*map(set, shares)) == set(range(len(kinds)))
    dealt = [position for row in zip(*shares) for position in row]
    assert dealt[: len(order)] == order


def test_orders_depend_on_the_epoch(root: Path):
    sampler = MixedSampler(np.repeat([0, 1], [30, 10]))
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert [key.position for key in sampler] != [key.position for key in first]
    assert {key.epoch for key in sampler} == {1}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_is_entered_where_a_checkpoint_left_it(root: Path, num_workers: int):
    def loader() -> Any:
        made = partial_module(root, batch_size=4, num_workers=num_workers).train_dataloader()
        made.sampler.set_epoch(2)
        return made

    first = loader()
    taken = iter(first)
    next(taken)
    state, rest = first.state_dict(), list(taken)
    again = loader()
    again.load_state_dict(state)
    assert len(rest) == 1
    assert all(map(same, rest, list(again)))


def test_heads_with_their_own_normalisations_see_their_own_pictures(root: Path):
    whole, apart = partial_module(root, batch_size=11), partial_module(root, batch_size=11, together=False)
    (group,) = next(iter(whole.train_dataloader()))["groups"]
    groups = next(iter(apart.train_dataloader()))["groups"]
    assert [part["head"] for own in groups for part in own["parts"]] == ["ssd", "attributes", "embedding"]
    for own, part in zip(groups, group["parts"]):
        assert own["parts"][0]["rows"].tolist() == list(range(len(own["images"])))
        assert torch.equal(own["images"], group["images"][part["rows"]])
        assert same(own["parts"][0]["batch"], part["batch"])


def test_a_head_sits_out_a_batch_that_holds_one_picture_of_it(root: Path):
    collate = partial_module(root).train_dataloader().collate_fn
    dataset = partial_module(root).train_dataloader().dataset
    (group,) = collate([dataset[place] for place in (0, 1, 4)])["groups"]  # boxes; boxes; boxes and attributes
    assert [(part["head"], part["rows"].tolist()) for part in group["parts"]] == [("ssd", [0, 1, 2])]
    assert len(group["images"]) == 3
    (group,) = collate([dataset[4]])["groups"]
    assert [part["head"] for part in group["parts"]] == ["ssd", "attributes"]


def test_every_head_is_evaluated_by_its_own_data(root: Path):
    data = partial_module(root)
    data.setup("fit")
    alone = JointDataModule(partial_heads(root))
    alone.setup("fit")
    for own, other in zip(data.val_dataloader(), alone.val_dataloader(), strict=True):
        assert all(map(same, list(own), list(other)))
    assert data.whole_steps is False


def test_the_generated_portraits_are_three_sets_and_one(tmp_path: Path):
    """Boxes, attributes and identities of the same pictures: the box of each holds its landmarks' centre."""
    common = {"num_train": 60, "num_val": 30, "resolution": 64, "batch_size": 12, "num_workers": 0}
    heads = {
        "ssd": ShapesPortraitsDataModule(tmp_path, **common),
        "attributes": ShapesAttributesDataModule(tmp_path, **common),
        "embedding": ShapesIdentitiesDataModule(tmp_path, {"resize": "stretch"}, **common),
    }
    joint, partial = JointDataModule(heads), PartialLabelsDataModule(heads, augment=False)
    joint.prepare_data()
    joint.setup("fit")
    assert len(joint.train_dataloader()) == len(partial.train_dataloader()) == 5
    assert partial.whole_steps
    assert partial.pictures.report.findings == {}
    large = heads["attributes"].class_names.index("large")
    sides: dict[int, list[float]] = {0: [], 1: []}
    for batch in partial.train_dataloader():
        (group,) = batch["groups"]
        boxes, faces, people = group["parts"]
        for part in group["parts"]:
            assert part["rows"].tolist() == list(range(12))
        names = [heads["ssd"].index("train").file_name(int(key) - 1) for key in boxes["batch"]["image_ids"]]
        for part, name in ((faces, "attributes"), (people, "embedding")):
            source = heads[name].source("train")
            assert [source.file_name(row) for row in part["batch"]["indices"].tolist()] == names
        for box, labels in zip(boxes["batch"]["targets"]["boxes"], faces["batch"]["labels"]):
            sides[int(labels[large])].append(float((box[0, 2:] - box[0, :2]).max()))
    assert np.mean(sides[1]) > np.mean(sides[0]) + 5  # pixels of 64
