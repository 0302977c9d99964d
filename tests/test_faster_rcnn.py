"""Faster R-CNN as a whole: its cost beside the paper's, its weights, and runs from training to prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.build import build_model
from mnvision.checkpoints import load_model
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.prediction.predictor import load_predictor
from mnvision.teachers.checkpoint import CheckpointTeacher
from tests.builders import make_image_folder
from tests.builders_faster_rcnn import faster_rcnn, faster_rcnn_config
from tests.builders_models import save_detector
from tests.test_runs import compose, read_rows, shapes_words, weights
from tools import cli
from tools.compare import require_one_kind
from tools.fit_boxes import fit
from tools.run import evaluate, train

TASK = "task=faster_rcnn_coco"
# Few regions, so that a run takes seconds.
LEAN = ["head.num_proposals=30", "loss.region_count=8"]


@pytest.fixture(scope="session")
def shapes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def word_list(cache: Path, epochs: int) -> list[str]:
    return [*shapes_words(cache, epochs), *LEAN]


@pytest.mark.parametrize(("resolution", "billions"), [(300, "25.2"), (600, "30.5")])
def test_cost_is_that_of_table_13(resolution: int, billions: str):
    """With COCO's 90 label ids, as TF counts classes; 300 proposals."""
    torch.manual_seed(0)
    cost = measure(build_model(faster_rcnn_config(90, resolution, alpha=1.0)), resolution, torch.uint8)
    assert f"{cost.mult_adds / 1e9:.1f}" == billions
    assert f"{cost.params / 1e6:.1f}" == "6.1"
    parts = {part.type: part for part in cost.parts}
    assert list(parts) == ["backbone", "backbone x 300", "head.rpn", "head.cls x 300", "head.box x 300"]
    # Two separable blocks on crops of 14 x 14 x 512, the first of stride 2.
    assert parts["backbone x 300"].mult_adds == 300 * 49 * (512 * 9 + 512 * 1024 + 1024 * 9 + 1024 * 1024)
    cells = {300: 19, 600: 38}[resolution] ** 2
    assert parts["head.rpn"].mult_adds == cells * 512 * (9 * 512 + 12 * 5)
    assert parts["head.cls x 300"].mult_adds == 300 * 1024 * 91
    assert "backbone x 300" in cost.table(by="part")
    assert "300x1024x7x7" in cost.table(by="layer")


@pytest.mark.parametrize("task", ["faster_rcnn_coco", "faster_rcnn_coco_600"])
def test_the_shipped_tasks_are_the_paper_s(task: str):
    cfg = cli.compose_config("config", [f"task={task}", "head.num_classes=90", "paths.output_dir=out"])
    assert cfg.backbone.resolution == cfg.head.resolution == cfg.data.resolution == {"o": 300, "0": 600}[task[-1]]
    assert (cfg.head.num_proposals, cfg.head.crop_size, cfg.backbone.alpha) == (300, 14, 1.0)


def test_every_weight_of_a_classifier_s_backbone_has_its_place():
    ours = faster_rcnn().backbone
    whole = MobileNetV1(alpha=0.25, resolution=96)
    assert ours.state_dict().keys() == whole.state_dict().keys()
    ours.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        (feature_map,) = ours(images)
        torch.testing.assert_close(ours.forward_tail(feature_map), whole.eval()(images)[0])
    assert feature_map.shape == (2, 128, 6, 6)


def test_a_backbone_without_tail_leaves_its_map_as_it_is():
    backbone = MobileNetV1(alpha=0.25, out_strides=[16])
    assert (len(backbone.blocks), backbone.tail_channels) == (11, 128)
    x = torch.randn(1, 128, 3, 3)
    assert backbone.forward_tail(x) is x


def test_one_picture_gives_the_same_alone_and_in_a_batch_and_in_parts(monkeypatch: pytest.MonkeyPatch):
    model = faster_rcnn(num_proposals=20)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        whole, alone = model(images), model(images[1:2])
        monkeypatch.setattr("mnvision.models.REGIONS_AT_ONCE", 7)
        parts = model(images)
    for name in whole:
        torch.testing.assert_close(alone[name][0], whole[name][1], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4)
    assert whole["proposals"].shape == (3, 20, 4)


