"""Whole runs of geolocation on tiny pictures: training, evaluation elsewhere, teachers, resumption, refusals."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import mnvision
from mnvision.checkpoints import load_model, read_checkpoint, read_metadata
from mnvision.errors import UserError
from mnvision.geo.partition import Partition
from tests.builders_places import CELLS, NOWHERE, make_places
from tools import cli
from tools.run import evaluate, train

RADIUS = 6371.0088
RUN = ["trainer.max_epochs=2", CELLS, "scheduler=constant"]


def compose(folder: Path, data: Path, *words: str, name: str = "config") -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    small = [
        *("backbone.alpha=0.25", "backbone.resolution=32", "data.batch_size=8", "data.num_workers=0"),
        *("trainer.accelerator=cpu", "logger=none", "callbacks.ema.decay=0.5", "optimizer=adamw", "optimizer.lr=0.01"),
        *("backbone.bn_momentum=0.3", f"paths.output_dir={folder}"),
    ]
    table = [] if "data=unlabelled" in words else ["data.val_table=val.csv"]
    return cli.compose_config(name, ["task=geolocation", *small, f"data.root={data}", *table, *words])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def run(places: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(compose(folder, places, *RUN))
    return folder


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def km(a: Any, b: Any) -> float:
    """By the chord through the earth: another way than the library's."""
    ends = []
    for latitude, longitude in (a, b):
        phi, theta = math.radians(float(latitude)), math.radians(float(longitude))
        ends.append(np.array([math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)]))
    return 2 * RADIUS * math.asin(min(float(np.linalg.norm(ends[0] - ends[1])) / 2, 1.0))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_run_stores_its_cells_with_its_weights(checkpoint: Path, places: Path):
    metadata = read_metadata(checkpoint)
    assert metadata.kind == "geolocation"
    partition = Partition.from_dict(metadata.calibration["partition"])
    assert partition.names == metadata.class_names
    assert len(partition) == 4  # two of them meet at the date line
    assert partition.num_photos == 24
    truth = np.array([[float(row["lat"]), float(row["lon"])] for row in rows_of(places / "train.csv")])
    labels = partition.labels(truth[:, 0], truth[:, 1])
    assert np.bincount(labels[labels >= 0], minlength=4).tolist() == partition.counts.tolist()
    model, _ = load_model(checkpoint)
    assert model.head.num_classes == 4


def test_evaluation_repeats_the_scores_and_writes_a_row_per_photo(
    run: Path, checkpoint: Path, places: Path, tmp_path: Path
):
    metrics = evaluate(compose(tmp_path, places, CELLS, f"checkpoint={checkpoint}", name="evaluate"))
    logged = rows_of(run / "metrics.csv")[-1]
    for name in ("median_km", "mean_km", "within_200km", "top1", "loss"):
        assert metrics[f"val/{name}"] == pytest.approx(float(logged[f"val/{name}"]), rel=1e-5), name
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert (report["num_samples"], report["num_outside"], report["num_repeated"]) == (13, 1, 0)
    assert "1 pictures outside every cell" in report["notes"][0]

    rows, truth = rows_of(tmp_path / "per_photo.csv"), rows_of(places / "val.csv")
    assert [row["path"] for row in rows] == [row["image"] for row in truth]
    predictor = mnvision.load(checkpoint)
    distances = []
    for row, given in zip(rows, truth):
        result = predictor.predict(places / row["path"])
        assert row["cell"] == result.top(1)[0].name
        assert float(row["probability"]) == pytest.approx(result.probability, abs=1e-4)
        placed = (row["predicted_latitude"], row["predicted_longitude"])
        assert [float(value) for value in placed] == [result.latitude, result.longitude]
        distances.append(km(placed, (given["lat"], given["lon"])))
        assert float(row["km"]) == pytest.approx(distances[-1], abs=0.01)
    assert report["median_km"] == pytest.approx(np.median(distances), abs=0.01)
    for radius in (1, 25, 200, 750, 2500):
        assert report[f"within_{radius}km"] == np.mean(np.array(distances) <= radius)
    assert [row["true_cell"] for row in rows].count("") == 1
    assert rows[-1]["true_cell"] == ""
    for name in ("errors", "map"):
        assert cv2.imread(str(tmp_path / "figures" / f"{name}.png")).std() > 5


