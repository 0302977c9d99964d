"""timm's names and timm's networks."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.backbones.pretrained.timm import from_timm, to_timm, weights_from_timm_state
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

NAME = "timm/mobilenetv1_100.ra4_e3600_r224_in1k"


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """timm's network with statistics and scales drawn at random: fresh ones would hide a swapped tensor."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv1_100", num_classes=1000).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.3)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.001, 1.5)
    return model


@torch.no_grad()
@pytest.mark.parametrize("bn_eps", [1e-5, 1e-3])
def test_equals_timm_with_classifier_and_any_eps(theirs, bn_eps):
    weights = weights_from_timm_state("timm", theirs.state_dict())
    assert (weights.alpha, weights.padding, weights.bn_eps) == (1.0, "symmetric", 1e-5)
    backbone = MobileNetV1(bn_eps=bn_eps).eval()
    head = ClassifierHead(backbone.feature_channels, 1000).eval()
    report = load_into(backbone, weights, head, require_classifier=True)
    assert any("absorbed" in note for note in report.notes) == (bn_eps != 1e-5)
    images = torch.rand(2, 3, 65, 96) * 2 - 1
    expected = theirs(images)
    assert expected.std() > 0.01
    difference = (head(backbone(images)) - expected).abs().max() / expected.std()
    assert difference < (1e-5 if bn_eps == 1e-5 else 1e-3)


def test_names_round_trip(theirs):
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "classifier" not in name}
    back = to_timm(from_timm(state))
    assert list(back) == list(state)
    assert all(back[name] is state[name] for name in state)
    assert set(from_timm(state)) == set(MobileNetV1().state_dict())


def test_alpha_of_the_wide_one():
    model = timm.create_model("mobilenetv1_125")
    assert weights_from_timm_state("timm", model.state_dict()).alpha == 1.25


def test_foreign_names_are_refused():
    with pytest.raises(UserError, match="conv_head"):
        weights_from_timm_state("x", timm.create_model("mobilenetv1_100h").state_dict())
    with pytest.raises(UserError, match=r"not the names of timm's MobileNetV1: blocks.9.0.conv_dw.weight"):
        from_timm({"blocks.9.0.conv_dw.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"no place for blocks.0.full.conv.weight"):
        to_timm({"blocks.0.full.conv.weight": torch.zeros(1)})


def test_local_file_with_timm_names(theirs, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, path)
    weights = read_weights(str(path))
    assert weights.class_names is None
    assert weights.classifier is not None
    torch.testing.assert_close(weights.state["stem.conv.weight"], theirs.conv_stem.weight)


def test_by_name_from_the_hub_cache(theirs, tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(file))
    weights = read_weights(NAME)
    assert weights.class_names is not None
    assert (weights.source, weights.resolution, weights.mean) == (NAME, 224, (127.5, 127.5, 127.5))
    assert weights.class_names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    torch.testing.assert_close(weights.classifier[0], theirs.classifier.weight.detach())
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is damaged .*: delete it and run again"):
        read_weights(NAME)


def test_offline_names_the_file_to_get(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        read_weights(NAME, Path(tmp_path))
    line = str(caught.value)
    assert "\n" not in line
    assert "https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k" in line
    assert "backbone.pretrained=DIR/model.safetensors" in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet50.a1_in1k", "no such weights; timm has timm/mobilenetv1_100"),
        ("timm/mobilenetv1_100", "no such weights"),
        ("timm/mobilenetv1_100h.ra4_e3600_r224_in1k", "one more convolution"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        read_weights(name)
