"""Models of torchvision as teachers, against torchvision called directly; nothing is downloaded."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, get_model
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from mnvision.errors import UserError
from mnvision.teachers.detections import label_table, padded
from mnvision.teachers.torchvision import TorchvisionTeacher
from tests.test_teachers import equal_states, pictures, state_of

CLASSIFIER, DETECTOR = "mobilenet_v3_small", "ssdlite320_mobilenet_v3_large"


def save_detector(path: Path, columns: int) -> torch.nn.Module:
    """An untrained detector whose scores are not all alike."""
    torch.manual_seed(0)
    model = get_model(DETECTOR, weights=None, weights_backbone=None, num_classes=columns)
    for module in model.head.classification_head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=2.0)
    torch.save(model.state_dict(), path)
    return model.eval()


def test_a_classifier_is_torchvisions_behind_its_own_transforms(tmp_path: Path):
    torch.manual_seed(0)
    model = get_model("resnet18", weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    teacher = TorchvisionTeacher("resnet18", str(tmp_path / "mine.pth"))
    transform = ResNet18_Weights.IMAGENET1K_V1.transforms(resize_size=224)
    images = pictures(2, 224)
    theirs = torch.stack([transform(Image.fromarray(np.asarray(image.permute(1, 2, 0)))) for image in images])
    with torch.no_grad():
        assert torch.allclose(teacher(images)["logits"], model(theirs), atol=1e-4)
    spec = teacher.spec
    assert (spec.kind, spec.resolution, spec.outputs) == ("classification", (224, 224), {"logits": (1000,)})
    assert spec.class_names == tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
    assert spec.multiply_adds == 1_814_073_344


def test_a_file_of_other_classes_takes_their_number_and_names(tmp_path: Path):
    torch.save(get_model(CLASSIFIER, weights=None, num_classes=3).state_dict(), tmp_path / "mine.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    arguments: dict[str, Any] = {"weights": str(tmp_path / "mine.pth"), "resolution": 64}
    teacher = TorchvisionTeacher(CLASSIFIER, num_classes=3, class_names=str(tmp_path / "names.txt"), **arguments)
    assert teacher.spec.class_names == ("a", "b", "c")
    assert teacher.spec.outputs == {"logits": (3,)}
    with pytest.raises(UserError, match=r"mine\.pth: its weights do not fit.*\(3, 1024\) for \(1000, 1024\)"):
        TorchvisionTeacher(CLASSIFIER, **arguments)


def test_a_file_under_its_published_name_is_loaded_as_the_published_weights(tmp_path: Path):
    path = tmp_path / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.manual_seed(1)
    model = get_model("resnet18", weights=None)
    torch.save(model.state_dict(), path)
    hub = torch.hub.get_dir()
    teacher = TorchvisionTeacher("resnet18", str(path), resolution=32)
    assert equal_states(teacher.model.state_dict(), model.state_dict())
    assert torch.hub.get_dir() == hub
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth: cannot be loaded into resnet18"):
        TorchvisionTeacher("resnet18", str(path))


def test_weights_in_torchs_cache_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    model = get_model("resnet18", weights=None)
    torch.save(model.state_dict(), tmp_path / "checkpoints" / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    teacher = TorchvisionTeacher("resnet18", resolution=32)
    assert equal_states(teacher.model.state_dict(), model.state_dict())


def test_without_network_the_line_names_the_file_to_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=r"get https://.*/resnet18-f37072fd\.pth and put it at .*teacher\.weights=FILE"):
        TorchvisionTeacher("resnet18", "IMAGENET1K_V1")


def test_a_detector_is_torchvisions_own(tmp_path: Path):
    model = save_detector(tmp_path / "mine.pth", columns=4)
    (tmp_path / "names.txt").write_text("__background__\nperson\nN/A\nkite\n")
    teacher = TorchvisionTeacher(
        DETECTOR, str(tmp_path / "mine.pth"), num_classes=4, class_names=str(tmp_path / "names.txt"), max_detections=150
    )
    images = pictures(2, 320)
    with torch.no_grad():
        theirs = model(list(images / 255))
    outputs = teacher(images)
    assert teacher.spec.kind == "detection"
    assert teacher.spec.class_names == ("person", "kite")
    assert teacher.spec.outputs == {"boxes": (150, 4), "scores": (150,), "labels": (150,)}
    for row, found in enumerate(theirs):
        real = found["labels"] != 2
        count = min(int(real.sum()), 150)
        assert count > 0
        assert torch.equal(outputs["scores"][row, :count], found["scores"][real][:count])
        renumbered = torch.where(found["labels"][real] == 3, 1, 0)[:count]
        assert torch.equal(outputs["labels"][row, :count].long(), renumbered)
        assert torch.allclose(outputs["boxes"][row, :count] * 320, found["boxes"][real][:count], atol=1e-3)
        assert (outputs["labels"][row, count:] == -1).all()


def test_a_two_stage_detector_sees_pictures_at_their_own_size():
    teacher = TorchvisionTeacher("fasterrcnn_mobilenet_v3_large_320_fpn", None, resolution=(64, 96))
    seen: list[torch.Size] = []
    teacher.model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    before = state_of(teacher)
    teacher.train()(pictures(1, 64, 96))
    assert seen == [(1, 3, 64, 96)]
    assert equal_states(before, teacher.state_dict())
    assert len(teacher.spec.class_names or ()) == 80


def test_cocos_ninety_ids_become_eighty_labels():
    table, names = label_table(SSDLite320_MobileNet_V3_Large_Weights.COCO_V1.meta["categories"])
    assert len(names) == 80
    assert (names[0], names[79]) == ("person", "toothbrush")
    assert table[0] == -1
    assert table[12] == -1  # the first gap
    assert names[int(table[13])] == "stop sign"
    assert table[90] == 79


def test_detections_are_sorted_clipped_padded_and_cleared_of_what_is_none():
    boxes = torch.tensor([[0, 0, 5, 10], [5, 5, 30, 30], [3, 3, 3, 9], [1, 1, 2, 2], [0, 0, 9, 9.0]])
    scores = torch.tensor([0.3, 0.9, 0.8, float("nan"), 0.7])
    outputs = padded(boxes, scores, torch.tensor([1, 0, 1, 1, -1]), (20.0, 10.0), 3)
    assert outputs["scores"].tolist() == pytest.approx([0.9, 0.3, 0.0])
    assert outputs["labels"].tolist() == [0, 1, -1]
    assert outputs["boxes"].tolist() == [[0.5, 0.25, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.0] * 4]
    assert padded(boxes, scores, torch.tensor([1, 0, 1, 1, -1]), (20.0, 10.0), 1)["labels"].tolist() == [0]
    none = padded(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), (1.0, 1.0), 2)
    assert none["labels"].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet19"}, "no such classifier or detector; did you mean resnet18"),
        ({"name": "zzzz"}, r"torchvision\.models\.list_models"),
        ({"name": "fcn_resnet50"}, "no such classifier or detector"),
        ({"name": "resnet18", "weights": "COCO"}, "neither a file nor published weights; it has IMAGENET1K_V1"),
        ({"name": "resnet18", "weights": "gone.pth"}, r"gone\.pth does not exist"),
        ({"name": "resnet18", "num_classes": 5}, "its published weights have 1000 columns, not 5"),
        ({"name": DETECTOR, "weights": None, "resolution": 300}, "it works at 320 x 320 px only"),
        ({"name": DETECTOR, "weights": None, "num_classes": 4}, "give teacher.class_names, 4 lines"),
        ({"name": DETECTOR, "weights": None, "max_detections": 0}, "teacher.max_detections=0: give at least 1"),
    ],
)
def test_wrong_options_are_named(arguments: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words) as caught:
        TorchvisionTeacher(**arguments)
    assert "\n" not in str(caught.value)