def test_another_table_is_judged_by_the_models_own_cells(checkpoint: Path, tmp_path: Path):
    """The other set has no training photos to make cells from, and places of its own."""
    other = make_places(tmp_path / "other", val=3, seed=5)
    (other / "train.csv").unlink()
    evaluate(compose(tmp_path / "report", other, f"checkpoint={checkpoint}", name="evaluate"))
    rows = rows_of(tmp_path / "report" / "per_photo.csv")
    names = read_metadata(checkpoint).class_names
    assert len(rows) == 10
    assert {row["cell"] for row in rows} <= set(names)
    assert {row["true_cell"] for row in rows} <= {*names, ""}
    partition = Partition.from_dict(read_metadata(checkpoint).calibration["partition"])
    labels = partition.labels([float(row["latitude"]) for row in rows], [float(row["longitude"]) for row in rows])
    assert [row["true_cell"] for row in rows] == ["" if label < 0 else names[label] for label in labels]
    assert (rows[-1]["latitude"], rows[-1]["longitude"]) == tuple(map(str, NOWHERE))


def test_hierarchical_decoding_can_be_asked_of_a_trained_checkpoint(checkpoint: Path, places: Path, tmp_path: Path):
    words = [CELLS, f"checkpoint={checkpoint}", "decoder.hierarchical=true"]
    cfg = compose(tmp_path, places, *words, name="evaluate")
    metrics = evaluate(cfg, ["decoder.hierarchical=true"])
    assert metrics["val/median_km"] >= 0
    partition = Partition.from_dict(read_metadata(checkpoint).calibration["partition"])
    model, _ = load_model(
        checkpoint,
        read_metadata(checkpoint).model
        | {"decoder": {"_target_": "mnvision.heads.cells.CellScores", "hierarchical": True}},
    )
    model.decoder.fit_to(partition)
    images = torch.from_numpy(np.stack([cv2.imread(str(places / f"val/{i}.jpg"))[:32, :32] for i in range(3)]))
    chosen = model.decoder.choose(model.predict(images.permute(0, 3, 1, 2)))
    assert ((chosen >= 0) & (chosen < 4)).all()


def test_the_smoothed_loss_and_a_partition_file(places: Path, tmp_path: Path, checkpoint: Path):
    partition = Partition.from_dict(read_metadata(checkpoint).calibration["partition"])
    partition.save(tmp_path / "cells.npz")
    words = [
        "loss=distance_smoothed",
        "loss.tau=500",
        f"data.partition={tmp_path / 'cells.npz'}",
        "trainer.max_epochs=1",
    ]
    trainer = train(compose(tmp_path / "run", places, *words))
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))
    stored = read_metadata(tmp_path / "run" / "checkpoints" / "last.ckpt").calibration["partition"]
    assert Partition.from_dict(stored).fingerprint == partition.fingerprint


def test_a_resumed_run_goes_on_as_the_whole_one_and_keeps_its_cells(
    run: Path, checkpoint: Path, places: Path, tmp_path: Path
):
    halves = tmp_path / "halves"
    train(compose(halves, places, *RUN, "trainer.max_epochs=1"))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, places, *RUN, f"ckpt_path={last}"))
    one, two = read_checkpoint(checkpoint), read_checkpoint(last)
    assert all(torch.equal(one["ema_state_dict"][key], value) for key, value in two["ema_state_dict"].items())
    assert one["mnvision"]["calibration"] == two["mnvision"]["calibration"]
    other = make_places(tmp_path / "other", train=9, seed=3)
    moved = (other / "train.csv").read_text().replace(",48.", ",38.").replace(",49.", ",39.")
    (other / "train.csv").write_text(moved)
    with pytest.raises(UserError, match=r"trained on the 4 cells .*give the same data.partition"):
        train(compose(tmp_path / "run", other, *RUN, f"ckpt_path={checkpoint}"))


