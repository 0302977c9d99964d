"""Local files: our own kinds, saved and read back, damaged ones refused."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.files import save_weights
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

NAMES = ("ant", "bee", "wasp")


def network(seed: int = 0, **arguments: object) -> tuple[MobileNetV1, ClassifierHead]:
    torch.manual_seed(seed)
    backbone = MobileNetV1(**{"alpha": 0.25, **arguments})
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return backbone.eval(), ClassifierHead(backbone.feature_channels, 3).eval()


def same(left: nn.Module, right: nn.Module) -> bool:
    other = right.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in left.state_dict().items())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"alpha": 0.4, "padding": "tf_same", "activation": "relu", "bn_eps": 1e-5, "resolution": 96},
        {"variant": "shallow"},
        {"variant": "full_conv", "alpha": 0.1},
        {"depth_multiplier": 2},
        {"out_strides": (8, 16)},
    ],
)
def test_saved_weights_come_back(tmp_path, arguments):
    backbone, head = network(**arguments)
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, backbone, head, NAMES, mean=(1, 2, 3), std=(4, 5, 6))
    weights = read_weights(str(path))
    told = {"alpha": 0.25, "padding": "symmetric", "activation": "relu6", "bn_eps": 1e-3, **arguments}
    assert all(getattr(weights, name) == value for name, value in told.items() if name != "out_strides")
    assert (weights.class_names, weights.mean, weights.std) == (NAMES, (1, 2, 3), (4, 5, 6))
    other, other_head = network(seed=1, **arguments)
    assert not same(backbone, other)
    report = load_into(other, weights, other_head, class_names=NAMES)
    assert (report.classifier_loaded, report.notes, report.left_out) == (True, (), ())
    assert same(backbone, other)
    assert same(head, other_head)
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]


def test_saving_without_head_and_with_wrong_names(tmp_path):
    backbone, head = network()
    save_weights(tmp_path / "w.safetensors", backbone)
    assert read_weights(str(tmp_path / "w.safetensors")).classifier is None
    with pytest.raises(UserError, match="2 class names for 3 classes"):
        save_weights(tmp_path / "w.safetensors", backbone, head, ["a", "b"])
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save_weights(tmp_path / "w.pth", backbone)


def test_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    backbone, _ = network()
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mnvision.backbones.pretrained.files.save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*w\.safetensors.*No space left"):
        save_weights(path, backbone)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
def test_plain_state_dicts_of_every_prefix(tmp_path, suffix, prefix):
    backbone, head = network()
    outer = prefix.removesuffix("backbone.")
    state = {f"{prefix}{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {f"{outer}head.{name}": tensor for name, tensor in head.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    weights = read_weights(str(path))
    assert (weights.class_names, weights.padding, weights.left_out) == (NAMES, None, ())
    other, other_head = network(seed=1)
    report = load_into(other, weights, other_head, require_classifier=True)
    assert same(backbone, other)
    assert same(head, other_head)
    assert "does not state padding, activation, bn_eps" in report.notes[0]


def lightning_checkpoint(backbone: MobileNetV1, head: nn.Module, ema: bool) -> dict[str, object]:
    shipped = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    shipped |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    settings = {
        "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
        "padding": "tf_same",
        "resolution": 64,
    }
    entry = {
        "class_names": list(NAMES),
        "model": {"backbone": settings, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
    }
    content: dict[str, object] = {"epoch": 3, "mnvision": entry}
    content["state_dict"] = {f"model.{name}": torch.zeros_like(t) if ema else t for name, t in shipped.items()}
    if ema:
        content["ema_state_dict"] = shipped
    return content


@pytest.mark.parametrize("ema", [False, True])
def test_our_checkpoint(tmp_path, ema):
    backbone, head = network(padding="tf_same")
    torch.save(lightning_checkpoint(backbone, head, ema), tmp_path / "best.ckpt")
    weights = read_weights(str(tmp_path / "best.ckpt"))
    assert (weights.class_names, weights.padding, weights.resolution) == (NAMES, "tf_same", 64)
    assert (weights.activation, weights.bn_eps) == ("relu6", 1e-3), "left out of the config: the defaults"
    assert (weights.mean, weights.std) == ((1, 2, 3), (4, 5, 6))
    other, other_head = network(seed=1, padding="tf_same")
    load_into(other, weights, other_head, class_names=NAMES[::-1])
    assert same(backbone, other)
    assert torch.equal(other_head.fc.weight, head.fc.weight.flip(0))


def test_a_detector_gives_its_backbone_only(tmp_path):
    backbone, _ = network()
    content = lightning_checkpoint(backbone, nn.Conv2d(1, 1, 1), ema=False)
    torch.save(content, tmp_path / "best.ckpt")
    weights = read_weights(str(tmp_path / "best.ckpt"))
    assert (weights.classifier, weights.class_names) == (None, None)
    assert weights.left_out == ("model.head.*",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".pt"])
@pytest.mark.parametrize("keep", [0, 3, 9, 500, 0.5, 0.999])
def test_truncated_files(tmp_path, suffix, keep):
    backbone, _ = network()
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(path, backbone)
    else:
        torch.save(backbone.state_dict(), path, _use_new_zipfile_serialization=suffix != ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(UserError, match=r"w\.") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_damaged_pickles_of_every_kind_end_in_one_line(tmp_path):
    backbone, _ = network()
    path = tmp_path / "w.pt"
    torch.save(backbone.state_dict(), path, _use_new_zipfile_serialization=False)
    content, rng = path.read_bytes(), torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in torch.randint(0, 3000, (20,), generator=rng).tolist():
            damaged[place] = (damaged[place] + 77) % 256
        path.write_bytes(damaged)
        complaint = complaint_about(path)
        refused += complaint is not None
        assert "\n" not in (complaint or "")
    assert refused > 30


def complaint_about(path: Path) -> str | None:
    """The UserError's text, or none if the damage hit nothing that matters."""
    try:
        read_weights(str(path))
    except UserError as error:
        return str(error)
    return None


