from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnvision.data.coco import CocoDataModule, read_coco
from mnvision.data.detection_dataset import DetectionDataset, collate_detection
from mnvision.data.index import DetectionIndex
from mnvision.data.loaders import SampleKey
from mnvision.errors import UserError
from mnvision.transforms.detection import DetectionAugment
from tests.builders import CATEGORIES, COLOURS, make_tiny_coco

JSON = "annotations/instances_train2017.json"


def read_train(root: Path) -> DetectionIndex:
    return read_coco(root / JSON, root / "train2017")


def find_colour(image: torch.Tensor, colour: tuple[int, int, int]) -> np.ndarray:
    close = (image.permute(1, 2, 0).int() - torch.tensor(colour)).abs().sum(2).numpy() < 200
    y, x = np.nonzero(close)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def test_samples_show_their_boxes_through_augmentation(tmp_path: Path):
    def one_each(data: dict[str, Any]) -> None:
        seen = {item["image_id"]: item for item in reversed(data["annotations"])}
        data["annotations"] = [item for item in seen.values() if item["image_id"] in (100, 103)]

    index = read_train(make_tiny_coco(tmp_path / "coco", size=(240, 320), change=one_each))
    augment = DetectionAugment(brightness=0, contrast=0, saturation=0, hue=0, min_size=8)
    dataset, checked = DetectionDataset(index, (160, 160), augment), 0
    for epoch in range(20):
        for position in (0, 3):
            sample = dataset[SampleKey(position, epoch)]
            assert sample.image.shape == (3, 160, 160)
            for box, label in zip(sample.boxes, sample.labels):
                seen = find_colour(sample.image, COLOURS[index.category_ids[label]])
                np.testing.assert_allclose(seen, box, atol=4)
                checked += 1
    assert checked > 20


def test_mosaic_shows_four_pictures_with_their_boxes(tmp_path: Path):
    index = read_train(make_tiny_coco(tmp_path / "coco", size=(120, 160)))
    options = {
        "mosaic": 1.0,
        "crop": 0.0,
        "zoom_out": 0.0,
        "brightness": 0,
        "contrast": 0,
        "saturation": 0,
        "hue": 0,
    }
    dataset, counts = DetectionDataset(index, (128, 128), DetectionAugment(**options)), []
    for epoch in range(10):
        sample = dataset[SampleKey(2, epoch)]
        counts.append(len(sample.boxes))
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= 128).all()
        for box, label, crowd in zip(sample.boxes, sample.labels, sample.crowd):
            x, y = int(box[[0, 2]].mean()), int(box[[1, 3]].mean())
            found = sample.image[:, y, x].tolist()
            overlapped = sum((b[:2] < (x, y)).all() and (b[2:] > (x, y)).all() for b in sample.boxes) > 1
            if not crowd and not overlapped:
                assert int(np.argmax(found)) == int(np.argmax(COLOURS[index.category_ids[label]]))
    assert max(counts) > 3


def test_batch_is_padded(tmp_path: Path):
    index = read_train(make_tiny_coco(tmp_path / "coco"))
    dataset = DetectionDataset(index, (32, 40))
    batch = collate_detection([dataset[i] for i in (0, 2, 5)])
    assert batch["images"].shape == (3, 3, 32, 40)
    assert batch["images"].dtype == torch.uint8
    assert batch["image_ids"].tolist() == [100, 102, 105]
    assert batch["sizes"].tolist() == [[48, 64]] * 3
    targets = batch["targets"]
    assert (targets["labels"] >= 0).sum(1).tolist() == [2, 3, 0]
    assert targets["crowd"].sum().item() == 1
    assert targets["boxes"].dtype == torch.float32
    assert (targets["boxes"][targets["labels"] < 0] == 0).all()
    scale = torch.tensor([40 / 64, 32 / 48, 40 / 64, 32 / 48])
    torch.testing.assert_close(targets["boxes"][1, :3], torch.from_numpy(index.objects(2)["boxes"]) * scale)
    assert collate_detection([dataset[5]])["targets"]["boxes"].shape == (1, 1, 4)


def test_picture_of_another_size_than_annotated_is_refused(tmp_path: Path):
    def turn(data: dict[str, Any]) -> None:
        data["images"][0].update(width=48, height=64)

    dataset = DetectionDataset(read_train(make_tiny_coco(tmp_path / "coco", change=turn)), (32, 32))
    with pytest.raises(UserError, match=r"000000000000\.jpg is 64x48 but annotated as 48x64 \(image id 100\)"):
        dataset[0]


def module(root: Path, **options: Any) -> CocoDataModule:
    return CocoDataModule(root, **{"resolution": 64, "batch_size": 2, "num_workers": 0, **options})


def test_module_gives_batches_names_and_reports(tmp_path: Path):
    data = module(make_tiny_coco(tmp_path / "coco"), eval_batch_size=4)
    data.setup("fit")
    assert data.class_names == ["person", "car", "kite"]
    assert data.category_ids == [2, 7, 90]
    assert data.num_classes == 3
    assert set(data.reports()) == {"train", "val"}
    assert [len(batch["images"]) for batch in data.train_dataloader()] == [2, 2, 2]
    batches = list(data.val_dataloader())
    assert [len(batch["images"]) for batch in batches] == [4, 2]
    assert torch.cat([batch["image_ids"] for batch in batches]).tolist() == [100, 101, 102, 103, 104, 105]
    with pytest.raises(UserError, match="no test split"):
        data.setup("test")


def test_evaluation_needs_no_training_files(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco")
    shutil.rmtree(root / "train2017")
    data = module(root)
    data.setup("validate")
    assert data.class_names == ["person", "car", "kite"]
    with pytest.raises(UserError, match="image folder not found"):
        data.setup("fit")


def test_categories_of_train_and_val_are_compared(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco", change=lambda data: data.update(categories=list(reversed(CATEGORIES))))
    data = module(root)
    data.setup("fit")  # another order is no difference
    assert data.class_names == ["person", "car", "kite"]
    root = make_tiny_coco(tmp_path / "other", change=lambda data: data["categories"][0].update(name="lorry"))
    with pytest.raises(UserError, match="7: lorry / car"):
        module(root).setup("fit")


def test_missing_root_says_what_is_expected(tmp_path: Path):
    with pytest.raises(UserError, match=r"data root not found: .*nowhere.*train2017/.*cocodataset\.org"):
        module(tmp_path / "nowhere").setup("fit")
    root = make_tiny_coco(tmp_path / "coco")
    (root / JSON).unlink()
    with pytest.raises(UserError, match=r"annotation file not found: .*instances_train2017\.json"):
        module(root).setup("fit")


def test_training_without_a_single_box_is_refused(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco", change=lambda data: data["annotations"].clear())
    with pytest.raises(UserError, match="no usable box"):
        module(root).setup("fit")


@pytest.mark.parametrize(
    "options",
    [{"resolution": 0}, {"batch_size": 0}, {"num_workers": -1}, {"eval_batch_size": 0}, {"missing": "no"}],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(UserError):
        module(tmp_path, **options)
