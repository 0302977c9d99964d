"""Weights of another width: widening computes the same, narrowing keeps what matters."""

from __future__ import annotations

import pytest
import torch

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained import width
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.weights import PretrainedWeights, make_weights
from mnvision.backbones.pretrained.width import fit_width
from mnvision.errors import UserError
from tasks.composition import compose_model


def trained(alpha: float = 0.25, seed: int = 0, **arguments) -> tuple[MobileNetV1, PretrainedWeights]:
    """A backbone whose every tensor is random, statistics included, and its weights."""
    torch.manual_seed(seed)
    backbone = MobileNetV1(alpha=alpha, resolution=64, **arguments)
    for name, tensor in backbone.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.5, 2.0)
        elif tensor.is_floating_point() and ".bn." in name:
            tensor.normal_(std=0.3)
    settings = {"padding": "symmetric", "bn_eps": backbone.stem.bn.eps, "activation": "relu6"}
    return backbone.eval(), make_weights("these", backbone.state_dict(), **settings)


def pooled(backbone: MobileNetV1, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone(images)[-1].mean((2, 3))


@pytest.mark.parametrize("alpha", [0.35, 0.5, 1.0])
def test_a_wider_network_computes_the_same(alpha: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(width, "NOISE", 0.0)
    backbone, weights = trained()
    weights = make_weights(
        "these",
        weights.state,
        classifier=(torch.randn(5, 256), torch.randn(5)),
        padding="symmetric",
        bn_eps=1e-3,
        activation="relu6",
    )
    fitted = fit_width(weights, alpha)
    wider = MobileNetV1(alpha=alpha, resolution=64).eval()
    load_into(wider, fitted)
    images = torch.randn(2, 3, 64, 64)
    features, wide = pooled(backbone, images), pooled(wider, images)
    # Every channel is there at least once, with the very same values.
    distance = torch.cdist(features.T, wide.T)
    assert distance.min(1).values.max() < 1e-3
    assert distance.min(0).values.max() < 1e-3
    (kernel, bias), (wide_kernel, wide_bias) = weights.classifier, fitted.classifier
    torch.testing.assert_close(features @ kernel.T + bias, wide @ wide_kernel.T + wide_bias, rtol=1e-3, atol=1e-3)


def test_copies_differ_a_little_and_only_copies():
    _, weights = trained()
    fitted = fit_width(weights, 0.5).state
    kernel = fitted["stem.conv.weight"].flatten(1)
    original = weights.state["stem.conv.weight"].flatten(1)
    distance = torch.cdist(original, kernel).sort(1).values
    assert (distance[:, 0] == 0).all()  # the channel itself
    assert (distance[:, 1] > 0).all()
    assert (distance[:, 1] < original.std() * 0.05 * 27**0.5 * 2).all()


def test_narrowing_leaves_dead_channels_out():
    """Channels that nobody reads go first, and then nothing is lost."""
    backbone, weights = trained(0.5)
    images, state = torch.randn(2, 3, 64, 64), weights.state
    narrow = MobileNetV1(alpha=0.25, resolution=64).eval()
    generator = torch.Generator().manual_seed(0)
    for layer in range(14):
        channels = len(state["stem.conv.weight" if layer == 0 else f"blocks.{layer - 1}.pointwise.conv.weight"])
        dead = torch.randperm(channels, generator=generator)[: channels // 2]
        if layer < 13:
            state[f"blocks.{layer}.depthwise.bn.weight"][dead] = 0
            state[f"blocks.{layer}.depthwise.bn.bias"][dead] = 0
        else:
            state["blocks.12.pointwise.bn.weight"][dead] = 0
            state["blocks.12.pointwise.bn.bias"][dead] = 0
    backbone.load_state_dict(state)
    load_into(narrow, fit_width(weights, 0.25))
    features = pooled(backbone, images)
    alive = features[:, features.abs().sum(0) > 0]
    found = pooled(narrow, images)
    distance = torch.cdist(alive.T, found.T)
    assert distance.min(1).values.max() < 1e-3


def test_a_shorter_network_is_fitted_as_far_as_it_goes():
    _, weights = trained(0.5, out_strides=[16])
    fitted = fit_width(weights, 0.25)
    load_into(MobileNetV1(alpha=0.25, resolution=64, out_strides=[16]), fitted)
    assert fitted.alpha == 0.25
    assert fit_width(weights, 0.5) is weights


def test_other_variants_are_refused():
    _, weights = trained(0.25, variant="full_conv")
    with pytest.raises(UserError, match="fit_width needs the separable variant"):
        fit_width(weights, 0.5)


def test_the_backbones_config_asks_for_it(tmp_path):
    from mnvision.backbones.pretrained.files import save_weights

    backbone, _ = trained(0.5)
    path = tmp_path / "half.safetensors"
    save_weights(path, backbone)
    config = {
        "_target_": "mnvision.models.Classifier",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "backbone": {
            "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
            "alpha": 0.25,
            "resolution": 64,
            "pretrained": str(path),
            "fit_width": False,
        },
        "head": {"_target_": "mnvision.heads.classifier.ClassifierHead", "num_classes": None},
        "decoder": {"_target_": "mnvision.heads.classifier.ClassScores"},
    }
    with pytest.raises(UserError, match=r"add backbone\.alpha=0\.5, or backbone\.fit_width=true"):
        compose_model(config, ["a", "b"])
    config["backbone"]["fit_width"] = True
    model, settled = compose_model(config, ["a", "b"])
    assert len(model.backbone.stem.conv.weight) == 8
    assert "fit_width" not in settled["backbone"]
