"""Models of timm as teachers, against timm called directly; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from mnvision.backbones.pretrained.classes import imagenet_names
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.teachers.timm import TimmTeacher
from mnvision.teachers.weights import read_state
from tests.test_teachers import equal_states, pictures, state_of

SMALL = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of a model of seven classes in several containers."""
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(3)
    state = timm.create_model(SMALL, num_classes=7).state_dict()
    paths = {name: folder / name for name in ("plain.pth", "wrapped.pth", "plain.safetensors", "other.pth", "ema.pth")}
    torch.save(state, paths["plain.pth"])
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, paths["wrapped.pth"])
    save_file({key: value.contiguous() for key, value in state.items()}, paths["plain.safetensors"])
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), paths["other.pth"])
    moved = {key: value + 1 if key == "classifier.bias" else value for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": moved}, paths["ema.pth"])
    return paths


def direct(path: Path, **arguments: Any) -> torch.nn.Module:
    model = timm.create_model(SMALL, num_classes=7, **arguments)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def test_outputs_are_those_of_timm_behind_timms_own_transforms(saved: dict[str, Path]):
    teacher, model = TimmTeacher(SMALL, str(saved["plain.pth"])), direct(saved["plain.pth"])
    transform = create_transform(**resolve_model_data_config(model) | {"crop_pct": 1.0})
    images = pictures(2, 224)
    theirs = torch.stack([transform(Image.fromarray(np.asarray(image.permute(1, 2, 0)))) for image in images])
    with torch.no_grad():
        assert torch.allclose(teacher(images)["logits"], model(theirs), atol=1e-5)
    assert teacher.spec.resolution == (224, 224)
    assert teacher.spec.outputs == {"logits": (7,)}
    assert teacher.spec.class_names is None
    assert teacher.spec.multiply_adds == measure(model, 224).mult_adds
    assert teacher.spec.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_normalisation_and_resolution_can_be_set(saved: dict[str, Path]):
    teacher = TimmTeacher(SMALL, str(saved["plain.pth"]), resolution=(32, 48), mean=[0, 0, 0], std=[255, 255, 255])
    images = pictures(2, 32, 48)
    with torch.no_grad():
        assert torch.allclose(teacher(images)["logits"], direct(saved["plain.pth"])(images / 255), atol=1e-6)
    assert teacher.fingerprint() != TimmTeacher(SMALL, str(saved["plain.pth"]), resolution=(32, 48)).fingerprint()


@pytest.mark.parametrize("name", ["wrapped.pth", "plain.safetensors"])
def test_weights_are_read_from_every_container(name: str, saved: dict[str, Path]):
    assert equal_states(read_state(saved[name]), read_state(saved["plain.pth"]))
    teacher = TimmTeacher(SMALL, str(saved[name]), resolution=32)
    assert teacher.fingerprint() == TimmTeacher(SMALL, str(saved["plain.pth"]), resolution=32).fingerprint()


def test_averaged_weights_go_first(saved: dict[str, Path]):
    images = pictures(1, 32)
    plain, averaged = (TimmTeacher(SMALL, str(saved[name]), resolution=32) for name in ("plain.pth", "ema.pth"))
    assert torch.allclose(averaged(images)["logits"], plain(images)["logits"] + 1, atol=1e-6)


@pytest.mark.parametrize(("name", "strides"), [("resnet10t", [4, 16, 32]), ("vit_tiny_patch16_224", [16])])
def test_features_come_with_unchanged_logits(name: str, strides: list[int]):
    torch.manual_seed(0)
    teacher = TimmTeacher(name, False, num_classes=3, resolution=64, features=strides)
    images = pictures(2, 64)
    outputs = teacher(images)
    with torch.no_grad():
        assert torch.allclose(outputs["logits"], teacher.model(teacher.pixels(images)), atol=1e-6)
    for stride in strides:
        assert outputs[f"features_{stride}"].shape[2:] == (64 // stride, 64 // stride)
        assert teacher.spec.outputs[f"features_{stride}"] == outputs[f"features_{stride}"].shape[1:]


def test_features_are_those_of_timms_own_extractor():
    teacher = TimmTeacher("resnet10t", False, resolution=64, features=[32, 8])
    extractor = timm.create_model("resnet10t", features_only=True, out_indices=(2, 4)).eval()
    extractor.load_state_dict(teacher.model.state_dict(), strict=False)
    images = pictures(1, 64)
    with torch.no_grad():
        maps = extractor(teacher.pixels(images))
    outputs = teacher(images)
    assert torch.allclose(outputs["features_8"], maps[0], atol=1e-6)
    assert torch.allclose(outputs["features_32"], maps[1], atol=1e-6)


def test_batch_statistics_stay_bit_for_bit():
    teacher = TimmTeacher("resnet10t", False, resolution=32).train()
    before = state_of(teacher)
    teacher(pictures(4, 32))
    assert equal_states(before, teacher.state_dict())


def test_attributes_and_embeddings(saved: dict[str, Path], tmp_path: Path):
    (tmp_path / "names.txt").write_text("\n".join("abcdefg"))
    path, images = str(saved["plain.pth"]), pictures(2, 32)
    logits = TimmTeacher(SMALL, path, resolution=32)(images)["logits"]
    names = str(tmp_path / "names.txt")
    attributes = TimmTeacher(SMALL, path, "face_attributes", class_names=names, resolution=32)
    assert torch.equal(attributes(images)["attribute_logits"], logits)
    assert attributes.spec.class_names == tuple("abcdefg")
    embedding = TimmTeacher(SMALL, path, "face_embeddings", resolution=32)
    assert torch.allclose(embedding(images)["embedding"], logits / logits.norm(dim=1, keepdim=True))
    pooled = TimmTeacher(SMALL, path, "face_embeddings", num_classes=0, resolution=32)
    features = pooled(images)["embedding"]
    assert pooled.spec.outputs == {"embedding": (1024,)}
    assert torch.allclose(features.norm(dim=1), torch.ones(2), atol=1e-6)


def test_class_names_of_imagenet_and_beside_the_weights(saved: dict[str, Path], tmp_path: Path):
    assert TimmTeacher(SMALL, False, resolution=32).spec.class_names == imagenet_names()
    copy = tmp_path / "copy.pth"
    copy.write_bytes(saved["plain.pth"].read_bytes())
    (tmp_path / "copy.pth.labels.txt").write_text("\n".join("gfedcba"))
    assert TimmTeacher(SMALL, str(copy), resolution=32).spec.class_names == tuple("gfedcba")
    (tmp_path / "five.txt").write_text("\n".join("abcde"))
    with pytest.raises(UserError, match=r"five\.txt: 5 names, the teacher has 7 columns"):
        TimmTeacher(SMALL, str(copy), class_names=str(tmp_path / "five.txt"), resolution=32)


def test_without_network_the_line_names_the_file_to_get(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"huggingface\.co/timm/resnet10t\.c3_in1k.*teacher\.pretrained=DIR") as caught:
        TimmTeacher("resnet10t.c3_in1k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet51"}, "no such model; did you mean resnet51q or resnet50"),
        ({"name": "zzzzzz"}, r"no such model; timm\.list_models"),
        ({"name": "resnet10t.nonsense"}, "no weights 'nonsense' of resnet10t; it has c3_in1k"),
        ({"name": SMALL, "pretrained": "gone.pth"}, r"gone\.pth does not exist"),
        ({"name": SMALL, "output": "boxes"}, "teacher.output='boxes': choose one of"),
        ({"name": SMALL, "pretrained": False, "features": [64]}, "its maps have the strides 2, 4, 8, 16, 32"),
        ({"name": SMALL, "pretrained": False, "num_classes": 0}, "leaves no columns for output=classification"),
        ({"name": "resnet10t.c3_in1k", "num_classes": 5}, "its pretrained weights have 1000 columns, not 5"),
        (
            {"name": "swin_tiny_patch4_window7_224", "pretrained": False, "resolution": 1},
            "timm cannot build|cannot run",
        ),
        ({"name": SMALL, "pretrained": False, "resolution": "big"}, "teacher.resolution must be"),
    ],
)
def test_wrong_options_are_named(arguments: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words) as caught:
        TimmTeacher(**arguments)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(saved: dict[str, Path], tmp_path: Path):
    with pytest.raises(UserError, match=r"other\.pth: its weights do not fit the model: missing"):
        TimmTeacher(SMALL, str(saved["other.pth"]))
    (tmp_path / "cut.safetensors").write_bytes(saved["plain.safetensors"].read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or truncated safetensors"):
        TimmTeacher(SMALL, str(tmp_path / "cut.safetensors"))
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        TimmTeacher(SMALL, str(tmp_path / "empty.pth"))
