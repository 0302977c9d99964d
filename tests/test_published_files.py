"""Which files are taken for published detectors, what their classes are called, and what is said of other files."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnvision.backbones.pretrained.sources import read_weights
from mnvision.checkpoints import load_model, read_metadata
from mnvision.errors import UserError
from mnvision.published.labels import coco_names, detector_classes
from mnvision.published.ssd_tflite import is_published_detector
from tests.builders_ssd_tflite import SSDFile, tf_anchors
from tests.test_published_detector import MAPS_AT_64, REAL, SIDE
from tests.tflite_builder import random_units, write_mobilenet
from tools import cli
from tools.evaluate import expand_checkpoint

pytest.importorskip("ai_edge_litert.interpreter")


@pytest.fixture
def real(shared_data: Path) -> Path:
    return shared_data / "weights" / REAL


class TestNames:
    def test_the_table_is_that_of_the_annotation_files(self, shared_data):
        truth = json.loads((shared_data / "coco" / "annotations" / "instances_val2017.json").read_text())
        assert coco_names() == {entry["id"]: entry["name"] for entry in truth["categories"]}

    def test_coco_without_labels_is_coco_with_labels(self, real, tmp_path):
        alone = tmp_path / "ssd.tflite"
        shutil.copy(real, alone)
        one, two = read_metadata(real), read_metadata(alone)
        assert one.class_names == two.class_names
        assert one.category_ids == two.category_ids == sorted(coco_names())

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("ant\nbee\ncat\n", {1: "ant", 2: "bee", 3: "cat"}),
            ("???\nant\n???\ncat\n", {1: "ant", 3: "cat"}),
            ("background\nant\nbee\nn/a\n", {1: "ant", 2: "bee"}),
            ("0  ant\n2  cat\n", {1: "ant", 3: "cat"}),
            ("0 background\n1 ant\n3 cat", {1: "ant", 3: "cat"}),
            ("1: ant\n3: cat\n", {1: "ant", 3: "cat"}),
            (None, {1: "class 1", 2: "class 2", 3: "class 3"}),
        ],
        ids=["plain", "labelmap", "background", "from_zero", "numbered_background", "from_one", "none"],
    )
    def test_ways_to_write_labels(self, text, found):
        assert detector_classes(Path("nowhere/ssd.tflite"), text, 3) == found

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("ant\nbee\n", "names 2 classes, the detector has 3"),
            ("a\nb\nc\nd\n", "names 4 classes, the detector has 3"),
            ("1 a\n9 b\n", "names 2 classes, the detector has 3"),
            ("ant\nbee\nant\n", "names 'ant' twice"),
            ("a\n\nb\n", "found an empty one"),
            ("n/a\nn/a\nn/a\n", "names no class"),
        ],
    )
    def test_labels_that_do_not_go_with_the_file(self, text, message):
        with pytest.raises(UserError, match=message):
            detector_classes(Path("nowhere/ssd.tflite"), text, 3)

    def test_inside_before_beside(self, tmp_path):
        path = SSDFile(classes=2).write(tmp_path / "ssd.tflite")
        (tmp_path / "labelmap.txt").write_text("???\nant\nbee\n")
        assert read_metadata(path).class_names == ["ant", "bee"]
        (tmp_path / "ssd.tflite.labels.txt").write_text("asp\nbug\n")
        assert read_metadata(path).class_names == ["asp", "bug"]
        with zipfile.ZipFile(path, "a") as archive:  # as TFLite Metadata does
            archive.writestr("labelmap.txt", "cat\ndog\n")
        assert read_metadata(path).class_names == ["cat", "dog"]


def test_the_config_composes_from_the_file(real, tmp_path):
    words = expand_checkpoint([f"checkpoint={real}", "decoder.max_detections=10"])
    cfg = cli.compose_config("evaluate", [*words, f"paths.output_dir={tmp_path}"])
    assert (cfg.backbone.alpha, cfg.head.resolution, cfg.head.padding) == (0.75, 300, "tf_same")
    assert (cfg.decoder.classification, cfg.decoder.nms_iou, cfg.decoder.max_detections) == ("focal", 0.6, 10)
    other = SSDFile(anchors=tf_anchors(MAPS_AT_64, min_scale=0.15)).write(tmp_path / "ssd.tflite")
    cfg = cli.compose_config("evaluate", expand_checkpoint([f"checkpoint={other}"]))
    assert [len(sizes) for sizes in cfg.head.box_sizes] == [3, 6, 6, 6, 6, 6]


class TestOtherFiles:
    def line(self, path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    def test_a_classifier(self, tmp_path):
        path = tmp_path / "mobilenet.tflite"
        write_mobilenet(path, random_units(0.25, 11), SIDE)
        assert not is_published_detector(path)
        assert "a classifier goes to backbone.pretrained=FILE" in self.line(path)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"options": {"x_scale": 1.0}}, "its box coder scales by"),
            ({"options": {"num_classes": 4}}, "it states 4 classes and has rows for 5"),
            ({"first_map": "Conv2d_7_pointwise"}, "first two feature maps are not those of Conv2d_11_pointwise"),
            ({"anchors": np.zeros((20, 4))}, "20 anchors do not go with its outputs"),
            ({"anchors": tf_anchors(MAPS_AT_64) + np.linspace(0, 0.2, 96)[:, None]}, "around the centre of every cell"),
            ({"boxes": (4, 6, 6, 6, 6, 6), "post_process": False}, "are not those of the SSD rule"),
            ({"backbone": "MobilenetV2"}, "not an SSD on a whole MobileNetV1: its backbone is MobilenetV2"),
        ],
    )
    def test_another_architecture(self, tmp_path, options, text):
        path = SSDFile(**options).write(tmp_path / "ssd.tflite")
        assert is_published_detector(path)
        assert text in self.line(path)

    @pytest.mark.parametrize("keep", [0, 100, 0.5, 0.95])
    def test_truncated(self, tmp_path, keep):
        path = SSDFile().write(tmp_path / "ssd.tflite")
        content = path.read_bytes()
        path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
        assert "LiteRT refuses it as damaged" in self.line(path)

    def test_wrong_suffix_missing_and_folder(self, tmp_path):
        path = SSDFile().write(tmp_path / "ssd.bin")
        assert not is_published_detector(path)
        assert "a .tflite file under another suffix" in self.line(path)
        assert "does not exist" in self.line(tmp_path / "none.tflite")
        assert not is_published_detector(tmp_path)

    def test_without_litert(self, tmp_path, monkeypatch):
        path = SSDFile().write(tmp_path / "ssd.tflite")
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
        assert "pip install mnvision[tflite]" in self.line(path)


def test_the_backbone_alone_as_before(tmp_path):
    weights = read_weights(str(SSDFile().write(tmp_path / "ssd.tflite")))
    assert (weights.alpha, weights.classifier) == (0.25, None)
    assert "BoxPredictor_0/ClassPredictor" in weights.left_out
