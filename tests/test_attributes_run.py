"""Whole runs of face attributes on tiny pictures: training, thresholds, evaluation, report, resumption, refusals."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from omegaconf import OmegaConf
from sklearn.metrics import average_precision_score

import mnvision
from mnvision.checkpoints import load_model, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.prediction.pictures import write_picture
from tools import cli
from tools.run import evaluate, train

NAMES = ("Reddish", "Bright", "Rare")
RUN = ["task.threshold_by=accuracy", "loss.positive_weights=balanced", "scheduler=constant"]
SPLITS = {"train": 16, "val": 10, "test": 12}


def make_faces(root: Path, names: Sequence[str] = NAMES, seed: int = 0) -> Path:
    """CelebA's layout; colour and light of a picture are its first two attributes, the third is hardly ever there."""
    rng, lines, parts = np.random.default_rng(seed), [], []
    for split, count in enumerate(SPLITS.values()):
        for number in range(count):
            name = f"{len(lines) + 1:06d}.jpg"
            red, bright = bool(rng.integers(2)), bool(rng.integers(2))
            level = 190 if bright else 60
            pixels = rng.integers(level - 40, level + 40, (44, 36, 3)).astype(np.uint8)
            pixels[..., 1:] //= 3 if red else 1
            write_picture(root / "img_align_celeba" / name, pixels)
            labels = [red, bright, number == 0][: len(names)]
            lines.append(f"{name} {' '.join('1' if label else '-1' for label in labels)}")
            parts.append(f"{name} {split}")
    (root / "list_attr_celeba.txt").write_text("\n".join([str(len(lines)), " ".join(names), *lines]) + "\n")
    (root / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return root


def compose(folder: Path, data: Path, *words: str, name: str = "config") -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    small = [
        *("backbone.alpha=0.25", "backbone.resolution=32", "data.batch_size=4", "data.num_workers=0"),
        *("trainer.accelerator=cpu", "logger=none", "callbacks.ema.decay=0.5", "optimizer=adamw", "optimizer.lr=0.005"),
    ]
    paths = [f"data.root={data}", f"paths.output_dir={folder}"]
    return cli.compose_config(name, ["task=face_attributes", *small, *paths, *words])


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(compose(folder, faces, "trainer.max_epochs=2", *RUN))
    return folder


def truth(faces: Path, split: str) -> tuple[list[str], np.ndarray]:
    lines = [line.split() for line in (faces / "list_attr_celeba.txt").read_text().splitlines()[2:]]
    start = {"train": 0, "val": 16, "test": 26}[split]
    chosen = lines[start : start + SPLITS[split]]
    return [name for name, *_ in chosen], np.array([[int(label) > 0 for label in labels] for _, *labels in chosen])


def test_a_run_scores_and_keeps_thresholds_with_its_weights(run: Path, faces: Path):
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    metadata = read_metadata(run / "checkpoints" / "last.ckpt")
    assert metadata.kind == "face_attributes"
    assert tuple(metadata.class_names) == NAMES
    assert metadata.calibration["by"] == "accuracy"
    labels = truth(faces, "train")[1]
    assert metadata.calibration["train_positive_share"] == pytest.approx(labels.mean(axis=0), abs=1e-6)

    # The thresholds are the best ones for the weights beside them, on the validation pictures.
    predictor = mnvision.load(run / "checkpoints" / "last.ckpt")
    names, labels = truth(faces, "val")
    results = predictor.predict([faces / "img_align_celeba" / name for name in names])
    probabilities = np.stack([result.probabilities for result in results]).astype(np.float64)
    for column, threshold in enumerate(metadata.calibration["thresholds"]):
        scores = probabilities[:, column]
        candidates = [((scores >= t) == labels[:, column]).mean() for t in [*scores, 2.0]]
        assert ((scores >= threshold) == labels[:, column]).mean() == max(candidates)
    assert float(rows[-1]["val/mAP"]) == pytest.approx(
        np.mean([average_precision_score(labels[:, column], probabilities[:, column]) for column in range(3)])
    )
    assert float(rows[-1]["val/accuracy"]) == pytest.approx(
        np.mean([(result.probabilities >= result.thresholds) == row for result, row in zip(results, labels)])
    )


def test_test_pictures_are_judged_by_the_stored_thresholds(run: Path, faces: Path, tmp_path: Path):
    checkpoint = run / "checkpoints" / "last.ckpt"
    stored = read_metadata(checkpoint).calibration
    metrics = evaluate(compose(tmp_path, faces, f"checkpoint={checkpoint}", "split=test", name="evaluate"))
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["mAP"] == pytest.approx(metrics["val/mAP"])
    assert (report["num_samples"], report["majority_of"], report["thresholds"]) == (12, "training set", "calibrated")
    rows = list(csv.DictReader((tmp_path / "per_attribute.csv").read_text().splitlines()))
    assert [row["attribute"] for row in rows] == list(NAMES)
    assert [float(row["threshold"]) for row in rows] == stored["thresholds"]
    _, labels = truth(faces, "test")
    assert [int(row["positives"]) for row in rows] == labels.sum(axis=0).tolist()
    assert [int(row["n"]) for row in rows] == [12, 12, 12]
    majority = [(labels[:, i] == (share >= 0.5)).mean() for i, share in enumerate(stored["train_positive_share"])]
    assert [float(row["majority"]) for row in rows] == pytest.approx(majority)
    for name in ("reliability", "average_precision"):
        assert cv2.imread(str(tmp_path / "figures" / f"{name}.png")).std() > 5
    assert read_metadata(checkpoint).calibration == stored


def test_only_shared_attributes_are_scored(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    other = make_faces(tmp_path / "other", ["Bright", "Reddish", "Wet"])
    checkpoint = run / "checkpoints" / "last.ckpt"
    with caplog.at_level(logging.WARNING, "mnvision"):
        evaluate(compose(tmp_path / "report", other, f"checkpoint={checkpoint}", name="evaluate"))
    assert "does not know 1 attributes of the data, which are not scored: Wet" in caplog.text
    assert "lack 1 attributes of the model, which are not scored: Rare" in caplog.text
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    # In the other set the first column, red or not, is called Bright.
    assert list(report["per_attribute"]) == ["Reddish", "Bright"]
    assert report["per_attribute"]["Bright"]["positives"] == truth(other, "val")[1][:, 0].sum()

    strange = make_faces(tmp_path / "strange", ["Wet", "Cold", "Loud"])
    with pytest.raises(UserError, match=r"none of the model's attributes \(Reddish, Bright, Rare\)"):
        evaluate(compose(tmp_path / "none", strange, f"checkpoint={checkpoint}", name="evaluate"))


def test_a_resumed_run_goes_on_as_the_whole_one(run: Path, faces: Path, tmp_path: Path):
    halves = tmp_path / "halves"
    train(compose(halves, faces, "trainer.max_epochs=1", *RUN))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, faces, "trainer.max_epochs=2", *RUN, f"ckpt_path={last}"))
    one, two = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (run, halves))
    assert all((one["ema_state_dict"][key] == value).all() for key, value in two["ema_state_dict"].items())
    assert one["mnvision"]["calibration"] == two["mnvision"]["calibration"]

    other = make_faces(tmp_path / "other", ["Bright", "Reddish", "Rare"])
    with pytest.raises(UserError, match="the same in another order"):
        train(compose(tmp_path / "run", other, "trainer.max_epochs=3", f"ckpt_path={last}"))


