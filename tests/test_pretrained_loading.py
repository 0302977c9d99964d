"""Weights into models: all or nothing, and every difference named."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.weights import PretrainedWeights, grouped, infer_geometry, make_weights
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

SETTINGS = {"padding": "symmetric", "bn_eps": 1e-3, "activation": "relu6"}


def weights_of(backbone: MobileNetV1, **settings: object) -> PretrainedWeights:
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    return make_weights("file.pth", state, **{**SETTINGS, **settings})


def classifier(rows: int, features: int = 256) -> tuple[Tensor, Tensor]:
    return torch.arange(rows * features, dtype=torch.float32).reshape(rows, features), torch.arange(rows) + 0.5


@pytest.fixture
def source() -> MobileNetV1:
    torch.manual_seed(0)
    return MobileNetV1(0.25)


def assert_refused(message: str, backbone: MobileNetV1, weights: PretrainedWeights, *args: object, **kwargs: object):
    """The load fails with that line and leaves backbone and head as they were."""
    modules = [backbone, *(arg for arg in args if isinstance(arg, nn.Module))]
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    with pytest.raises(UserError, match=message) as caught:
        load_into(backbone, weights, *args, **kwargs)
    assert "\n" not in str(caught.value)
    for module, state in zip(modules, before):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.3, 1 / 3, 0.35, 0.5, 0.75, 1.0, 1.25, 1.4, 2.0])
@pytest.mark.parametrize("variant", ["separable", "shallow", "full_conv"])
def test_alpha_is_inferred_from_rounded_channels(alpha, variant):
    with torch.device("meta"):
        state = MobileNetV1(alpha, variant=variant).state_dict()
        inferred, multiplier, found = infer_geometry(state, "x")
        again = MobileNetV1(inferred, variant=found).state_dict()
    assert (found, multiplier) == (variant, 1)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in again.items()}
    if round(alpha, 2) == alpha:
        assert inferred == alpha


def test_other_alpha_names_the_override(source):
    line = r"file\.pth do not fit the backbone \(alpha 0\.25 into alpha 1\.0\): add backbone\.alpha=0\.25, or .*_width"
    assert_refused(line, MobileNetV1(), weights_of(source))


def test_other_settings_name_all_overrides(source):
    weights = weights_of(source, padding="tf_same", activation="relu")
    both = r"add backbone\.alpha=0\.25 backbone\.padding=tf_same backbone\.activation=relu, or .*fit_width=true"
    assert_refused(both, MobileNetV1(), weights)
    assert_refused(r"trained otherwise .*: add backbone\.padding=tf_same", MobileNetV1(0.25), weights)
    report = load_into(MobileNetV1(0.25), weights, require_settings=False)
    assert report.notes == (
        "trained otherwise: padding tf_same into padding symmetric, activation relu into activation relu6",
    )
    load_into(MobileNetV1(0.25, padding="tf_same", activation="relu"), weights)


@pytest.mark.parametrize(
    ("arguments", "override"),
    [
        ({"depth_multiplier": 2}, r"backbone\.depth_multiplier=1"),
        ({"variant": "shallow"}, r"backbone\.variant=separable"),
        ({"variant": "full_conv"}, r"backbone\.variant=separable"),
    ],
)
def test_other_architecture_names_the_override(source, arguments, override):
    assert_refused(override, MobileNetV1(0.25, **arguments), weights_of(source))


def test_every_missing_and_unexpected_key_is_named(source):
    state = {name: tensor for name, tensor in source.state_dict().items() if "blocks.3." not in name}
    del state["stem.bn.bias"]
    state |= {"extra.weight": torch.zeros(1), "blocks.5.se.weight": torch.zeros(1)}
    weights = make_weights("file.pth", state, **SETTINGS)
    line = r"missing stem\.bn\.bias, blocks\.3\.\*; unexpected extra\.weight, blocks\.5\.se\.weight$"
    assert_refused(line, MobileNetV1(0.25), weights)


def test_a_wrong_shape_is_named(source):
    weights = weights_of(source)
    weights.state["blocks.2.depthwise.conv.weight"] = torch.zeros(32, 1, 5, 5)
    line = r"blocks\.2\.depthwise\.conv\.weight is \(32, 1, 5, 5\) where the backbone has \(32, 1, 3, 3\)"
    assert_refused(line, MobileNetV1(0.25), weights)
    grey = MobileNetV1(0.25, in_channels=1)
    assert_refused(r"stem\.conv\.weight is \(8, 3, 3, 3\) where", grey, weights_of(source))


def test_blocks_that_no_map_needs_are_left_out_and_reported(source):
    short = MobileNetV1(0.25, out_strides=(8, 16))
    report = load_into(short, weights_of(source))
    assert report.left_out == ("blocks.11.*", "blocks.12.*")
    assert torch.equal(short.blocks[10].pointwise.conv.weight, source.blocks[10].pointwise.conv.weight)
    assert_refused(r"missing blocks\.11\.\*, blocks\.12\.\*", MobileNetV1(0.25), weights_of(short))


@torch.no_grad()
def test_another_eps_changes_nothing():
    torch.manual_seed(0)
    source = MobileNetV1(0.25, bn_momentum=1.0)
    source(torch.rand(8, 3, 64, 64))  # true statistics, some of the order of either eps
    assert source.blocks[0].depthwise.bn.running_var.min() < 0.01
    target = MobileNetV1(0.25, bn_eps=0.01).eval()
    report = load_into(target, weights_of(source))
    assert "bn_eps 0.001 of the weights absorbed" in report.notes[0]
    images = torch.rand(1, 3, 64, 64)
    expected = source.eval()(images)[0]
    assert expected.std() > 0.1
    assert (target(images)[0] - expected).abs().max() < 1e-3
    target.load_state_dict(source.state_dict())
    assert (target(images)[0] - expected).abs().max() > 0.1, "eps does matter here"


class TestClassifier:
    def load(self, source, weights, classes, **kwargs):
        backbone = MobileNetV1(0.25)
        head = ClassifierHead(backbone.feature_channels, classes)
        return load_into(backbone, weights, head, **kwargs), head

    def test_by_position(self, source):
        report, head = self.load(source, weights_of(source, classifier=classifier(3)), 3)
        assert report.classifier == "classifier loaded: 3 classes by position"
        assert torch.equal(head.fc.weight, classifier(3)[0])
        assert torch.equal(head.fc.bias, classifier(3)[1])

    def test_by_name_in_any_order_and_of_a_part(self, source):
        weights = weights_of(source, classifier=classifier(4), class_names=("cat", "red fox", "dog", "hen"))
        report, head = self.load(source, weights, 3, class_names=["Red_Fox", "hen", "cat"])
        assert report.classifier == "classifier loaded: 3 of its 4 classes, matched by name"
        assert torch.equal(head.fc.bias, torch.tensor([1.5, 3.5, 0.5]))
        assert torch.equal(head.fc.weight, classifier(4)[0][[1, 3, 0]])

    def test_background_row(self, source):
        weights = weights_of(source, classifier=classifier(4), background_first=True)
        _, head = self.load(source, weights, 3)
        assert torch.equal(head.fc.bias, torch.tensor([1.5, 2.5, 3.5]))
        report, head = self.load(source, weights, 4)
        assert torch.equal(head.fc.bias, classifier(4)[1])
        assert "background" not in report.classifier

    def test_left_out_is_said_and_can_be_refused(self, source):
        named = weights_of(source, classifier=classifier(2), class_names=("cat", "dog"))
        cases = [
            (weights_of(source), 3, None, "file.pth has no classifier"),
            (weights_of(source, classifier=classifier(2)), 3, None, "has 2 classes, the head has 3"),
            (
                weights_of(source, classifier=classifier(3, 99)),
                3,
                None,
                "takes 99 features, the head gets 256",
            ),
            (named, 3, ["cat", "cow", "ewe"], "left out: it has no class named 'cow', 'ewe'"),
        ]
        for weights, classes, names, reason in cases:
            report, head = self.load(source, weights, classes, class_names=names)
            assert not report.classifier_loaded
            assert reason in str(report)
            backbone = MobileNetV1(0.25)
            options = {"class_names": names, "require_classifier": True}
            assert_refused(f"{reason}; a classifier was asked for", backbone, weights, head, **options)

    def test_another_kind_of_head(self, source):
        weights = weights_of(source, classifier=classifier(2))
        report = load_into(MobileNetV1(0.25), weights, nn.Identity())
        assert report.classifier == "classifier of file.pth left out: Identity to put it in"
        assert "no head to put it in" in load_into(MobileNetV1(0.25), weights).classifier

    def test_wrong_number_of_names(self, source):
        weights = weights_of(source, classifier=classifier(2), class_names=("cat", "dog"))
        backbone = MobileNetV1(0.25)
        head = ClassifierHead(backbone.feature_channels, 2)
        assert_refused("3 class names for a head of 2", backbone, weights, head, class_names=["a", "b", "c"])
        with pytest.raises(UserError, match="3 class names for a classifier of 2"):
            weights_of(source, classifier=classifier(2), class_names=("a", "b", "c"))


def test_weights_are_copied_not_shared(source):
    weights = weights_of(source)
    target = MobileNetV1(0.25)
    load_into(target, weights)
    target.stem.conv.weight.data.zero_()
    assert weights.state["stem.conv.weight"].abs().sum() > 0
    assert dataclasses.is_dataclass(weights)


def test_grouped():
    names = ["stem.bn.weight", "stem.bn.bias", "blocks.1.a.b", "blocks.1.c.d", "blocks.10.a.b"]
    assert grouped(names, ["stem.conv.weight"]) == ("stem.bn.*", "blocks.*")
    among = [*names, "stem.bn.mean", "blocks.10.c.d"]
    assert grouped(names, among) == ("stem.bn.weight", "stem.bn.bias", "blocks.1.*", "blocks.10.a.b")
    assert grouped([], among) == ()