def test_a_run_and_its_checkpoint_alone(tmp_path: Path, shapes_cache: Path):
    run, words = tmp_path / "run", word_list(shapes_cache, 1)
    trained = train(compose(run, TASK, *words, "decoder.score_threshold=0.0"))
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained.lightning_module.parameters())
    (row,) = read_rows(run)
    for name in ("loss", "loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box"):
        assert np.isfinite(float(row[f"train/{name}"]))
        assert np.isfinite(float(row[f"val/{name}"]))
    checkpoint = run / "checkpoints" / "last.ckpt"
    words = [*words, "decoder.score_threshold=0.0", f"checkpoint={checkpoint}"]
    report = tmp_path / "report"
    again = evaluate(compose(report, TASK, *words, name="evaluate"))
    for name, value in trained.callback_metrics.items():
        if name.startswith("val/"):
            assert again[name] == pytest.approx(float(value), abs=1e-6)
    assert len(json.loads((report / "metrics.json").read_text())["per_class"]) == 12
    model, metadata = load_model(checkpoint)
    assert (metadata.kind, model.kind) == ("faster_rcnn", "faster_rcnn")
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "head"}
    picture = np.full((50, 120, 3), 200, np.uint8)
    found = load_predictor(checkpoint).predict([picture], score_threshold=0.0)[0]
    boxes = np.array([detection.box for detection in found.detections])
    assert len(boxes)
    assert (boxes >= 0).all()
    assert (boxes <= [120, 50, 120, 50]).all()


def test_half_a_run_and_its_resumption_equal_the_whole_run(tmp_path: Path, shapes_cache: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(compose(whole, TASK, *word_list(shapes_cache, 2)))
    train(compose(halves, TASK, *word_list(shapes_cache, 1)))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, TASK, *word_list(shapes_cache, 2), f"ckpt_path={last}"))
    one, two = weights(whole), weights(halves)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, shapes_cache: Path):
    ssd = tmp_path / "ssd.ckpt"
    save_detector(ssd)
    words = word_list(shapes_cache, 1)
    text = "is a detection model, but this task is faster_rcnn: leave out task"
    with pytest.raises(UserError, match=text):
        evaluate(compose(tmp_path / "a", TASK, *words, f"checkpoint={ssd}", name="evaluate"))
    with pytest.raises(UserError, match="learns nothing from a teacher"):
        train(compose(tmp_path / "c", TASK, *words, "teacher=checkpoint", f"teacher.path={ssd}"))
    with pytest.raises(UserError, match="takes one feature map, the backbone gives 2"):
        train(compose(tmp_path / "d", TASK, *words, "backbone.out_strides=[16,32]"))
    with pytest.raises(UserError, match="only the default boxes of an SSD can be fitted"):
        fit(compose(tmp_path / "e", TASK, *words, name="fit_boxes"))


def test_a_faster_rcnn_cannot_teach_but_can_start_others(tmp_path: Path, shapes_cache: Path):
    run = tmp_path / "run"
    train(compose(run, TASK, *word_list(shapes_cache, 1), "callbacks.ema=null"))
    checkpoint = run / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match="is a faster_rcnn checkpoint, which cannot teach"):
        CheckpointTeacher(checkpoint)
    save_detector(tmp_path / "ssd.ckpt")
    require_one_kind([str(checkpoint), str(tmp_path / "ssd.ckpt")])
    make_image_folder(tmp_path / "images")
    words = ["trainer.max_epochs=1", f"data.root={tmp_path / 'images'}", f"init_from={checkpoint}"]
    frozen = train(compose(tmp_path / "c", "task=classification", *words, "fine_tuning.freeze=backbone"))
    stored, started = weights(run), frozen.lightning_module.model.backbone.state_dict()
    for name, tensor in started.items():
        assert torch.equal(tensor, stored[f"model.backbone.{name}"])
