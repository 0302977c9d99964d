from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mnvision.data.celeba import FACE_BOX, CelebaDataModule
from mnvision.errors import UserError
from tests.builders_faces import ATTRIBUTES, FACE, make_tiny_celeba


def module(root: Path, **options: Any) -> CelebaDataModule:
    return CelebaDataModule(root, **{"resolution": 32, "batch_size": 4, "num_workers": 0, "augment": False, **options})


@pytest.mark.parametrize("csv", [False, True])
def test_splits_labels_and_pictures_of_the_release(tmp_path: Path, csv: bool):
    data = module(make_tiny_celeba(tmp_path, csv=csv), augment={"area": (0.7, 1.0), "brightness": 0, "saturation": 0})
    data.setup("fit")
    assert data.class_names == list(ATTRIBUTES)
    assert [data.num_images(split) for split in ("train", "val", "test")] == [16, 2, 2]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            means = batch["images"].float().mean((2, 3))
            assert ((means[:, 0] > means[:, 1]) == (batch["labels"][:, 0] == 1)).all()
            assert ((means.amax(1) > 150) == (batch["labels"][:, 2] == 1)).all()


def test_landmarks_belong_to_their_pictures(tmp_path: Path):
    source = module(make_tiny_celeba(tmp_path)).source("val")
    assert [source.file_name(i) for i in range(2)] == ["000009.jpg", "000019.jpg"]
    for position, row in enumerate((8, 18)):
        points = source.landmarks(position)
        assert points is not None
        assert (points == FACE + row % 3).all()
    assert module(make_tiny_celeba(tmp_path / "without", landmarks=False)).source("val").landmarks(0) is None


def test_landmarks_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = make_tiny_celeba(tmp_path)
    path = root / "list_landmarks_align_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["19", *lines[1:4], *lines[5:]]))
    data = module(root)
    assert data.source("train").landmarks(2) is None
    monkeypatch.setattr(data.framing, "needs_landmarks", True)
    data._sources.clear()
    with pytest.raises(UserError, match="1 of 16 pictures have no landmarks"):
        data.source("train")
    small = module(make_tiny_celeba(tmp_path / "half", size=(25, 20)))
    monkeypatch.setattr(small.framing, "needs_landmarks", True)
    with pytest.raises(UserError, match=r"000001.jpg is 20 x 25, but has a landmark at 26, 38"):
        small.source("train")


def test_evaluation_shows_the_central_square(tmp_path: Path):
    root = make_tiny_celeba(tmp_path, size=(218, 178))
    picture = np.zeros((218, 178, 3), np.uint8)
    picture[20:198] = 255
    for name in ("000009.jpg", "000019.jpg"):
        Image.fromarray(picture).save(root / "img_align_celeba" / name, quality=100, subsampling=0)
    data = module(root)
    images = next(iter(data.val_dataloader()))["images"]
    assert images.float().mean() > 250  # the edges are off by less than a pixel of the decoded picture
    assert data.preprocess["box"] == list(FACE_BOX)
    data = module(root, framing={"resize": "stretch"})
    assert next(iter(data.val_dataloader()))["images"].float().mean() < 220


def test_validation_without_a_partition_parts_no_identity(tmp_path: Path):
    root = make_tiny_celeba(tmp_path)
    with pytest.raises(UserError, match=r"val_fraction|validation pictures of its own"):
        module(root, val_fraction=0.25).setup("fit")
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"list_eval_partition\.txt \(or \.csv\) not found.*data\.val_fraction"):
        module(root).setup("fit")
    data = module(root, val_fraction=0.25)
    data.setup("fit")
    people = [{(int(n[:6]) - 1) // 2 for n in source.file_names.astype(str)} for source in data._sources.values()]
    assert [len(source) for source in data._sources.values()] == [14, 6]
    assert not people[0] & people[1]
    with pytest.raises(UserError, match="no picture belongs to the test split"):
        data.setup("test")


def test_missing_pieces_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="data root not found"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt"):
        module(tmp_path).setup("fit")
    root = make_tiny_celeba(tmp_path / "set")
    (root / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 20 pictures .* 000003\.jpg"):
        module(root).setup("fit")
    data = module(root, missing="skip")
    data.setup("fit")
    assert data.num_images("train") == 15
    with pytest.raises(UserError, match=r"no attribute Hat; it has Red, Green, Bright, Rare"):
        module(root, missing="skip", attributes=["Red", "Hat"]).setup("fit")


def test_unaligned_pictures_need_a_framing(tmp_path: Path):
    root = make_tiny_celeba(tmp_path)
    (root / "img_align_celeba").rename(root / "img_celeba")
    (root / "list_landmarks_align_celeba.txt").rename(root / "list_landmarks_celeba.txt")
    with pytest.raises(UserError, match=r"img_celeba: these pictures are not aligned; set data\.framing"):
        module(root, images="img_celeba")
    data = module(root, images="img_celeba", framing={"resize": "five_points"})
    assert next(iter(data.val_dataloader()))["images"].shape == (2, 3, 32, 32)


def test_source_is_a_handful_of_arrays(tmp_path: Path):
    source = module(make_tiny_celeba(tmp_path)).source("train")
    assert source.labels.dtype == np.int8
    assert source.file_names.dtype.kind == "S"
    assert len(pickle.dumps(source)) < 4000


def test_real_pictures_and_labels(shared_data: Path):
    data = module(shared_data / "celeba", resolution=64, augment=True, seed=3)
    data.setup("fit")
    assert [data.num_images(split) for split in ("train", "val")] == [4800, 600]
    assert len(data.class_names) == 40
    assert all(not report.findings for report in data.reports().values())
    counts = data.source("train").counts()
    assert (counts.positive + counts.negative == 4800).all()
    assert 0.01 < counts.positive[data.class_names.index("Bald")] / 4800 < 0.05
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (4, 3, 64, 64)
    assert batch["labels"].shape == (4, 40)
    assert torch.isin(batch["labels"], torch.tensor([0, 1], dtype=torch.int8)).all()
    hats = module(shared_data / "celeba", attributes=["Wearing_Hat", "Smiling"]).source("val")
    assert hats.labels.shape == (600, 2)
