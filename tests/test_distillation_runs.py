"""Runs that learn from a teacher, from the command line's words alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mnvision.checkpoints import load_model, read_checkpoint
from mnvision.teachers.checkpoint import CheckpointTeacher
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_harm import compose, line_of
from tests.builders_models import save_classifier, save_detector
from tools.cli import merge_overrides
from tools.evaluate import TRAINING
from tools.run import evaluate, train

COLOURS = ["red", "blue", "green"]  # in another order than the folders
OBJECTS = ["kite", "car", "person"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image_folder(tmp_path_factory.mktemp("images") / "data", per_class=4)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_coco(tmp_path_factory.mktemp("coco") / "data")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "classifier.ckpt"
    save_classifier(path, class_names=COLOURS)
    return path


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "detector.ckpt"
    save_detector(path, class_names=OBJECTS)
    return path


def words_for(data: Path, teacher: Path, *words: str, epochs: int = 1) -> list[str]:
    return [
        *("teacher=checkpoint", f"teacher.path={teacher}", f"data.root={data}"),
        *("scheduler=constant", f"trainer.max_epochs={epochs}", *words),
    ]


def rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def state(run: Path, key: str = "state_dict") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")[key]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_classifier_learns_from_a_checkpoint_and_scores_as_ever(tmp_path: Path, images: Path, classifier: Path):
    run = tmp_path / "run"
    trainer = train(compose(run, "classification", *words_for(images, classifier)))
    teacher = trainer.lightning_module.distillation.teacher
    fresh = CheckpointTeacher(classifier)
    assert same(teacher.state_dict(), fresh.state_dict())
    (row,) = rows(run)
    mixed = 0.5 * float(row["train/loss_labels"]) + 0.5 * float(row["train/loss_distill"])
    assert float(row["train/loss"]) == pytest.approx(mixed, rel=1e-4)
    assert 0 <= float(row["val/top1"]) <= 1

    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    model, metadata = load_model(run / "checkpoints" / "last.ckpt")
    assert set(content["state_dict"]) == {f"model.{name}" for name in model.state_dict()}
    assert metadata.class_names == sorted(COLOURS)
    assert metadata.run["teacher"]["path"] == str(classifier)

    words = merge_overrides(words_for(images, classifier, "distill.labels=0.5"), [], TRAINING)
    assert words == [f"data.root={images}", "scheduler=constant"]
    words.append(f"checkpoint={run / 'checkpoints' / 'last.ckpt'}")
    assert evaluate(compose(tmp_path / "report", "classification", *words, name="evaluate"))["val/top1"] >= 0


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_the_ends_of_the_mixture(labels: float, tmp_path: Path, images: Path, classifier: Path):
    run = tmp_path / "run"
    words = words_for(images, classifier, f"distill.labels={labels}", "callbacks.ema=null")
    train(compose(run, "classification", *words))
    (row,) = rows(run)
    if labels == 0:
        assert "train/loss_labels" not in row
        assert row["train/loss"] == row["train/loss_distill"]
        return
    # Labels alone: step for step the run without a teacher, from the same initial weights.
    assert row["train/loss"] == row["train/loss_labels"]
    train(compose(tmp_path / "alone", "classification", *words[2:4], "trainer.max_epochs=1", "callbacks.ema=null"))
    assert same(state(run), state(tmp_path / "alone"))


def test_without_a_teacher_a_run_knows_nothing_of_one(tmp_path: Path, images: Path):
    run = tmp_path / "run"
    trainer = train(compose(run, "classification", f"data.root={images}", "trainer.max_epochs=1"))
    assert trainer.lightning_module.distillation is None
    assert trainer.datamodule.teacher_view is None
    assert not [name for name in rows(run)[0] if "distill" in name]


def test_a_cached_teacher_teaches_what_a_live_one_does(tmp_path: Path, images: Path, classifier: Path):
    words = words_for(images, classifier, "distill.labels=0", epochs=2)
    train(compose(tmp_path / "live", "classification", *words))
    cache = [f"teacher.cache_dir={tmp_path / 'cache'}", "teacher.cache=true", "teacher.views=2"]
    train(compose(tmp_path / "cached", "classification", *words, *cache))
    live, cached = rows(tmp_path / "live"), rows(tmp_path / "cached")
    assert [row["train/loss_distill"] for row in live] == [row["train/loss_distill"] for row in cached]
    assert same(state(tmp_path / "live"), state(tmp_path / "cached"))
    assert list((tmp_path / "cache").iterdir())


def test_feature_regression_resumes_with_its_adapters(tmp_path: Path, images: Path, classifier: Path):
    extra = ["distill.features=[16,32]", "backbone.out_strides=[16,32]", "head.dropout=0", "optimizer=adamw"]
    extra += ["backbone.resolution=32"]
    words = [words_for(images, classifier, *extra, epochs=epochs) for epochs in (1, 2)]
    train(compose(tmp_path / "whole", "classification", *words[1]))
    train(compose(tmp_path / "halves", "classification", *words[0]))
    last = tmp_path / "halves" / "checkpoints" / "last.ckpt"
    adapters = {f"distillation.feature_targets.adapters.{s}.{p}" for s in (16, 32) for p in ("weight", "bias")}
    assert {name for name in state(tmp_path / "halves") if not name.startswith("model.")} == adapters
    assert not {name for name in state(tmp_path / "halves", "ema_state_dict") if "adapters" in name}
    train(compose(tmp_path / "halves", "classification", *words[1], f"ckpt_path={last}"))
    assert same(state(tmp_path / "whole"), state(tmp_path / "halves"))

    line = line_of(
        train,
        compose(
            tmp_path / "less",
            "classification",
            *words[1][:-1],
            f"ckpt_path={last}",
            "distill.features=[32]",
            "backbone.out_strides=[16,32]",
        ),
    )
    assert "distillation.feature_targets.adapters.16" in line
    alone = [f"data.root={images}", "backbone.out_strides=[16,32]", "trainer.max_epochs=3"]
    assert "absent here" in line_of(train, compose(tmp_path / "alone", "classification", *alone, f"ckpt_path={last}"))
    train(compose(tmp_path / "plain", "classification", *alone[:2], "trainer.max_epochs=1"))
    plain = tmp_path / "plain" / "checkpoints" / "last.ckpt"
    line = line_of(train, compose(tmp_path / "more", "classification", *words[1], f"ckpt_path={plain}"))
    assert "was trained without distillation.feature_targets" in line


@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_a_detector_learns_from_a_checkpoint(labels: float, tmp_path: Path, coco: Path, detector: Path):
    run = tmp_path / "run"
    train(compose(run, "ssd_coco", *words_for(coco, detector, f"distill.labels={labels}")))
    (row,) = rows(run)
    assert float(row["train/loss_distill"]) > 0
    assert ("train/loss_cls" in row) == (labels > 0)
    assert "val/AP" in row
    model, _ = load_model(run / "checkpoints" / "last.ckpt")
    assert set(state(run)) == {f"model.{name}" for name in model.state_dict()}


@pytest.mark.parametrize("cached", [False, True])
def test_a_detector_learns_from_pseudo_labels(cached: bool, tmp_path: Path, coco: Path, detector: Path):
    run = tmp_path / "run"
    words = words_for(coco, detector, "distill=pseudo_labels", "distill.criterion.score_threshold=0.2")
    words += ["distill.criterion.ignore_threshold=0.1"]
    if cached:
        words += ["teacher.cache=true", f"teacher.cache_dir={tmp_path / 'cache'}", "teacher.views=1"]
    train(compose(run, "ssd_coco", *words))
    assert float(rows(run)[0]["train/loss_distill"]) > 0


def test_feature_maps_of_a_classifier_teach_a_detector(tmp_path: Path, coco: Path, classifier: Path):
    words = words_for(coco, classifier, "distill.criterion=null", "distill.features=[16,32]", "distill.labels=0.7")
    train(compose(tmp_path / "run", "ssd_coco", *words))
    (row,) = rows(tmp_path / "run")
    mixed = 0.7 * float(row["train/loss_labels"]) + 0.3 * float(row["train/loss_distill"])
    assert float(row["train/loss"]) == pytest.approx(mixed, rel=1e-4)


def test_precomputed_outputs_are_looked_up_by_picture(tmp_path: Path, images: Path):
    names = sorted(path.relative_to(images).as_posix() for path in (images / "train").rglob("*.[jJ][pP][gG]"))
    logits = np.random.default_rng(0).normal(size=(len(names), 3)).astype(np.float32)
    np.savez(tmp_path / "logits.npz", logits=logits, files=np.array(names))
    (tmp_path / "logits.npz.labels.txt").write_text("\n".join(COLOURS))
    words = ["teacher=outputs", f"teacher.path={tmp_path / 'logits.npz'}", f"data.root={images}", "distill.labels=0"]
    words += [f"teacher.class_names={tmp_path / 'logits.npz.labels.txt'}", "trainer.max_epochs=1"]
    trainer = train(compose(tmp_path / "run", "classification", *words))
    batch = next(iter(trainer.datamodule.train_dataloader()))
    source = trainer.datamodule.source("train")
    for index, row in zip(batch["indices"].tolist(), batch["teacher_outputs"]["logits"]):
        place = names.index(source.path(index).relative_to(images).as_posix())
        assert np.array_equal(row.numpy(), logits[place].astype(np.float16))
    np.savez(tmp_path / "logits.npz", logits=logits[1:], files=np.array(names[1:]))
    assert "no outputs for 1 of 12 pictures" in line_of(train, compose(tmp_path / "lacking", "classification", *words))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["distill.labels=2"], "distill.labels=2"),
        (["distill.weight=-1"], "distill.weight=-1"),
        (["distill.temperature=0"], "distill.temperature=0"),
        (["distill.features=[16]"], "add backbone.out_strides=[16,32]"),
        (["distill.features=[5]"], "teacher.features=[5]"),
        (["distill=embedding"], "not embedding"),
        (["teacher.path=nowhere.ckpt"], "nowhere.ckpt"),
        (["teacher.cache=true", "teacher.views=null"], "give teacher.views"),
        (["teacher.cache=true", "teacher.views=0"], "teacher.views=0"),
    ],
)
def test_wrong_settings_end_in_one_line(words: list[str], text: str, tmp_path: Path, images: Path, classifier: Path):
    cache = f"teacher.cache_dir={tmp_path / 'cache'}"
    line = line_of(train, compose(tmp_path / "run", "classification", *words_for(images, classifier, cache, *words)))
    assert text in line


def test_a_teacher_of_other_classes_or_boxes_is_refused(tmp_path: Path, images: Path, coco: Path, detector: Path):
    other = tmp_path / "other.ckpt"
    save_classifier(other)
    line = line_of(train, compose(tmp_path / "a", "classification", *words_for(images, other)))
    assert "3 classes" in line
    assert "lacks 3 of them: blue, green, red" in line
    words = words_for(coco, detector, "backbone.resolution=64")
    line = line_of(train, compose(tmp_path / "b", "ssd_coco", *words))
    own, theirs = (len(CheckpointTeacher(detector, side).spec.default_boxes) for side in (64, 96))
    assert f"has {theirs} default boxes" in line
    assert f"{own} at 64 x 64 px" in line
    line = line_of(train, compose(tmp_path / "c", "classification", *words_for(images, detector)))
    assert "not logits" in line


@pytest.mark.parametrize("cached", [False, True])
def test_a_plain_folder_is_enough_to_learn_from_a_classifier(
    cached: bool, tmp_path: Path, images: Path, classifier: Path
):
    run = tmp_path / "run"
    words = words_for(images, classifier, "data=unlabelled", "data.val_fraction=0.3")
    if cached:
        words += ["teacher.cache=true", f"teacher.cache_dir={tmp_path / 'cache'}", "teacher.views=1"]
    train(compose(run, "classification", *words))
    (row,) = rows(run)
    assert float(row["val/distill"]) > 0
    assert "val/top1" not in row
    assert json.loads((run / "metrics.json").read_text())["monitor"] == "val/distill"
    _, metadata = load_model(run / "checkpoints" / "best.ckpt")
    assert metadata.class_names == COLOURS
    line = line_of(train, compose(tmp_path / "mixed", "classification", *words, "distill.labels=0.5"))
    assert "distill.labels=0.5, but the data have no labels: set distill.labels=0" in line
    words = [f"data.root={images}", "data=unlabelled", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"]
    assert "no labels to score against" in line_of(
        evaluate, compose(tmp_path / "report", "classification", *words, name="evaluate")
    )


@pytest.mark.parametrize("criterion", ["ssd", "pseudo_labels"])
def test_a_plain_folder_is_enough_to_learn_from_a_detector(
    criterion: str, tmp_path: Path, images: Path, detector: Path
):
    words = words_for(images, detector, "data=unlabelled", f"distill={criterion}", "distill.labels=0")
    train(compose(tmp_path / "run", "ssd_coco", *words, "data.val_fraction=0.3"))
    (row,) = rows(tmp_path / "run")
    assert float(row["val/distill"]) > 0
    assert not [name for name in row if name.startswith("val/A")]
    model, metadata = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert metadata.class_names == OBJECTS
    assert len(metadata.category_ids) == model.head.num_classes == 3


def test_a_plain_folder_without_a_teacher_has_nothing_to_learn(tmp_path: Path, images: Path):
    line = line_of(train, compose(tmp_path, "classification", "data=unlabelled", f"data.root={images}"))
    assert "give teacher=" in line


def test_a_teacher_of_timm_needs_nothing_but_the_command_line(tmp_path: Path, images: Path):
    import timm

    torch.manual_seed(0)
    weights = timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    words = ["teacher=timm", "teacher.name=mobilenetv3_small_050", f"teacher.pretrained={tmp_path / 'weights.pth'}"]
    words += [f"teacher.class_names={tmp_path / 'names.txt'}", f"data.root={images}", "trainer.max_epochs=1"]
    words += ["distill.features=[32]", "teacher.resolution=64"]
    train(compose(tmp_path / "run", "classification", *words))
    assert float(rows(tmp_path / "run")[0]["train/loss_distill"]) > 0
    line = line_of(train, compose(tmp_path / "nameless", "classification", words[0], words[4]))
    assert line == "teacher.name must be given: add teacher.name=..."
