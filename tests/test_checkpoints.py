"""Checkpoints: usable alone, refused when they are not what they should be, never half-written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mnvision.build import build_model
from mnvision.callbacks.checkpoint_io import AtomicCheckpointIO
from mnvision.checkpoints import KEY, Metadata, load_model, read_checkpoint
from mnvision.errors import UserError
from tests.test_build import MODEL


def save_tiny(path: Path, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(MODEL).eval()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    metadata = Metadata(kind="classification", model=MODEL, class_names=["a", "b", "c"])
    torch.save({"state_dict": state, KEY: metadata.to_dict(), **changes}, path)
    return model


def test_model_is_rebuilt_bit_for_bit(tmp_path: Path):
    model = save_tiny(tmp_path / "x.ckpt")
    loaded, metadata = load_model(tmp_path / "x.ckpt")
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    expected = model(images)
    assert expected.std() > 0
    assert torch.equal(loaded(images), expected)
    assert metadata.class_names == ["a", "b", "c"]
    assert not loaded.training


def test_averaged_weights_are_preferred(tmp_path: Path):
    model = save_tiny(tmp_path / "plain.ckpt")
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    save_tiny(tmp_path / "x.ckpt", ema_state_dict=averaged)
    loaded, _ = load_model(tmp_path / "x.ckpt")
    assert torch.equal(loaded.head.fc.bias, model.head.fc.bias + 1)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def write(path: Path, kind: str) -> None:
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        save_tiny(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "code":
        torch.save({"state_dict": {}, "x": Evil()}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    elif kind == "foreign_target":
        evil = {**MODEL, "backbone": {"_target_": "os.system", "command": "true"}}
        save_tiny(path, **{KEY: Metadata("classification", evil, ["a"]).to_dict()})
    elif kind == "incomplete":
        save_tiny(path, **{KEY: {"kind": "classification"}})
    elif kind == "newer":
        future = Metadata("classification", MODEL, ["a"], format_version=99, version="9.0").to_dict()
        save_tiny(path, **{KEY: future})
    elif kind == "missing_weight":
        save_tiny(path)
        content = torch.load(path, weights_only=True)
        del content["state_dict"]["model.head.fc.bias"]
        torch.save(content, path)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("absent", "does not exist"),
        ("empty", "not a readable checkpoint"),
        ("text", "refused|not a readable"),
        ("truncated", "not a readable checkpoint"),
        ("code", "refused"),
        ("tensor", "holds a Tensor"),
        ("foreign", "not one of our checkpoints"),
        ("foreign_target", "only targets inside mnvision"),
        ("incomplete", "incomplete"),
        ("newer", "newer than this one"),
        ("missing_weight", "missing head.fc.bias"),
    ],
)
def test_bad_checkpoints_get_one_clear_line(tmp_path: Path, kind: str, text: str):
    path = tmp_path / "bad.ckpt"
    write(path, kind)
    with pytest.raises(UserError, match=text) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert "bad.ckpt" in str(caught.value)


def test_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plugin, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    plugin.save_checkpoint({"step": 1}, path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"could not save .*last.ckpt: .*No space left.*untouched"):
        plugin.save_checkpoint({"step": 2}, path)
    assert read_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_really_full_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error that torch's writer itself raises, not one that we made up."""
    real_open = Path.open

    def open_full(self: Path, *args: Any, **kwargs: Any) -> Any:
        return real_open(Path("/dev/full"), *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match=r"could not save .*x.ckpt"):
        AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(100_000)}, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())