TEACHER = ["teacher=checkpoint", "trainer.max_epochs=1", "backbone.alpha=0.25"]


def test_a_student_learns_from_a_geolocation_checkpoint(checkpoint: Path, places: Path, tmp_path: Path):
    words = [*TEACHER, f"teacher.path={checkpoint}"]
    trainer = train(compose(tmp_path / "mixed", places, CELLS, *words, "distill.labels=0.3"))
    assert {"train/loss_labels", "train/loss_distill"} <= set(trainer.callback_metrics)
    stored = ["teacher.cache=true", "teacher.views=1", f"teacher.cache_dir={tmp_path / 'cache'}"]
    train(compose(tmp_path / "cached", places, CELLS, *words, *stored))
    # Pictures without places learn the teacher's cells, and say so.
    unlabelled = compose(tmp_path / "alone", places, "data=unlabelled", *words)
    assert "val/distill" in train(unlabelled).callback_metrics
    student = tmp_path / "alone" / "checkpoints" / "last.ckpt"
    assert read_metadata(student).calibration["partition"] == read_metadata(checkpoint).calibration["partition"]
    assert len(mnvision.load(student).cells) == 4


def test_a_teacher_of_other_cells_is_refused_by_name(checkpoint: Path, places: Path, tmp_path: Path):
    words = [*TEACHER, f"teacher.path={checkpoint}", "data.cells={max_photos: 20, min_photos: 2, min_level: 4}"]
    with pytest.raises(UserError) as caught:
        train(compose(tmp_path / "run", places, *words))
    known = read_metadata(checkpoint).class_names
    assert "the teacher lacks" in str(caught.value)
    assert known[0] in str(caught.value)


def test_a_teacher_is_scored_as_the_checkpoint_that_it_is(checkpoint: Path, places: Path, tmp_path: Path):
    own = evaluate(compose(tmp_path / "own", places, CELLS, f"checkpoint={checkpoint}", name="evaluate"))
    words = ["teacher=checkpoint", f"teacher.path={checkpoint}"]
    taught = evaluate(compose(tmp_path / "taught", places, *words, name="evaluate"))
    assert taught == pytest.approx(own, rel=1e-5)


def test_rows_of_known_cells_start_from_another_checkpoint(checkpoint: Path, places: Path, tmp_path: Path, caplog):
    with caplog.at_level(logging.INFO, "mnvision"):
        words = [f"init_from={checkpoint}", "init_head=true", "fine_tuning.freeze=backbone"]
        train(compose(tmp_path / "run", places, CELLS, "trainer.max_epochs=1", *words))
    assert "head: 4 of 4 classes start from those of the same name" in caplog.text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data.partition=none.npz"], "partition not found: none.npz"),
        (["data.cells={max_photos: 20, min_photos: 30}"], "max_photos=20 is below min_photos=30"),
        (["decoder.hierarchical=maybe"], "decoder.hierarchical='maybe': give true or false"),
        (["loss=distance_smoothed", "loss.tau=0"], "loss.tau=0"),
        ([CELLS, "head.num_classes=9"], "head.num_classes=9, but the data have 4 classes"),
    ],
)
def test_wrong_values_end_in_one_line(words: list[str], text: str, places: Path, tmp_path: Path):
    with pytest.raises(Exception, match=r".") as caught:
        train(compose(tmp_path / "run", places, "trainer.max_epochs=1", *words))
    line = cli.message_for_user(caught.value)
    assert line is not None
    assert text in line
    assert "\n" not in line
