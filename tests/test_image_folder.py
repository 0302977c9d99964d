from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mnvision.data.image_folder import ImageFolderDataModule
from mnvision.errors import UserError
from tests.builders import make_image_folder


def module(root: Path, **options: Any) -> ImageFolderDataModule:
    return ImageFolderDataModule(root, **{"resolution": 32, "batch_size": 4, "num_workers": 0, **options})


def test_labels_follow_sorted_folder_names(tmp_path: Path):
    data = module(make_image_folder(tmp_path))
    data.setup("fit")
    assert data.class_names == ["blue", "green", "red"]
    channel = {0: 2, 1: 1, 2: 0}
    seen = 0
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            assert batch["images"].shape[1:] == (3, 32, 32)
            assert batch["images"].dtype == torch.uint8
            for image, label in zip(batch["images"], batch["labels"].tolist()):
                assert image.float().mean((1, 2)).argmax().item() == channel[label]
                seen += 1
    assert seen == 16 + 18
    assert data.reports()["train"].findings["files that are no images skipped"].examples == ("red/notes.txt",)


def test_validation_indices_are_complete(tmp_path: Path):
    data = module(make_image_folder(tmp_path))
    data.setup("validate")
    indices = torch.cat([batch["indices"] for batch in data.val_dataloader()])
    assert indices.tolist() == list(range(18))


def test_split_by_fraction_is_seeded_and_covers_every_class(tmp_path: Path):
    root = make_image_folder(tmp_path, splits=("all",))
    parts = [module(root, train_dir="all", val_fraction=0.34, seed=seed) for seed in (0, 0, 1)]
    names = []
    for data in parts:
        data.setup("fit")
        train, val = data.source("train"), data.source("val")
        assert len(train) == 12
        assert len(val) == 6
        assert torch.bincount(torch.from_numpy(val.labels)).tolist() == [2, 2, 2]
        together = {train.path(i) for i in range(12)} | {val.path(i) for i in range(6)}
        assert len(together) == 18
        names.append(val.file_names.tolist())
    assert names[0] == names[1] != names[2]


def test_class_names_file(tmp_path: Path):
    root = make_image_folder(tmp_path / "set")
    names = tmp_path / "names.txt"
    names.write_text("red crane\nblue crane\ngreen\ttench, Tinca tinca\nunused thing\n")
    assert module(root, class_names_file=names).class_names == [
        "crane (blue)",
        "tench, Tinca tinca",
        "crane (red)",
    ]
    names.write_text("red crane\n")
    with pytest.raises(UserError, match="no name for class folders blue, green"):
        assert module(root, class_names_file=names).class_names


def test_bad_folders_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"data root not found: .*nowhere.*train/<class>"):
        module(tmp_path / "nowhere").setup("fit")
    root = make_image_folder(tmp_path / "set")
    with pytest.raises(UserError, match=r"image folder not found: .*set/valid"):
        module(root, val_dir="valid").setup("fit")
    (root / "val" / "violet").mkdir()
    with pytest.raises(UserError, match="classes that the training folder does not have: violet"):
        module(root).setup("fit")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        module(tmp_path / "bare", train_dir=".", val_fraction=0.5).setup("fit")
    (tmp_path / "bare" / "cat").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        module(tmp_path / "bare", train_dir=".", val_fraction=0.5).setup("fit")
    with pytest.raises(UserError, match="no test split"):
        module(root).setup("test")


def test_class_without_images_is_reported(tmp_path: Path):
    root = make_image_folder(tmp_path)
    (root / "train" / "violet").mkdir()
    data = module(root)
    data.setup("fit")
    assert data.num_classes == 4
    assert data.reports()["train"].findings["classes without images"].examples == ("violet",)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_is_named(tmp_path: Path, num_workers: int):
    root = make_image_folder(tmp_path)
    (root / "val" / "green" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    data = module(root, num_workers=num_workers)
    data.setup("validate")
    with pytest.raises(UserError, match=r"green/3\.jpg"):
        list(data.val_dataloader())


@pytest.mark.parametrize("options", [{"val_fraction": 1.0}, {"crop": 0}, {"batch_size": 0}, {"augment": {"area": 3}}])
def test_bad_arguments_are_refused(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(UserError):
        module(tmp_path, **options)


def test_real_folder(shared_data: Path):
    data = module(shared_data / "dogs", resolution=96, batch_size=8)
    data.setup("fit")
    assert data.num_classes == 10
    assert {split: report.num_images for split, report in data.reports().items()} == {
        "train": 3000,
        "val": 800,
    }
    batch = next(iter(data.val_dataloader()))
    assert batch["images"].float().std() > 10
