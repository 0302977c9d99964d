"""Reading Keras files, proved against the layers' arithmetic written out in numpy."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

h5py = pytest.importorskip("h5py")

REAL_FILE = "mobilenet_2_5_224_tf_no_top.h5"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def same_pad(x: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's "SAME" zeros for a 3x3 kernel on (H, W, C)."""
    amounts = []
    for size in x.shape[:2]:
        total = max((-(-size // stride) - 1) * stride + 3 - size, 0)
        amounts.append((total // 2, total - total // 2))
    return np.pad(x, (*amounts, (0, 0)))


def keras_forward(path: Path, image: np.ndarray) -> np.ndarray:
    """The network of a Keras file on (H, W, 3) float64, layer by layer as Keras defines them."""
    with h5py.File(path) as file:
        root = file.get("model_weights", file)

        def read(layer: str, name: str) -> np.ndarray:
            return np.asarray(root[layer][layer][f"{name}:0"], dtype=np.float64)

        def norm_relu6(x: np.ndarray, layer: str) -> np.ndarray:
            mean, var = read(layer, "moving_mean"), read(layer, "moving_variance")
            x = (x - mean) / np.sqrt(var + 1e-3) * read(layer, "gamma") + read(layer, "beta")
            return np.minimum(np.maximum(x, 0), 6)

        def taps(x: np.ndarray, stride: int):
            height, width = (-(-size // stride) for size in x.shape[:2])
            padded = same_pad(x, stride)
            for i in range(3):
                for j in range(3):
                    rows = slice(i, i + stride * (height - 1) + 1, stride)
                    yield i, j, padded[rows, j : j + stride * (width - 1) + 1 : stride]

        kernel = read("conv1", "kernel")
        x = norm_relu6(sum(part @ kernel[i, j] for i, j, part in taps(image, 2)), "conv1_bn")
        for n, stride in enumerate(STRIDES, start=1):
            kernel = read(f"conv_dw_{n}", "depthwise_kernel")
            x = sum(part[..., None] * kernel[i, j] for i, j, part in taps(x, stride))
            x = norm_relu6(x.reshape(*x.shape[:2], -1), f"conv_dw_{n}_bn")
            x = norm_relu6(x @ read(f"conv_pw_{n}", "kernel")[0, 0], f"conv_pw_{n}_bn")
        if "conv_preds" not in root:
            return x
        return x.mean((0, 1)) @ read("conv_preds", "kernel")[0, 0] + read("conv_preds", "bias")


def write_keras(path: Path, multiplier: int = 1, classes: int | None = None, whole_model: bool = False) -> None:
    """A random alpha 0.25 network in the layout of Keras Applications."""
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        if whole_model:
            file["optimizer_weights/Adam/conv1/kernel:0"] = np.zeros((3, 3, 3, 8), np.float32)

        def write(layer: str, **values: np.ndarray) -> None:
            for name, value in values.items():
                root[f"{layer}/{layer}/{name}:0"] = value.astype(np.float32)

        def norm(layer: str, channels: int) -> None:
            draws = {name: rng.uniform(0.5, 1.5, channels) for name in ("gamma", "moving_variance")}
            write(layer, beta=rng.normal(0.2, 0.2, channels), moving_mean=rng.normal(0, 0.1, channels), **draws)

        channels = 8
        write("conv1", kernel=rng.normal(0, 0.3, (3, 3, 3, 8)))
        norm("conv1_bn", 8)
        outs = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
        for n, out in enumerate(outs, start=1):
            write(f"conv_dw_{n}", depthwise_kernel=rng.normal(0, 0.4, (3, 3, channels, multiplier)))
            norm(f"conv_dw_{n}_bn", channels * multiplier)
            wide = channels * multiplier
            write(f"conv_pw_{n}", kernel=rng.normal(0, (2 / wide) ** 0.5, (1, 1, wide, out)))
            norm(f"conv_pw_{n}_bn", out)
            channels = out
        if classes:
            write("conv_preds", kernel=rng.normal(0, 0.1, (1, 1, 256, classes)), bias=rng.normal(size=classes))


@torch.no_grad()
def ours(path: Path, image: np.ndarray, classes: int | None = None) -> np.ndarray:
    """Our network in float64, so that nothing but a wrong weight or padding can differ."""
    weights = read_weights(str(path))
    backbone = MobileNetV1(**weights.backbone_arguments()).eval()
    head = ClassifierHead(backbone.feature_channels, classes).eval() if classes else None
    report = load_into(backbone, weights, head, require_classifier=classes is not None)
    assert report.backbone_tensors == len(backbone.state_dict())
    maps = backbone.double()(torch.from_numpy(image).permute(2, 0, 1)[None])
    if head is not None:
        return head.double()(maps)[0].numpy()
    return maps[-1][0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (33, 96)])
def test_real_file_computes_what_keras_computes(shared_data, size):
    path = shared_data / "weights" / REAL_FILE
    image = np.random.default_rng(0).uniform(-1, 1, (*size, 3))
    expected = keras_forward(path, image)
    assert expected.std() > 0.1, "a constant map would prove nothing"
    assert expected.shape == (-(-size[0] // 32), -(-size[1] // 32), 256)
    np.testing.assert_allclose(ours(path, image), expected, atol=1e-9)


def test_real_file_settings(shared_data):
    weights = read_weights(str(shared_data / "weights" / REAL_FILE))
    assert weights.backbone_arguments() == {
        "alpha": 0.25,
        "depth_multiplier": 1,
        "variant": "separable",
        "padding": "tf_same",
        "bn_eps": 1e-3,
        "activation": "relu6",
    }
    assert (weights.classifier, weights.resolution, weights.left_out) == (None, 224, ())
    assert (weights.mean, weights.std) == ((127.5,) * 3, (127.5,) * 3)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("whole_model", [False, True])
def test_classifier_and_depth_multiplier(tmp_path, multiplier, whole_model):
    path = tmp_path / "net.h5"
    write_keras(path, multiplier, classes=5, whole_model=whole_model)
    image = np.random.default_rng(0).uniform(-1, 1, (64, 64, 3))
    expected = keras_forward(path, image)
    assert expected.std() > 0.1
    np.testing.assert_allclose(ours(path, image, classes=5), expected, atol=1e-9)
    assert read_weights(str(path)).depth_multiplier == multiplier


def test_published_name_brings_imagenet_names(tmp_path):
    folder = tmp_path / "weights" / "keras"
    folder.mkdir(parents=True)
    write_keras(folder / "mobilenet_2_5_160_tf.h5", classes=1000)
    weights = read_weights("keras/0.25_160", tmp_path)
    assert weights.class_names is not None
    assert (weights.resolution, weights.class_names[0]) == (160, "tench, Tinca tinca")
    assert not weights.background_first
    write_keras(folder / "mobilenet_2_5_160_tf_no_top.h5")
    assert read_weights("keras/0.25_160_no_top", tmp_path).classifier is None


@pytest.mark.parametrize("name", ["0.6_224", "1.0_100", "1.0", "1.0.0_224", "1.0_224_top"])
def test_unknown_name(tmp_path, name):
    with pytest.raises(UserError, match="no such weights; Keras has"):
        read_weights(f"keras/{name}", tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "net.h5"
    write_keras(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(UserError, match=r"not an HDF5 file|damaged or truncated HDF5 file") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_other_architecture(tmp_path):
    path = tmp_path / "net.h5"
    with h5py.File(path, "w") as file:
        file["block1_conv1/kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
    with pytest.raises(UserError, match="not a Keras MobileNet"):
        read_weights(str(path))


def test_a_layer_is_missing(tmp_path):
    path = tmp_path / "net.h5"
    write_keras(path)
    with h5py.File(path, "a") as file:
        del file["conv_dw_5"]
    weights = read_weights(str(path))
    with pytest.raises(UserError, match=r"missing blocks\.4\.depthwise\.conv\.weight"):
        load_into(MobileNetV1(**weights.backbone_arguments()), weights)


def test_without_h5py(tmp_path, monkeypatch):
    path = tmp_path / "net.h5"
    write_keras(path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install mnvision\[keras\]"):
        read_weights(str(path))
