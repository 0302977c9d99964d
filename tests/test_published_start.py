"""Starting from a published detector or from a checkpoint's SSD head, and batch normalisation that came folded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnvision.backbones.pretrained.unfold import folded_norms, measure_folded
from mnvision.checkpoints import Metadata, load_model
from mnvision.errors import UserError
from tasks.composition import compose_model
from tests.builders import make_tiny_coco
from tests.builders_ssd_tflite import SSDFile
from tests.test_runs import compose
from tools.run import train
from tools.train import expand_start

pytest.importorskip("ai_edge_litert.interpreter")

SIDE = 64
NAMES = ["ant", "bee", "cat", "dog", "elk"]


def config(alpha: float = 0.25, **head: Any) -> dict[str, Any]:
    backbone = {"alpha": alpha, "resolution": SIDE, "out_strides": [16, 32], "padding": "auto", "bn_eps": "auto"}
    settings = {"num_classes": None, "resolution": SIDE, "alpha": alpha, "padding": "auto", **head}
    return {
        "_target_": "mnvision.models.Detector",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "backbone": {"_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1", **backbone},
        "head": {"_target_": "mnvision.heads.ssd.SSDHead", **settings},
        "decoder": {"_target_": "mnvision.boxes.postprocess.SSDDecoder"},
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = SSDFile(classes=5).write(tmp_path / "ssd.tflite")
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (12, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def save(path: Path, model: nn.Module, settled: dict[str, Any], names: list[str]) -> Path:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "mnvision": Metadata("detection", settled, names).to_dict()}, path)
    return path


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    outputs = model.eval()(images)
    return outputs["box_offsets"], outputs["cls_logits"]


@pytest.mark.parametrize("of_ours", [False, True], ids=["published", "our_checkpoint"])
def test_classes_of_the_same_name_answer_as_in_the_source(published, tmp_path, images, of_ours):
    source, metadata = load_model(published)
    path = save(tmp_path / "a.ckpt", source, metadata.model, NAMES) if of_ours else published
    wanted = ["Cat", "yak", "ant", "bee"]
    model, settled = compose_model(config(), wanted, str(path), init_head=True)
    assert settled["backbone"]["padding"] == settled["head"]["padding"] == "tf_same"
    boxes, logits = answers(model, images)
    expected_boxes, expected_logits = answers(source, images)
    torch.testing.assert_close(boxes, expected_boxes)
    columns = [0, 1, 3, 4]  # background, cat, ant, bee; yak is new
    torch.testing.assert_close(logits[..., columns], expected_logits[..., [0, 3, 1, 2]])
    assert (logits[..., 2].sigmoid() < 0.5).float().mean() > 0.9, "a new class starts at its prior"


def test_without_init_head_all_but_the_classes_is_taken(published, images, caplog):
    source, _ = load_model(published)
    with caplog.at_level("INFO", logger="mnvision"):
        model, _ = compose_model(config(), ["cat", "yak"], str(published))
    torch.testing.assert_close(answers(model, images)[0], answers(source, images)[0])
    biases = torch.cat([p.cls.bias for p in model.head.predictors])
    assert sorted(set(biases.tolist())) == pytest.approx([-4.595, 0.0], abs=1e-3)
    assert "init_head=true starts 1 of 2 from those of the same name" in caplog.text


def test_what_does_not_fit_begins_anew_and_is_named(published, images, caplog):
    with caplog.at_level("INFO", logger="mnvision"):
        model, _ = compose_model(config(lite=True), NAMES, str(published))
    assert all(bool(value.isfinite().all()) for value in answers(model, images))
    assert "anew: extras.0.depthwise" in caplog.text
    with pytest.raises(UserError, match=r"class predictors of .*ssd.tflite have another width, kind or number"):
        compose_model(config(lite=True), NAMES, str(published), init_head=True)


def test_starts_that_cannot_be_taken(published, tmp_path):
    with pytest.raises(UserError, match=r"alpha 0.25 into alpha 0.5.*add backbone.alpha=0.25"):
        compose_model(config(0.5), NAMES, str(published))
    with pytest.raises(UserError, match="no class has the name of one of"):
        compose_model(config(), ["yak"], str(published), init_head=True)
    coloured = {**config(), "mean": [123.7, 116.3, 103.5]}
    with pytest.raises(UserError, match=r"expect \[127.5, 127.5, 127.5\]"):
        compose_model(coloured, NAMES, str(published))


def test_a_published_width_is_taken_unless_another_is_given(published, tmp_path):
    start = f"init_from={published}"
    assert expand_start(["task=ssd_coco", start]) == ["backbone.alpha=0.25", "task=ssd_coco", start]
    for words in (["task=ssd_coco", "backbone.alpha=0.5", start], ["task=ssd_coco"], ["init_from=a.ckpt"]):
        assert expand_start(words) == words


class TestFoldedNormalisation:
    def test_answers_stay_and_training_sees_the_same_network(self, published, images):
        source, _ = load_model(published)
        folded = copy.deepcopy(source)
        assert len(folded_norms(source)) == 27 + 8
        source.train()
        assert measure_folded(source, [{"images": images}], 12) == 12
        assert all(module.training for module in source.modules())
        assert not folded_norms(source)
        for measured, before in zip(answers(source, images), answers(folded, images)):
            torch.testing.assert_close(measured, before, atol=2e-4, rtol=1e-4)
        # On the very pictures that were measured, batch statistics are the running ones.
        expected = answers(source, images)
        for model, fits in ((source, True), (folded, False)):
            outputs = model.train()(images)
            for trained, still in zip((outputs["box_offsets"], outputs["cls_logits"]), expected):
                error = (trained - still).detach().square().mean().sqrt() / still.std()
                assert (error < 0.02) == fits

    def test_statistics_are_those_of_all_batches(self, published, images):
        one, two = load_model(published)[0], load_model(published)[0]
        measure_folded(one, [{"images": images}], 12)
        measure_folded(two, ({"images": part} for part in images.split(5)), 12)
        for a, b in zip(one.state_dict().values(), two.state_dict().values()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        stem = one.backbone.stem
        seen = stem.conv((images.float() - one.mean) / one.std)
        torch.testing.assert_close(stem.bn.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stem.bn.running_var, seen.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)

    def test_it_stops_after_enough_pictures(self, published, images):
        assert measure_folded(load_model(published)[0], ({"images": part} for part in images.split(5)), 7) == 10

    def test_layers_that_were_trained_or_are_new_are_left(self, images):
        model, _ = compose_model(config(), NAMES)
        before = copy.deepcopy(model.state_dict())
        assert not folded_norms(model)
        assert measure_folded(model, [{"images": images}]) == 0
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_run_from_a_published_detector(published, tmp_path, caplog):
    root = make_tiny_coco(tmp_path / "coco")
    words = [f"data.root={root}", f"init_from={published}", "trainer.max_epochs=1", "data.augment=false"]
    cfg = compose(tmp_path / "run", "task=ssd_coco", *words, "optimizer.lr=0.0001")
    with caplog.at_level("INFO", logger="mnvision"):
        train(cfg)
    assert "folded in the file, measured on" in caplog.text
    model, metadata = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert metadata.model["backbone"]["padding"] == "tf_same"
    assert not folded_norms(model)
