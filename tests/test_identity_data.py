"""Data sets of people: what is trained on, what is verified, and that they stay apart."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnvision.data.identity_index import list_from_file
from mnvision.data.identity_overlap import normalised
from mnvision.data.identity_sets import (
    CelebaIdentitiesDataModule,
    IdentityFoldersDataModule,
    IdentityListDataModule,
)
from mnvision.data.shapes_identities import ShapesIdentitiesDataModule
from mnvision.data.shapes_write import generate
from mnvision.errors import UserError
from mnvision.metrics.verification import verify
from mnvision.transforms.alignment import FivePoints
from mnvision.transforms.framing import framing_from_dict
from tasks.reports_embeddings import people_trained_on, verification_report
from tests.builders_faces import FACE, make_tiny_celeba
from tests.builders_identities import (
    LFW_PEOPLE,
    TEMPLATE,
    find_dots,
    make_lfw,
    make_people,
    write_landmarks,
)

UPRIGHT = {"resize": "five_points"}
WHOLE = {"resize": "stretch"}
HALVES = (np.array([[0, 1], [0, 2], [2, 3], [1, 3]]), np.array([True, False, True, False]), np.array([0, 0, 1, 1]))
SMALL: dict[str, Any] = {"resolution": 32, "batch_size": 4, "num_workers": 0, "augment": False}
TRAIN = {"Ann Lee": 4, "Zoë_Zed": 3, "Yan_Yew": 3, "Xia_Xu": 2, "Wim_Wu": 2, "Val_Vox": 1}


def folders(root: Path, framing: dict[str, Any] = WHOLE, **options: Any) -> IdentityFoldersDataModule:
    return IdentityFoldersDataModule(root, framing, **{**SMALL, **options})


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    return make_lfw(tmp_path / "lfw")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    write_landmarks(tmp_path / "points.csv", make_people(tmp_path / "faces", TRAIN))
    return tmp_path / "faces"


class TestFolders:
    def test_train_and_verify_on_another_set(self, faces: Path, lfw: Path, caplog: pytest.LogCaptureFixture):
        data = folders(faces, pairs="pairs.txt", pairs_root=lfw)
        with caplog.at_level(logging.INFO):
            data.setup("fit")
        assert data.class_names == []
        assert data.labelled
        assert data.num_identities == 6
        assert data.identity_names("train") == sorted(TRAIN)
        assert data.identity_names("val") == sorted(LFW_PEOPLE)
        batch = next(iter(data.train_dataloader()))
        assert batch["images"].shape == (4, 3, 32, 32)
        assert batch["labels"].dtype == torch.int64
        assert "6 and 5 names): 1 in both" in caplog.text
        assert "1 of 6 identities to train on are also verified" in caplog.text
        assert "Ann Lee; data.overlap=exclude" in caplog.text

    def test_labels_are_those_of_the_folders(self, faces: Path, lfw: Path):
        data = folders(faces, pairs="pairs.txt", pairs_root=lfw)
        source, names = data.source("train"), data.identity_names("train")
        assert len(source) == sum(TRAIN.values())
        for position in range(len(source)):
            assert source.path(position).parent.name == names[source.labels[position]]

    def test_every_picture_of_the_pairs_once(self, lfw: Path):
        data = folders(lfw, pairs="pairs.txt")
        data.setup("validate")
        batches = list(data.val_dataloader())
        assert torch.cat([batch["indices"] for batch in batches]).tolist() == list(range(10))
        labels = torch.cat([batch["labels"] for batch in batches]).numpy()
        pairs = data.pairs("val")
        np.testing.assert_array_equal(labels[pairs.positions[:, 0]] == labels[pairs.positions[:, 1]], pairs.same)
        assert pairs.folds.tolist() == [0] * 4 + [1] * 4
        data.setup("test")
        np.testing.assert_array_equal(data.pairs("test").positions, pairs.positions)

    def test_who_is_verified_is_not_trained_on_in_one_set(self, lfw: Path):
        make_people(lfw / "lfw-deepfunneled", {"Fay_Gun": 2})
        with pytest.raises(UserError, match=r"5 of 6 identities to train on are also verified .*overlap=exclude"):
            folders(lfw, pairs="pairs.txt").setup("fit")
        data = folders(lfw, pairs="pairs.txt", overlap="exclude")
        data.setup("fit")
        assert data.identity_names("train") == ["Fay_Gun"]
        findings = data.reports()["train"].findings
        assert findings["identities not trained on, as they are verified"].count == 5

    def test_nobody_is_left_to_train_on(self, lfw: Path):
        with pytest.raises(UserError, match="so there is nobody to train on"):
            folders(lfw, pairs="pairs.txt", overlap="exclude").setup("fit")

    def test_names_shared_with_another_set_can_be_excluded(self, faces: Path, lfw: Path):
        data = folders(faces, pairs="pairs.txt", pairs_root=lfw, overlap="exclude")
        assert "Ann Lee" not in data.identity_names("train")
        assert data.num_identities == 5

    def test_who_was_trained_on_is_named_for_any_pairs(self, faces: Path, lfw: Path):
        data = folders(faces, pairs="pairs.txt", pairs_root=lfw)
        assert data.also_verified(data.source("val")) == ["Ann Lee"]
        without = folders(faces, pairs="pairs.txt", pairs_root=lfw, overlap="exclude")
        assert without.also_verified(data.source("val")) == []
        make_people(lfw / "lfw-deepfunneled", {"Fay_Gun": 2, "12": 2})
        parted = folders(lfw, pairs="pairs.txt", overlap="exclude")
        assert parted.also_verified(parted.source("val")) == []
        lines = ["Fay_Gun/Fay_Gun_0001.jpg Fay_Gun/Fay_Gun_0002.jpg 1", "Fay_Gun/Fay_Gun_0001.jpg 12/12_0001.jpg 0"]
        lines += ["Ann_Lee/Ann_Lee_0001.jpg Ann_Lee/Ann_Lee_0002.jpg 1", "Ann_Lee/Ann_Lee_0001.jpg 12/12_0002.jpg 0"]
        (lfw / "own.txt").write_text("\n".join(lines) + "\n")
        others = folders(lfw, pairs="own.txt").source("val")
        assert parted.also_verified(others) == ["12", "Fay_Gun"]

    def test_numbers_cannot_be_compared_with_another_set(self, tmp_path: Path, lfw: Path):
        make_people(tmp_path / "numbers", {"1": 2, "2": 2})
        data = folders(tmp_path / "numbers", pairs="pairs.txt", pairs_root=lfw)
        assert data.also_verified(data.source("val")) is None

    def test_the_report_names_who_was_trained_on(
        self, faces: Path, lfw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        evaluated = folders(lfw, pairs="pairs.txt")
        run = {"_target_": "mnvision.data.identity_sets.IdentityFoldersDataModule", "root": str(faces), **SMALL}
        run |= {"framing": WHOLE, "pairs": "pairs.txt", "pairs_root": str(lfw)}
        shared = people_trained_on({"data": run}, evaluated, "val")
        assert shared == ["Ann Lee"]
        scores = verify(np.eye(4, dtype=np.float32)[[0, 0, 1, 1]], *HALVES)
        lines = verification_report(tmp_path / "report", scores, shared)
        assert "1 people in the pairs were trained on, so the scores are too good: Ann Lee" in lines
        assert people_trained_on({}, evaluated, "val") is None
        with caplog.at_level(logging.INFO, "mnvision"):
            assert people_trained_on({"data": {**run, "root": str(tmp_path / "gone")}}, evaluated, "val") is None
        assert "who was trained on cannot be compared with who is verified: data root not found" in caplog.text

    def test_held_out_identities(self, tmp_path: Path):
        make_people(tmp_path, {f"Person_{i:c}": 4 for i in range(65, 85)})
        data = folders(tmp_path, val_fraction=0.4, num_pairs=40)
        data.setup("fit")
        train, val = set(data.identity_names("train")), set(data.identity_names("val"))
        assert not train & val
        assert len(train) == 12
        pairs, source = data.pairs("val"), data.source("val")
        assert len(source) == len(np.unique(pairs.positions)) == pairs.positions.max() + 1
        owner = np.array([source.path(position).parent.name for position in range(len(source))])
        np.testing.assert_array_equal(owner[pairs.positions[:, 0]] == owner[pairs.positions[:, 1]], pairs.same)
        again = folders(tmp_path, val_fraction=0.4, num_pairs=40)
        np.testing.assert_array_equal(again.pairs("val").positions, pairs.positions)
        with pytest.raises(UserError, match="has no test split"):
            data.setup("test")

    def test_few_pictures(self, faces: Path, lfw: Path):
        data = folders(faces, pairs="pairs.txt", pairs_root=lfw, min_images=3)
        assert data.identity_names("train") == ["Ann Lee", "Yan_Yew", "Zoë_Zed"]
        finding = data.reports()["train"].findings["identities with fewer than 3 pictures left out"]
        assert finding.count == 3
        with pytest.raises(UserError, match="no identity has 9 pictures"):
            folders(faces, pairs="pairs.txt", pairs_root=lfw, min_images=9).setup("fit")

    def test_batches_of_identities(self, faces: Path, lfw: Path):
        options = {"pairs": "pairs.txt", "pairs_root": lfw, "sampling": "identities", "images_per_identity": 2}
        data = folders(faces, **options)
        batches = list(data.train_dataloader())
        assert len(batches) == 15 // 4
        for batch in batches:
            labels = batch["labels"].tolist()
            assert labels[0] == labels[1] != labels[2] == labels[3]
        assert folders(faces, **options, batch_size=6, identities_per_batch=3).identities_per_batch == 3
        for wrong in ({"batch_size": 5}, {"identities_per_batch": 3}, {"images_per_identity": 1}):
            with pytest.raises(UserError, match=r"batch_size=\d is not (a whole number|identities_per_batch=3) x"):
                folders(faces, **{**options, **wrong})
        with pytest.raises(UserError, match="6 identities are too few for batches of 7"):
            folders(faces, **options, batch_size=14).train_dataloader()

    def test_a_folder_around_the_folders(self, tmp_path: Path):
        make_people(tmp_path / "unpacked", {"A": 2, "B": 2})
        assert folders(tmp_path, val_fraction=0.5)._part("train").names == ["A", "B"]
        make_people(tmp_path / "more", {"C": 1})
        with pytest.raises(UserError, match=r"several folders hold identities \(more, unpacked\)"):
            folders(tmp_path).setup("fit")

    def test_missing_folders(self, tmp_path: Path):
        with pytest.raises(UserError, match="data root not found"):
            folders(tmp_path / "nowhere").setup("fit")
        (tmp_path / "a.jpg").touch()
        with pytest.raises(UserError, match="no folders with pictures"):
            folders(tmp_path).setup("fit")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"missing": "ignore"}, "data.missing=ignore: choose error or skip"),
            ({"overlap": "error"}, "data.overlap=error: choose report or exclude"),
            ({"sampling": "pk"}, "data.sampling=pk: choose shuffle or identities"),
            ({"missing_landmarks": "guess"}, "choose error, skip, median"),
            ({"min_images": 0}, "data.min_images=0: give a whole number of at least 1"),
            ({"num_pairs": 1.5}, "data.num_pairs=1.5"),
            ({"val_fraction": 1.0}, "data.val_fraction must lie between 0 and 1"),
            ({"pairs_points": "arcface"}, "give data.pairs_root"),
            ({"pairs_root": "lfw"}, "give data.pairs"),
            ({"points": "arcface"}, "data.points are for data.framing.resize=five_points"),
            ({"framing": {**UPRIGHT, "points": "arcface"}}, "data.framing.points: give data.points"),
            ({"framing": UPRIGHT, "points": "vgg"}, "give arcface, or five pairs"),
        ],
    )
    def test_settings_that_cannot_be(self, tmp_path: Path, options: dict[str, Any], message: str):
        with pytest.raises(UserError, match=re.escape(message)):
            folders(tmp_path, **options)

    def test_nothing_to_validate_on(self, faces: Path):
        with pytest.raises(UserError, match="nothing to validate on: give a file of pairs"):
            folders(faces).setup("validate")
        with pytest.raises(UserError, match="the training pictures have no pairs"):
            folders(faces).pairs("train")


class TestAlignment:
    def test_faces_come_upright(self, lfw: Path):
        data = folders(lfw, UPRIGHT, pairs="pairs.txt", landmarks="landmarks.csv", resolution=112)
        data.setup("validate")
        for batch in data.val_dataloader():
            for image in batch["images"]:
                dots = find_dots(image.permute(1, 2, 0).numpy())
                np.testing.assert_allclose(dots, TEMPLATE, atol=1.5)
        assert data.preprocess == {"resize": "five_points", "points": None, "template": "arcface", "margin": 0.0}

    def test_each_set_has_its_own_points(self, faces: Path, lfw: Path):
        other = {"pairs": "pairs.txt", "pairs_root": lfw}
        data = folders(faces, UPRIGHT, points="arcface", pairs_landmarks="landmarks.csv", **other)
        data.setup("fit")
        assert data.source("train").landmarks(0) is None
        assert data.source("val").landmarks(0).shape == (5, 2)
        assert framing_from_dict(data.preprocess).needs_landmarks
        swapped = folders(faces, UPRIGHT, landmarks=faces.parent / "points.csv", pairs_points="arcface", **other)
        swapped.setup("fit")
        assert swapped.source("train").landmarks(0).shape == (5, 2)
        assert swapped.preprocess["points"] == "arcface"
        recipe = swapped.train_dataset(None).recipe()
        assert recipe["landmarks"] is not None
        assert data.train_dataset(None).recipe()["landmarks"] is None

    def test_without_landmarks(self, faces: Path, lfw: Path):
        with pytest.raises(UserError, match=r"five points, which are not known: give data.landmarks=FILE"):
            folders(faces, UPRIGHT, val_fraction=0.5).setup("fit")
        with pytest.raises(UserError, match=r"give data.pairs_landmarks=FILE"):
            folders(faces, UPRIGHT, points="arcface", pairs="pairs.txt", pairs_root=lfw).setup("fit")

    def test_pictures_without_landmarks(self, lfw: Path):
        lines = (lfw / "landmarks.csv").read_text().splitlines()
        gone = next(line for line in lines if line.startswith("Eve_Poe"))
        (lfw / "landmarks.csv").write_text("\n".join(line for line in lines if line != gone))
        options = {"pairs": "pairs.txt", "landmarks": "landmarks.csv", "framing": UPRIGHT}
        with pytest.raises(UserError, match=r"1 of 10 pictures have no landmarks .*Eve_Poe_0001.jpg; leave them out"):
            folders(lfw, **options).setup("validate")
        skipping = folders(lfw, **options, missing_landmarks="skip")
        assert len(skipping.source("val")) == 9
        assert skipping.pairs("val").same.tolist() == [True, True, False, False, True, True]
        assert skipping.reports()["val"].findings["pairs left out with their pictures"].count == 2
        median = folders(lfw, **options, missing_landmarks="median")
        source = median.source("val")
        assert len(median.pairs("val").same) == 8
        names = [source.file_name(position) for position in range(10)]
        others = np.stack([source.points[i] for i in range(10) if "Eve" not in names[i]])
        place = names.index("Eve_Poe/Eve_Poe_0001.jpg")
        np.testing.assert_allclose(source.points[place], np.median(others, axis=0), rtol=1e-6)

    def test_pictures_that_do_not_look_aligned_are_warned_about(
        self, tmp_path: Path, lfw: Path, caplog: pytest.LogCaptureFixture
    ):
        folders(lfw, pairs="pairs.txt").setup("validate")
        assert not caplog.records
        folders(lfw, pairs="pairs.txt", landmarks="landmarks.csv").setup("validate")
        assert "away from the template, though landmarks are known" in caplog.text
        caplog.clear()
        wide = make_lfw(tmp_path / "wide", size=(48, 60))
        folders(wide, pairs="pairs.txt").setup("validate")
        assert "do not look aligned (60 x 48 pixels)" in caplog.text
        caplog.clear()
        Image.new("RGB", (30, 60)).save(lfw / "lfw-deepfunneled" / "Ann_Lee" / "Ann_Lee_0001.jpg")
        folders(lfw, {"resize": "center_crop", "crop_fraction": 0.8}, pairs="pairs.txt").setup("validate")
        assert "do not look aligned (2 different proportions)" in caplog.text


class TestLists:
    @pytest.mark.parametrize(
        "text",
        [
            "p/a.jpg\t7\np/b.jpg\t7\nq/c.jpg\t12\n",
            "p/a.jpg 7\np/b.jpg 7\nq/c.jpg 12\n",
            "p/a.jpg,7\np/b.jpg,7\n\nq/c.jpg,12\n",
            "1\tp/a.jpg\t7\n1\tp/b.jpg\t7\n1\tq/c.jpg\t12\n",
            "0\t7.000000\tp/a.jpg\n1\t7.000000\tp/b.jpg\n2\t12.000000\tq\\c.jpg\n",
        ],
    )
    def test_forms(self, tmp_path: Path, text: str):
        (tmp_path / "list.txt").write_text(text)
        people = list_from_file(tmp_path / "list.txt", tmp_path)
        assert people.file_names == ["p/a.jpg", "p/b.jpg", "q/c.jpg"]
        assert people.names == ["7", "12"]
        assert people.identities.tolist() == [0, 0, 1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a.jpg\n", "line 1: 'a.jpg' is not a picture and its identity"),
            ("a.jpg 1\nb 2\n", "line 2: 'b 2' is not a picture"),
            ("a.jpg 1\na.jpg 2\n", "line 2: a.jpg is 2 here and 1 in an earlier line"),
        ],
    )
    def test_bad_lines(self, tmp_path: Path, text: str, message: str):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            list_from_file(tmp_path / "list.txt", tmp_path)

    def test_a_list_trains(self, tmp_path: Path, lfw: Path):
        names = list(make_people(tmp_path, {"p": 3, "q": 3}))
        rows = [*names, names[0], "p/gone.jpg"]
        (tmp_path / "list.txt").write_text("".join(f"{name}\t{name[0]}\n" for name in rows))

        def module(**options: Any) -> IdentityListDataModule:
            pairs = {"pairs": "pairs.txt", "pairs_root": lfw}
            return IdentityListDataModule(tmp_path, WHOLE, "list.txt", **pairs, **SMALL, **options)

        with pytest.raises(UserError, match=r"1 of 7 pictures that .*list.txt names are not in .*p/gone.jpg"):
            module().setup("fit")
        data = module(missing="skip")
        data.setup("fit")
        assert data.num_images("train") == 6
        assert data.identity_names("train") == ["p", "q"]
        findings = data.reports()["train"].findings
        assert findings["pictures named more than once, taken once"].count == 1
        assert findings["pictures without a file left out"].examples == ("p/gone.jpg",)


class TestCeleba:
    def module(self, root: Path, framing: dict[str, Any] = UPRIGHT, **options: Any) -> CelebaIdentitiesDataModule:
        return CelebaIdentitiesDataModule(root, framing, **{**SMALL, **options})

    def test_partition_and_landmarks(self, tmp_path: Path, lfw: Path):
        root = make_tiny_celeba(tmp_path / "celeba", num=40, per_identity=1)
        data = self.module(root, pairs="pairs.txt", pairs_root=lfw, pairs_landmarks="landmarks.csv")
        data.setup("fit")
        assert data.num_images("train") == 32
        assert data.identity_names("train")[:2] == ["100", "101"]
        np.testing.assert_array_equal(data.source("train").landmarks(1), FACE + 1)
        assert isinstance(data.source("train").framing, FivePoints)

    def test_a_copy_without_landmarks_has_fixed_points(self, tmp_path: Path):
        root = make_tiny_celeba(tmp_path / "celeba", num=40, per_identity=4, landmarks=False)
        with pytest.raises(UserError, match=r"give data.landmarks=FILE"):
            self.module(root, partition="none", val_fraction=0.5).setup("fit")
        points = (FACE / (40, 50)).tolist()
        data = self.module(root, partition="none", val_fraction=0.5, points=points)
        data.setup("fit")
        assert data.preprocess["points"] == points
        assert data.num_images("train") == 20

    def test_a_partition_that_parts_pictures_and_not_people_is_refused(self, tmp_path: Path):
        root = make_tiny_celeba(tmp_path / "celeba", num=40, per_identity=10)
        with pytest.raises(UserError, match=r"4 of 4 identities to train on are also verified \(validation and test\)"):
            self.module(root).setup("fit")

    def test_missing_files(self, tmp_path: Path):
        with pytest.raises(UserError, match="data root not found"):
            self.module(tmp_path / "nowhere").setup("fit")
        root = make_tiny_celeba(tmp_path / "celeba")
        (root / "list_eval_partition.txt").unlink()
        with pytest.raises(UserError, match=r"list_eval_partition.txt .* set data.partition=none"):
            self.module(root).setup("fit")
        (root / "identity_CelebA.txt").unlink()
        with pytest.raises(UserError, match=r"identity_CelebA\.txt"):
            self.module(root).setup("fit")
        with pytest.raises(UserError, match="choose official or none"):
            self.module(root, partition="mine")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Zoë_Zed", "zoezed"),
        ("zoe zed", "zoezed"),
        ("O'Brien, Pat", "obrienpat"),
        ("n000123", None),
        ("0000045", None),
        ("id_7", None),
        ("王小明", "王小明"),
    ],
)
def test_names_as_they_are_compared(name: str, expected: str | None):
    assert normalised(name) == expected


def test_numbers_cannot_be_compared_with_names(tmp_path: Path, lfw: Path, caplog: pytest.LogCaptureFixture):
    make_people(tmp_path / "numbers", {"0000045": 2, "0000099": 2})
    with caplog.at_level(logging.INFO):
        folders(tmp_path / "numbers", pairs="pairs.txt", pairs_root=lfw).setup("fit")
    assert "cannot be compared" in caplog.text
    assert "numbers has numbers, not names" in caplog.text


def test_generated_portraits(tmp_path: Path):
    sizes = {"num_train": 27, "num_val": 36}
    data = ShapesIdentitiesDataModule(tmp_path, UPRIGHT, **sizes, **{**SMALL, "resolution": 56})
    generate(data.cache, data.job, processes=1)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.num_images("train") == 27
    names = [set(data.identity_names(split)) for split in ("train", "val", "test")]
    assert not names[0] & names[1]
    assert not names[1] & names[2]
    for split in ("val", "test"):
        pairs, labels = data.pairs(split), data.source(split).labels
        np.testing.assert_array_equal(labels[pairs.positions[:, 0]] == labels[pairs.positions[:, 1]], pairs.same)
        assert len(np.unique(pairs.folds)) > 1
    assert next(iter(data.train_dataloader()))["images"].shape == (4, 3, 56, 56)


class TestRealFaces:
    def test_lfw_is_there_with_all_its_pairs_and_fits_the_template(self, shared_data: Path):
        root = shared_data / "lfw"
        if not (root / "pairs.txt").is_file():
            pytest.skip("no LFW there")
        options = {"landmarks": "mtcnn_landmarks.csv", "missing_landmarks": "median", "pairs": "pairs.txt"}
        data = folders(root, UPRIGHT, **options, resolution=112)
        data.setup("validate")
        pairs = data.pairs("val")
        assert len(data.source("val")) == 7701
        assert pairs.positions.shape == (6000, 2)
        labels = data.source("val").labels
        np.testing.assert_array_equal(labels[pairs.positions[:, 0]] == labels[pairs.positions[:, 1]], pairs.same)
        with pytest.raises(UserError, match="4281 of 4281 identities to train on are also verified"):
            data.setup("fit")
        source, distances = data.source("val"), []
        for position in range(0, 7701, 50):
            points = source.landmarks(position)
            matrix = source.framing.plane((180, 180), points).matrix
            distances.append(np.linalg.norm(points @ matrix[:, :2].T + matrix[:, 2] - TEMPLATE, axis=1).mean())
        assert np.median(distances) < 4

    def test_celeba_at_half_its_size(self, shared_data: Path):
        root = shared_data / "celeba"
        if not (root / "identity_CelebA.txt").is_file():
            pytest.skip("no CelebA there")
        fixed = (
            np.array([[69.5, 111.2], [108, 111.3], [88, 135], [72.6, 152.3], [105.6, 152.2]]) / (178, 218)
        ).tolist()
        data = CelebaIdentitiesDataModule(root, UPRIGHT, partition="none", points=fixed, val_fraction=0.2, **SMALL)
        data.setup("fit")
        assert data.num_images("train") == pytest.approx(4800, abs=10)
        assert not set(data.identity_names("train")) & set(data.identity_names("val"))
        assert data.source("val").framing.plane((109, 89)).size == (112, 112)
