"""Objects from plain data, and nothing but ours."""

from __future__ import annotations

import pytest

from mnvision.build import build, build_model, locate
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

MODEL = {
    "_target_": "mnvision.models.Classifier",
    "mean": [127.5, 127.5, 127.5],
    "std": [127.5, 127.5, 127.5],
    "backbone": {
        "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
        "alpha": 0.25,
        "resolution": 64,
    },
    "head": {"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": 3},
    "decoder": {"_target_": "mnvision.heads.classifier.ClassScores"},
}


def test_builds_what_the_target_names():
    head = build({"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": 4}, in_channels=[8])
    assert isinstance(head, ClassifierHead)
    assert head.fc.weight.shape == (4, 8)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Linear",
        "mnvision.checkpoints.torch.load",
        "mnvision.checkpoints.pickle",
        "mnvision_evil.module.run",
        "mnvision.build.importlib.import_module",
        "mnvision.heads.classifier.Sequence",
        "mnvision.no_such_module.Thing",
        "mnvision.heads.classifier.NoSuchHead",
        None,
    ],
)
def test_refuses_targets_that_are_not_ours(target: str):
    with pytest.raises(UserError, match="_target_"):
        locate(target)


def test_unknown_argument_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'num_clases'; did you mean 'num_classes'"):
        build({"_target_": "mnvision.heads.classifier.ClassifierHead", "num_clases": 4}, in_channels=[8], dropout=0.0)


def test_missing_argument_is_one_line():
    with pytest.raises(UserError, match=r"could not be built.*num_classes"):
        build({"_target_": "mnvision.heads.classifier.ClassifierHead"}, in_channels=[8])


def test_model_from_config_takes_channels_from_the_backbone():
    model = build_model(MODEL)
    assert model.head.fc.weight.shape == (3, 256)
    assert model.resolution == (64, 64)


def test_model_config_must_be_a_model_and_complete():
    with pytest.raises(UserError, match="no model"):
        build_model(MODEL["head"])
    with pytest.raises(UserError, match="lacks the key 'decoder'"):
        build_model({key: value for key, value in MODEL.items() if key != "decoder"})
