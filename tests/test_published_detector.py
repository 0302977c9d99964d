"""Published SSD MobileNetV1 detectors, proved against LiteRT's own interpreter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mnvision
from mnvision.boxes.coder import decode_boxes
from mnvision.checkpoints import load_model, read_metadata
from mnvision.metrics.coco import CocoEvaluator
from mnvision.prediction.preprocess import Preprocess
from tests.builders_ssd_tflite import SSDFile, as_float, tf_anchors

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling .experimental_preserve_all_tensors:UserWarning")

SIDE = 64
YXHW = [1, 0, 3, 2]
REAL = "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"
# Box codes and class logits of the real file.
RAW = ("Squeeze", "concat_1")
MAPS_AT_64 = [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)]


@pytest.fixture
def real(shared_data: Path) -> Path:
    return shared_data / "weights" / REAL


@pytest.fixture
def photos(shared_data: Path) -> list[np.ndarray]:
    """Three photos as the network sees them: ``(1, 300, 300, 3)`` uint8."""
    files = sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:60:20]
    return [np.array(Image.open(file).convert("RGB").resize((300, 300)))[None] for file in files]


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8)


class LiteRT:
    """The file run by LiteRT, with every tensor kept."""

    def __init__(self, path: Path) -> None:
        self.net = interpreter.Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
        self.net.allocate_tensors()
        details = self.net.get_tensor_details()
        self.tensors = {key: entry for entry in details for key in (entry["name"], entry["index"])}

    def run(self, images: np.ndarray) -> None:
        self.net.set_tensor(self.net.get_input_details()[0]["index"], images)
        self.net.invoke()

    def detections(self) -> list[np.ndarray]:
        """Boxes (y, x, y, x as fractions), class numbers from 0 and scores of the post-processing in the file."""
        return [self.net.get_tensor(entry["index"])[0] for entry in self.net.get_output_details()[:3]]

    def real(self, name: str | int) -> np.ndarray:
        """A tensor as real numbers, without the batch axis."""
        entry = self.tensors[name]
        values = self.net.get_tensor(entry["index"])[0].astype(np.float64)
        scale, zero_point = entry["quantization"]
        values = (values - zero_point) * scale if scale else values
        return values

    def raw(self, images: np.ndarray, boxes: str | int, logits: str | int) -> tuple[np.ndarray, np.ndarray]:
        self.run(images)
        return self.real(boxes)[:, YXHW], self.real(logits)


@torch.no_grad()
def run_ours(path: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    outputs = load_model(path)[0](torch.from_numpy(images).permute(0, 3, 1, 2))
    return outputs["box_offsets"][0].double().numpy(), outputs["cls_logits"][0].double().numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"names": False, "alpha": 0.5},
        {"post_process": False},
        {"post_process": False, "scores": False, "names": False},
        {"depths": (96, 64, 64, 48), "classes": 1},
        {"classes": 3, "seed": 5},
    ],
    ids=["as_tf", "nameless", "raw_scores", "raw_logits", "other_extras_one_class", "four_columns"],
)
def test_a_float_file_computes_what_litert_computes(tmp_path, noise, options):
    file = SSDFile(**options)
    path = file.write(tmp_path / "ssd.tflite")
    expected = LiteRT(path).raw((noise / np.float32(127.5) - 1).astype(np.float32), *file.raw)
    for ours, theirs in zip(run_ours(path, noise), expected):
        assert theirs.std() > 0.5
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_real_weights_in_float_arithmetic(tmp_path, real, photos):
    """Without the rounding of activations nothing is left between LiteRT and us."""
    rows = [0, *read_metadata(real).category_ids]
    floats = LiteRT(as_float(real, tmp_path / "float.tflite"))
    for pixels in photos:
        boxes, logits = floats.raw(((pixels - np.float32(128)) / 128).astype(np.float32), *RAW)
        ours = run_ours(real, pixels)
        np.testing.assert_allclose(ours[0], boxes, atol=1e-4)
        np.testing.assert_allclose(ours[1], logits[:, rows], atol=1e-4)


def test_the_real_file_up_to_its_rounding(real, photos):
    rows = [0, *read_metadata(real).category_ids]
    assert len(rows) == 81
    rounded = LiteRT(real)
    for pixels in photos:
        boxes, logits = rounded.raw(pixels, *RAW)
        for ours, theirs in zip(run_ours(real, pixels), (boxes, logits[:, rows])):
            assert theirs.std() > 0.5
            assert 10 * np.log10((theirs**2).mean() / ((ours - theirs) ** 2).mean()) > 25
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.998
            step = {4: 0.079, 81: 0.0497}[ours.shape[1]]  # of the output itself; the layers before add to it
            assert np.sqrt(((ours - theirs) ** 2).mean()) < 1.5 * step


def test_default_boxes_are_the_anchors_of_the_file(real, tmp_path):
    stored = LiteRT(real)
    entry = stored.tensors["anchors"]
    scale, zero_point = entry["quantization"]
    anchors = (stored.net.get_tensor(entry["index"]).astype(np.float64) - zero_point) * scale
    model, metadata = load_model(real)
    assert metadata.model["head"]["box_sizes"] is None
    assert len(model.head.default_boxes) == 1917
    np.testing.assert_allclose(_as_anchors(model), anchors, atol=scale / 2 + 1e-4)
    for name, options in (("low", {"min_scale": 0.15}), ("six", {"reduced": False}), ("tf", {})):
        table = tf_anchors(MAPS_AT_64, **options)
        boxes = (6 if name == "six" else 3, 6, 6, 6, 6, 6)
        path = SSDFile(anchors=table, boxes=boxes).write(tmp_path / f"{name}.tflite")
        model, metadata = load_model(path)
        assert (metadata.model["head"]["box_sizes"] is None) == (name == "tf")
        np.testing.assert_allclose(_as_anchors(model), table, atol=1e-4 if name == "tf" else 1e-6)


def _as_anchors(model: Any) -> np.ndarray:
    boxes = model.head.default_boxes.double().numpy() / model.resolution[0]
    low, high = boxes[:, 1::-1], boxes[:, :1:-1]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def test_detections_are_those_of_litert(real, shared_data):
    """Confident objects of photos: the same classes at the same places (our scores do not pass through 8 bits)."""
    predictor, stored = mnvision.load(real), LiteRT(real)
    labels = (real.parent / "coco_labels.txt").read_text().splitlines()
    compared = 0
    for file in sorted((shared_data / "coco" / "val2017").glob("*.jpg"))[:12]:
        result = predictor.predict(file, score_threshold=0.2)
        stored.run(predictor.preprocess(file).pixels[None])
        boxes, classes, scores = stored.detections()
        height, width = result.size
        for box, label in zip(boxes[scores > 0.6], classes[scores > 0.6]):
            y0, x0, y1, x1 = np.clip(box, 0, 1) * [height, width, height, width]
            same = [found.box for found in result.detections if found.name == labels[int(label)]]
            assert max(_iou((x0, y0, x1, y1), found) for found in same) > 0.85
            compared += 1
    assert compared > 10


@pytest.mark.slow
def test_average_precision_is_that_of_litert(real, shared_data):
    """Ten detections of every photo, suppressed as TFLite does it, against the file's own ten."""
    root = shared_data / "coco"
    truth = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    (model, metadata), stored = load_model(real), LiteRT(real)
    prepare = Preprocess(metadata.preprocess, model.resolution)
    ours, theirs = CocoEvaluator(truth), CocoEvaluator(truth)
    for image in truth["images"]:
        picture = prepare(root / "val2017" / image["file_name"])
        stored.run(picture.pixels[None])
        boxes, classes, scores = stored.detections()
        _add(theirs, image["id"], picture.size, boxes[:, YXHW], scores, classes + 1)
        with torch.no_grad():
            outputs = model(torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None])
        boxes = decode_boxes(outputs["box_offsets"][0], model.head.default_boxes).numpy() / 300
        probabilities = outputs["cls_logits"][0, :, 1:].sigmoid().numpy()
        kept = _fast_suppression(boxes, probabilities.max(1))
        labels = np.array(metadata.category_ids)[probabilities[kept].argmax(1)]
        _add(ours, image["id"], picture.size, boxes[kept], probabilities[kept].max(1), labels)
    one, two = ours.compute().twelve(), theirs.compute().twelve()
    assert two["AP"] == pytest.approx(0.21, abs=0.01)
    assert one["AP"] == pytest.approx(two["AP"], abs=0.005)


def _add(evaluator: CocoEvaluator, image_id: int, size: Any, boxes: Any, scores: Any, ids: Any) -> None:
    """One photo's detections; boxes xyxy as fractions, ids of COCO."""
    sides = np.array([size[1], size[0], size[1], size[0]])
    found = {"boxes": boxes * sides, "scores": scores, "labels": ids}
    batch = {name: torch.as_tensor(np.asarray(values))[None] for name, values in found.items()}
    batch |= {"boxes": batch["boxes"].float(), "labels": batch["labels"].long()}
    evaluator.update([image_id], batch, list(range(91)))


def _fast_suppression(boxes: np.ndarray, scores: np.ndarray, count: int = 10) -> list[int]:
    """TFLite's: one class per box, and boxes of different classes suppress each other (IoU 0.6)."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(_iou(boxes[index], boxes[other]) <= 0.6 for other in kept):
            kept.append(int(index))
        if len(kept) == count:
            break
    return kept


def _iou(one: Any, two: Any) -> float:
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    inside = np.clip(sides, 0, None).prod()
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return float(inside / (sum(areas) - inside))