def test_unknown_labels_are_masked_and_a_split_without_any_is_refused(tmp_path: Path):
    rng = np.random.default_rng(0)
    lines = {"train": ["file,A,B"], "val": ["file,A,B"]}
    for number in range(12):
        name = f"{number}.png"
        write_picture(tmp_path / name, rng.integers(0, 256, (40, 40, 3)).astype(np.uint8))
        lines["train" if number < 8 else "val"].append(f"{name},{number % 2},{'' if number % 3 else 1}")
    for split, text in lines.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(text) + "\n")
    words = ["data=attributes_csv", "data.labels=train.csv", "data.val_labels=val.csv", "trainer.max_epochs=1"]
    train(compose(tmp_path / "run", tmp_path, *words))
    row = next(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert 0 <= float(row["val/mAP"]) <= 1
    metadata = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")[1]
    assert metadata.calibration["train_positive_share"] == [0.5, 1.0]
    assert metadata.calibration["thresholds"][1] == 0.5

    (tmp_path / "val.csv").write_text("file,A,B\n9.png,,\n10.png,,\n")
    with pytest.raises(UserError, match=r"val.csv.*: not one label is known"):
        train(compose(tmp_path / "refused", tmp_path, *words))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["task.threshold_by=luck"], "task.threshold_by=luck: choose one of balanced_accuracy, accuracy, f1"),
        (["loss.positive_weights=equal"], "loss.positive_weights=equal"),
        (["loss.positive_weights={Bold: 2.0}"], "no attribute 'Bold'; theirs are Reddish, Bright, Rare"),
        (["head.num_classes=4"], "head.num_classes=4, but the data have 3 classes"),
        (["head.dropout=1"], "head.dropout=1"),
        (["data.attributes=[Bright,Dull]"], "has no attribute Dull"),
    ],
)
def test_wrong_values_end_in_one_line(words: list[str], text: str, faces: Path, tmp_path: Path):
    with pytest.raises(Exception, match=r".") as caught:
        train(compose(tmp_path / "run", faces, "trainer.max_epochs=1", *words))
    line = cli.message_for_user(caught.value)
    assert line is not None
    assert text in line
    assert "\n" not in line


def test_a_dead_attribute_is_named(faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "mnvision"):
        train(compose(tmp_path / "run", faces, "trainer.max_epochs=1", "optimizer.lr=1e-9", "callbacks.ema=null"))
    assert "3 dead attributes, answered alike for all pictures: Reddish, Bright, Rare" in caplog.text
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").task.threshold_by == "balanced_accuracy"
