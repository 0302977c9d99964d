"""Teachers in general, and our own checkpoints as teachers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mnvision.build import locate
from mnvision.checkpoints import load_model, read_checkpoint
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, PixelInput, Teacher, digest
from mnvision.teachers.checkpoint import CheckpointTeacher
from mnvision.teachers.matching import match_default_boxes
from tests.builders_models import CLASS_NAMES, SIDE, save_checkpoint, save_classifier, save_detector

CONF = Path(__file__).parents[1] / "conf"


class Small(Teacher):
    """A convolution with batch normalisation and dropout: all that training mode would change."""

    def __init__(self, options: dict[str, Any] | None = None, side: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(5))
        self.net(torch.zeros(2, 3, side, side))
        self.options = options or {}
        self._settle("teacher small", "classification", (side, side), class_names=None)

    def answer(self, images: Tensor) -> Outputs:
        return {"logits": self.net(images.float())}


def pictures(count: int, height: int, width: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width or height), dtype=torch.uint8, generator=generator)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers")
    save_classifier(folder / "classifier.ckpt")
    save_detector(folder / "detector.ckpt")
    return folder


def test_training_mode_is_never_entered_and_no_statistic_moves():
    teacher, images = Small(), pictures(4, 8)
    before, outputs = state_of(teacher), teacher(images)["logits"]
    parent = nn.Module()
    parent.teacher = teacher
    parent.train()
    assert not any(module.training for module in teacher.modules())
    for part in teacher.net:
        part.train()  # behind the teacher's back
    assert torch.equal(teacher(images)["logits"], outputs)
    assert not any(module.training for module in teacher.modules())
    assert equal_states(before, teacher.state_dict())


def test_outputs_have_no_gradient_and_weights_want_none():
    teacher = Small()
    outputs = teacher(pictures(2, 8))["logits"]
    assert not outputs.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student = torch.zeros(2, 5, requires_grad=True)
    ((student - outputs) ** 2).sum().backward()  # the outputs can be a loss's targets
    assert student.grad is not None


def test_outputs_are_float32_under_autocast():
    teacher, images = Small(), pictures(2, 8)
    plain = teacher(images)["logits"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = teacher(images)["logits"]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 8, 8), pictures(1, 9), pictures(1, 8)[0]])
def test_other_pictures_are_refused(images: Tensor):
    with pytest.raises(UserError, match=r"teacher small takes uint8 pictures \(B, 3, 8, 8\), not torch"):
        Small()(images)


def test_the_fingerprint_follows_weights_and_options():
    first = Small().fingerprint()
    assert Small().fingerprint() == first
    assert Small({"flip": True}).fingerprint() != first
    changed = Small()
    changed.net[0].weight[0, 0, 0, 0] += 1e-6
    assert changed.fingerprint() != first
    moved = Small()
    moved.net[1].running_mean[0] += 1e-3
    assert moved.fingerprint() != first


def test_a_digest_depends_on_file_contents_not_on_their_places(tmp_path: Path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(text)
    same, other = digest({}, files=[tmp_path / "a"]), digest({}, files=[tmp_path / "c"])
    assert same == digest({}, files=[tmp_path / "b"])
    assert same != other
    with pytest.raises(UserError, match="gone: cannot be read"):
        digest({}, files=[tmp_path / "gone"])


def test_pixels_are_normalised_in_the_networks_channel_order():
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert PixelInput([10, 10, 10], [1, 2, 4])(images).flatten().tolist() == [0, 5, 5]
    assert PixelInput([10, 10, 10], [1, 2, 4], bgr=True)(images).flatten().tolist() == [20, 5, 0]
    assert PixelInput(0, 255)(images).flatten().tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255])


@pytest.mark.parametrize(("mean", "std"), [(0, 0), ([1, 2], 1), (0, "1"), (0, [1, 1, -1])])
def test_wrong_normalisations_are_refused(mean: Any, std: Any):
    with pytest.raises(UserError, match=r"teacher\.(mean|std)=.*three, in pixel units"):
        PixelInput(mean, std)


def test_a_classifier_of_ours_gives_its_logits(checkpoints: Path):
    path = checkpoints / "classifier.ckpt"
    teacher, images = CheckpointTeacher(path), pictures(3, SIDE)
    model, _ = load_model(path)
    with torch.no_grad():
        assert torch.equal(teacher(images)["logits"], model(images))
    spec = teacher.spec
    assert (spec.kind, spec.resolution, spec.outputs) == ("classification", (SIDE, SIDE), {"logits": (3,)})
    assert spec.class_names == tuple(CLASS_NAMES)
    assert spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert spec.multiply_adds == measure(model, SIDE).mult_adds
    assert spec.preprocess == {"resize": "center_crop", "crop_fraction": 0.875}


def test_a_detector_of_ours_gives_raw_outputs_and_its_default_boxes(checkpoints: Path):
    path = checkpoints / "detector.ckpt"
    teacher, images = CheckpointTeacher(path, features=[8, 32]), pictures(2, SIDE)
    model, _ = load_model(path)
    with torch.no_grad():
        expected = model(images)
    outputs = teacher(images)
    assert torch.equal(outputs["cls_logits"], expected["cls_logits"])
    assert torch.equal(outputs["box_offsets"], expected["box_offsets"])
    assert outputs["features_8"].shape == (2, 64, 12, 12)
    assert torch.equal(outputs["features_32"], model.features(images)[1])
    assert teacher.spec.kind == "ssd"
    assert teacher.spec.outputs["features_8"] == (64, 12, 12)
    assert torch.allclose(teacher.spec.default_boxes * SIDE, model.head.default_boxes, atol=1e-5)
    match_default_boxes(teacher.spec, model.head.default_boxes, (SIDE, SIDE))


def test_a_detector_of_ours_gives_finished_detections(checkpoints: Path):
    path = checkpoints / "detector.ckpt"
    teacher, images = CheckpointTeacher(path, detections=True), pictures(2, SIDE)
    expected = load_model(path)[0].predict(images)
    outputs = teacher(images)
    assert teacher.spec.kind == "detection"
    assert torch.allclose(outputs["boxes"] * SIDE, expected["boxes"])
    assert torch.equal(outputs["labels"].long(), expected["labels"])
    assert outputs["boxes"].amax() <= 1
    with pytest.raises(UserError, match=r"is a classification checkpoint: teacher\.detections"):
        CheckpointTeacher(checkpoints / "classifier.ckpt", detections=True)


def test_a_checkpoint_runs_at_another_resolution(checkpoints: Path):
    teacher = CheckpointTeacher(checkpoints / "detector.ckpt", resolution=128)
    head = teacher.model.head
    assert teacher.spec.resolution == (128, 128)
    assert teacher(pictures(1, 128))["cls_logits"].shape[1] == len(head.default_boxes)
    assert head.map_sizes[0] == (8, 8)
    with pytest.raises(UserError, match=r"at 128 x 128 px, the student \d+ at 96 x 96 px"):
        match_default_boxes(teacher.spec, load_model(checkpoints / "detector.ckpt")[0].head.default_boxes, (SIDE, SIDE))
    with pytest.raises(UserError, match="our models are square"):
        CheckpointTeacher(checkpoints / "detector.ckpt", resolution=[96, 128])


def test_averaged_weights_are_the_teacher(checkpoints: Path, tmp_path: Path):
    content = read_checkpoint(checkpoints / "classifier.ckpt")
    averaged = {k.removeprefix("model."): v.clone() for k, v in content["state_dict"].items()}
    averaged["head.fc.bias"] += 1
    torch.save(content | {"ema_state_dict": averaged}, tmp_path / "ema.ckpt")
    images = pictures(1, SIDE)
    plain = CheckpointTeacher(checkpoints / "classifier.ckpt")
    with_average = CheckpointTeacher(tmp_path / "ema.ckpt")
    assert torch.allclose(with_average(images)["logits"], plain(images)["logits"] + 1)
    assert with_average.fingerprint() != plain.fingerprint()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"features": [64]}, r"teacher.features=\[64\]: its backbone ends at stride 32"),
        ({"features": [12]}, r"teacher.features=\[12\]: out_strides"),
        ({"resolution": 0}, "must be a whole number of pixels"),
    ],
)
def test_wrong_options_of_a_checkpoint_are_named(arguments: dict[str, Any], words: str, checkpoints: Path):
    with pytest.raises(UserError, match=words):
        CheckpointTeacher(checkpoints / "classifier.ckpt", **arguments)


def test_no_checkpoint_no_teacher(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.ckpt does not exist"):
        CheckpointTeacher(tmp_path / "gone.ckpt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match="not one of our checkpoints"):
        CheckpointTeacher(tmp_path / "weights.ckpt")


@pytest.mark.parametrize("path", sorted((CONF / "teacher").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_names_all_arguments_with_their_defaults(path: Path):
    config = OmegaConf.load(path)
    shared = set(OmegaConf.load(CONF / "base/teacher.yaml"))
    parameters = inspect.signature(locate(config._target_)).parameters
    assert set(config) - {"_target_", "defaults"} == parameters.keys()
    assert not shared & parameters.keys()
    for name, parameter in parameters.items():
        if OmegaConf.is_missing(config, name):
            assert parameter.default is inspect.Parameter.empty
        elif name != "detections" or parameter.default is False:
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert config[name] == default


PIXELS = {"mean": [127.5] * 3, "std": [127.5] * 3}
BACKBONE = {"_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1", "alpha": 0.25, "resolution": SIDE}
ATTRIBUTES = {
    "_target_": "mnvision.models.AttributeClassifier",
    **PIXELS,
    "backbone": BACKBONE,
    "head": {"_target_": "mnvision.heads.attributes.AttributeHead", "num_classes": 3},
    "decoder": {"_target_": "mnvision.heads.attributes.AttributeScores"},
}
EMBEDDER = {
    "_target_": "mnvision.models.Embedder",
    **PIXELS,
    "backbone": {**BACKBONE, "stem_stride": 1, "output_stride": 16},
    "head": {"_target_": "mnvision.heads.embedding.EmbeddingHead", "dim": 24, "resolution": SIDE},
    "decoder": {"_target_": "mnvision.heads.embedding.UnitLength"},
}


def test_attributes_of_ours_are_given_before_the_sigmoid(tmp_path: Path):
    model = save_checkpoint(tmp_path / "faces.ckpt", ATTRIBUTES, kind="face_attributes")
    teacher, images = CheckpointTeacher(tmp_path / "faces.ckpt"), pictures(2, SIDE)
    with torch.no_grad():
        assert torch.equal(teacher(images)["attribute_logits"], model(images))
    assert teacher.spec.kind == "face_attributes"
    assert teacher.spec.class_names == tuple(CLASS_NAMES)


def test_embeddings_of_ours_have_length_one(tmp_path: Path):
    model = save_checkpoint(tmp_path / "faces.ckpt", EMBEDDER, kind="face_embeddings", class_names=[])
    teacher, images = CheckpointTeacher(tmp_path / "faces.ckpt", features=[1, 16]), pictures(2, SIDE)
    outputs = teacher(images)
    with torch.no_grad():
        raw = model(images).float()
    assert torch.allclose(outputs["embedding"], raw / raw.norm(dim=1, keepdim=True), atol=1e-6)
    assert outputs["features_1"].shape == (2, 16, SIDE, SIDE)
    assert teacher.spec.class_names is None
    assert teacher.spec.outputs["embedding"] == (24,)
