"""Reading .tflite files, proved against LiteRT's own interpreter."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead
from tests.tflite_builder import random_units, write_mobilenet

interpreter = pytest.importorskip("ai_edge_litert.interpreter")

CLASSES = 11
SIZE = 64
SSD_FILE = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)


def run_litert(path: Path, images: np.ndarray) -> np.ndarray:
    """The file's last output as real numbers, for the input in its own number type."""
    net = interpreter.Interpreter(model_path=str(path))
    net.allocate_tensors()
    net.set_tensor(net.get_input_details()[0]["index"], images)
    net.invoke()
    details = net.get_output_details()[0]
    output = net.get_tensor(details["index"]).astype(np.float64).ravel()
    scale, zero_point = details["quantization"]
    return (output - zero_point) * scale if scale else output


def built(weights: PretrainedWeights, **arguments: object) -> tuple[MobileNetV1, ClassifierHead]:
    backbone = MobileNetV1(**{**weights.backbone_arguments(), **arguments}).eval()
    rows = CLASSES if weights.classifier is None else len(weights.classifier[1])
    head = ClassifierHead(backbone.feature_channels, rows).eval()
    load_into(backbone, weights, head)
    return backbone, head


@torch.no_grad()
def run_ours(weights: PretrainedWeights, pixels: np.ndarray, **arguments: object) -> np.ndarray:
    backbone, head = built(weights, **arguments)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (weights.mean, weights.std))
    return head(backbone((images - mean) / std)).double().numpy().ravel()


@pytest.mark.parametrize(
    ("options", "padding"),
    [
        ({}, "tf_same"),
        ({"names": False}, "tf_same"),
        ({"scope": "FeatureExtractor/MobilenetV1/MobilenetV1/"}, "tf_same"),
        ({"explicit_padding": True}, "symmetric"),
        ({"dense": True}, "tf_same"),
        ({"number": "float16"}, "tf_same"),
    ],
    ids=["tf_slim_names", "graph_order", "detector_names", "explicit_padding", "dense", "float16"],
)
@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_float_file_computes_what_litert_computes(tmp_path, pixels, options, padding, alpha):
    path = tmp_path / "net.tflite"
    write_mobilenet(path, random_units(alpha, CLASSES), SIZE, **options)
    expected = run_litert(path, (pixels / np.float32(127.5) - 1).astype(np.float32))
    weights = read_weights(str(path))
    assert weights.backbone_arguments() == {
        "alpha": alpha,
        "depth_multiplier": 1,
        "variant": "separable",
        "padding": padding,
        "bn_eps": 1e-3,
        "activation": "relu6",
    }
    assert (weights.resolution, weights.left_out, weights.mean) == (SIZE, (), (127.5,) * 3)
    assert expected.std() > 0.1
    np.testing.assert_allclose(run_ours(weights, pixels), expected, atol=1e-5)


def test_folded_bias_survives_another_eps(tmp_path, pixels):
    path = tmp_path / "net.tflite"
    write_mobilenet(path, random_units(0.25, CLASSES), SIZE)
    expected = run_litert(path, (pixels / np.float32(127.5) - 1).astype(np.float32))
    weights = read_weights(str(path))
    np.testing.assert_allclose(run_ours(weights, pixels, bn_eps=0.3), expected, atol=1e-5)


@pytest.mark.parametrize("number", ["uint8", "int8"])
def test_quantised_file_is_dequantised(tmp_path, pixels, number):
    path = tmp_path / "net.tflite"
    units = random_units(0.25, CLASSES)
    stored = write_mobilenet(path, units, SIZE, number)
    weights = read_weights(str(path))
    stem = weights.state["stem.conv.weight"].numpy()
    np.testing.assert_allclose(stem.transpose(0, 2, 3, 1), stored["Conv2d_0"].real(), rtol=1e-6, atol=1e-9)
    depthwise = weights.state["blocks.4.depthwise.conv.weight"].numpy()
    np.testing.assert_allclose(depthwise[:, 0], stored["Conv2d_5_depthwise"].real()[0].transpose(2, 0, 1), rtol=1e-6)
    assert np.abs(stem.transpose(0, 2, 3, 1) - units[0].weight).max() <= 0.51 * stored["Conv2d_0"].scale.max()
    bias = weights.state["blocks.12.pointwise.bn.bias"].numpy()
    np.testing.assert_allclose(bias, stored["Conv2d_13_pointwise/bias"].real(), rtol=1e-6)
    assert (weights.mean, weights.std) == ((128.0,) * 3, (128.0,) * 3)
    assert weights.activation == "relu6"
    signed = pixels if number == "uint8" else (pixels.astype(int) - 128).astype(np.int8)
    expected = run_litert(path, signed)
    assert expected.std() > 0.5
    assert np.abs(run_ours(weights, pixels) - expected).max() < 0.15  # the output's own step is 0.1


@pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors:UserWarning")
def test_real_detector_matches_litert_layer_by_layer(shared_data):
    path = shared_data / "weights" / SSD_FILE
    weights = read_weights(str(path))
    assert (weights.alpha, weights.padding, weights.resolution) == (0.75, "tf_same", 300)
    assert weights.classifier is None
    assert "BoxPredictor_0/ClassPredictor" in weights.left_out
    photo = sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[0]
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((300, 300)))[None]
    net = interpreter.Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
    net.allocate_tensors()
    net.set_tensor(net.get_input_details()[0]["index"], pixels)
    net.invoke()
    backbone = MobileNetV1(**weights.backbone_arguments(), out_strides=(2, 16, 32)).eval()
    load_into(backbone, weights)
    seen: list[torch.Tensor] = []
    backbone.stem.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        maps = backbone((torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() - 128) / 128)
    names = ("Conv2d_0", "Conv2d_1_pointwise", "Conv2d_11_pointwise", "Conv2d_13_pointwise")
    errors = {}  # greatest difference in quantisation steps, signal to noise in dB, correlation
    for name, ours in zip(names, (*seen, *maps)):
        theirs, step = litert_activation(net, name)
        assert theirs.std() > 0.1, "a constant map would prove nothing"
        difference = ours[0].permute(1, 2, 0).double().numpy() - theirs
        assert ours.shape[2:] == theirs.shape[:2]
        errors[name] = (
            np.abs(difference).max() / step,
            10 * np.log10((theirs**2).sum() / (difference**2).sum()),
            np.corrcoef(theirs.ravel(), (theirs + difference).ravel())[0, 1],
        )
    assert errors["Conv2d_0"][0] <= 0.51, "one layer of the same weights: off by rounding only"
    assert min(error[1] for error in errors.values()) > 28
    assert min(error[2] for error in errors.values()) > 0.998


def litert_activation(net, name: str) -> tuple[np.ndarray, float]:
    wanted = f"FeatureExtractor/MobilenetV1/MobilenetV1/{name}/Relu6"
    details = next(entry for entry in net.get_tensor_details() if entry["name"] == wanted)
    scale, zero_point = details["quantization"]
    return (net.get_tensor(details["index"])[0].astype(np.float64) - zero_point) * scale, scale


def test_released_names_are_imagenet_with_background(tmp_path):
    path = tmp_path / "mobilenet_v1_0.25_64.tflite"
    write_mobilenet(path, random_units(0.25, 1001), SIZE)
    weights = read_weights(str(path))
    assert weights.background_first
    assert weights.class_names is not None
    assert weights.class_names[:2] == ("background", "tench, Tinca tinca")
    backbone = MobileNetV1(**weights.backbone_arguments())
    head = ClassifierHead(backbone.feature_channels, 1000)
    by_position = load_into(backbone, weights, head)
    assert "without its background row" in by_position.classifier
    torch.testing.assert_close(head.fc.weight, weights.classifier[0][1:])
    few = ClassifierHead(backbone.feature_channels, 2)
    load_into(backbone, weights, few, class_names=["n01443537", "n01440764"])  # goldfish, tench
    torch.testing.assert_close(few.fc.weight, weights.classifier[0][[2, 1]])
    torch.testing.assert_close(few.fc.bias, weights.classifier[1][[2, 1]])