def test_files_that_are_something_else(tmp_path):
    cases = {
        "counter.pth": collections.Counter(a=1),
        "module.pth": nn.Linear(2, 2),
        "tensor.pth": torch.zeros(3),
        "empty.pth": {},
        "other.pth": {"layer.weight": torch.zeros(3)},
        "nested.pth": {"stem.conv.weight": {"a": 1}},
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_weights(str(tmp_path / name))
    with pytest.raises(UserError, match=r"neither our names .* nor timm's"):
        read_weights(str(tmp_path / "other.pth"))
    save_file({"stem.conv.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "m.safetensors", {"mnvision": "{"})
    with pytest.raises(UserError, match="metadata is not JSON"):
        read_weights(str(tmp_path / "m.safetensors"))
    odd = {"mnvision": json.dumps({"class_names": 5, "mean": "x", "padding": 3})}
    save_file({"stem.conv.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "odd.safetensors", odd)
    with pytest.raises(UserError, match="its metadata gives"):
        read_weights(str(tmp_path / "odd.safetensors"))


def test_numbers_that_are_none(tmp_path):
    backbone, _ = network()
    backbone.stem.bn.bias.data[2] = float("nan")
    torch.save(backbone.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"NaN or infinite numbers in stem\.bn\.bias"):
        read_weights(str(tmp_path / "w.pth"))


def test_channels_of_no_alpha(tmp_path):
    state = network()[0].state_dict()
    state["stem.conv.weight"] = torch.zeros(13, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"channels \(13, 16, .*\) are not those of a MobileNetV1 of any alpha"):
        read_weights(str(tmp_path / "w.pth"))


def test_half_precision_files_become_float32(tmp_path):
    backbone, _ = network()
    torch.save(backbone.half().state_dict(), tmp_path / "w.pth")
    weights = read_weights(str(tmp_path / "w.pth"))
    assert weights.state["stem.conv.weight"].dtype == torch.float32
    assert weights.state["stem.bn.num_batches_tracked"].dtype == torch.int64


def test_paths(tmp_path):
    for source, message in [
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "no.pth"), "does not exist"),
        ("resnet", "neither a file nor a known name; give timm/MODEL.TAG"),
        ("", "give timm/MODEL.TAG"),
    ]:
        with pytest.raises(UserError, match=message):
            read_weights(source)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"weights files end in \.safetensors"):
        read_weights(str(tmp_path / "w.onnx"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(UserError, match="no permission"):
        read_weights(str(path))