def test_labels_inside_and_beside(tmp_path):
    path = tmp_path / "net.tflite"
    write_mobilenet(path, random_units(0.25, 3), SIZE)
    assert read_weights(str(path)).class_names is None
    (tmp_path / "net.tflite.labels.txt").write_text("0 background\n1 ant\n2 bee\n")
    weights = read_weights(str(path))
    assert weights.class_names == ("background", "ant", "bee")
    assert weights.background_first
    with zipfile.ZipFile(path, "a") as archive:  # as TFLite Metadata does
        archive.writestr("labels.txt", "a\nb\nc\n")
    assert read_weights(str(path)).class_names == ("a", "b", "c")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    other = tmp_path / "other.tflite"
    write_mobilenet(other, random_units(0.25, 3), SIZE)
    with pytest.raises(UserError, match="2 class names for a classifier of 3 classes"):
        read_weights(str(other))


@pytest.mark.parametrize("keep", [0, 7, 1000, 0.5, 0.9])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "net.tflite"
    write_mobilenet(path, random_units(0.25, CLASSES), SIZE)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 or keep == 0 else keep * len(content))])
    with pytest.raises(UserError, match=r"damaged or as no .tflite file") as caught:
        read_weights(str(path))
    assert "\n" not in str(caught.value)


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "net.tflite"
    units = random_units(0.25, CLASSES)
    units[0].stride = 1
    write_mobilenet(path, units, SIZE)
    with pytest.raises(UserError, match=r"strides 1, .* are not those of a MobileNetV1"):
        read_weights(str(path))
    write_mobilenet(path, random_units(0.25, CLASSES)[:2], SIZE, names=False)
    with pytest.raises(UserError, match="no MobileNetV1 in it"):
        read_weights(str(path))


def test_without_litert(tmp_path, monkeypatch):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"pip install mnvision\[tflite\]"):
        read_weights(str(path))


class TestReleasedModels:
    """``tfslim/...`` from an archive that was put into the cache by hand."""

    def place(self, cache: Path, name: str, members: dict[str, bytes]) -> Path:
        folder = cache / "weights" / "tfslim"
        folder.mkdir(parents=True)
        with tarfile.open(folder / f"{name}.tgz", "w:gz") as tar:
            for member, content in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return folder

    def test_archive_is_unpacked_beside_itself_only(self, tmp_path):
        file = tmp_path / "net.tflite"
        write_mobilenet(file, random_units(0.5, 1001), SIZE)
        members = {"./x.ckpt.index": b"..", "../../escaped.tflite": file.read_bytes()}
        folder = self.place(tmp_path / "cache", "mobilenet_v1_0.5_160", members)
        weights = read_weights("tfslim/0.50_160", tmp_path / "cache")
        assert (weights.alpha, weights.source, weights.background_first) == (0.5, "tfslim/0.50_160", True)
        assert sorted(p.name for p in folder.iterdir()) == [
            "mobilenet_v1_0.5_160.tflite",
            "mobilenet_v1_0.5_160.tgz",
        ]
        assert not list(tmp_path.rglob("escaped*"))

    def test_archive_without_tflite(self, tmp_path):
        self.place(tmp_path, "mobilenet_v1_1.0_128_quant", {"readme": b"x"})
        with pytest.raises(UserError, match=r"expected one .tflite file in it, found 0"):
            read_weights("tfslim/1.0_128_quant", tmp_path)

    def test_damaged_archive(self, tmp_path):
        folder = self.place(tmp_path, "mobilenet_v1_1.0_128", {"a.tflite": bytes(5000)})
        archive = folder / "mobilenet_v1_1.0_128.tgz"
        archive.write_bytes(archive.read_bytes()[:40])
        with pytest.raises(UserError, match="damaged archive"):
            read_weights("tfslim/1.0_128", tmp_path)

    @pytest.mark.parametrize("name", ["0.6_224", "1.0_200", "1.0", "1.0.0_224", "1.0_224_top"])
    def test_unknown_name(self, name, tmp_path):
        with pytest.raises(UserError, match="no such weights; TF-slim has"):
            read_weights(f"tfslim/{name}", tmp_path)
