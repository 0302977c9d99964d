"""Runs that are unusual but no mistake: short ones, ones without validation, finished ones, sets to evaluate only."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_harm import (
    compose,
    remove_images,
)
from tools.run import evaluate, train


def test_a_run_that_ends_before_its_first_validation_is_kept(tmp_path: Path):
    """``trainer.max_steps`` below an epoch: there is no score, which is no error, and a checkpoint to resume."""
    make_tiny_coco(tmp_path / "data")
    run, words = tmp_path / "run", [f"data.root={tmp_path / 'data'}", "data.batch_size=2", "scheduler=constant"]
    assert train(compose(run, "ssd_coco", *words, "trainer.max_steps=1")).global_step == 1
    last = run / "checkpoints" / "last.ckpt"
    words += ["trainer.max_epochs=2", f"ckpt_path={last}"]  # the cut epoch counts
    assert train(compose(run, "ssd_coco", *words)).global_step == 1 + 3


@pytest.mark.parametrize("words", [["trainer.limit_val_batches=0"], ["trainer.check_val_every_n_epoch=2"]])
def test_training_without_validation_is_no_error(words: list[str], tmp_path: Path):
    make_image_folder(tmp_path / "data")
    words = [f"data.root={tmp_path / 'data'}", "scheduler=constant", "trainer.max_epochs=1", *words]
    train(compose(tmp_path / "run", "classification", *words))
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_resuming_a_finished_run_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    make_image_folder(tmp_path / "data")
    run = tmp_path / "run"
    words = [f"data.root={tmp_path / 'data'}", "scheduler=constant", "trainer.max_epochs=1"]
    train(compose(run, "classification", *words))
    assert "nothing was left" not in caplog.text
    with caplog.at_level(logging.INFO, "mnvision"):
        train(compose(run, "classification", *words, f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"))
    assert "nothing was left to train: 1 epochs are done" in caplog.text


def test_a_classifier_is_evaluated_on_a_set_without_training_pictures(tmp_path: Path):
    make_image_folder(tmp_path / "data")
    train(compose(tmp_path / "run", "classification", f"data.root={tmp_path / 'data'}", "trainer.max_epochs=1"))
    remove_images(tmp_path / "data")
    words = [f"data.root={tmp_path / 'data'}", f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}"]
    assert "val/top1" in evaluate(compose(tmp_path / "all", "classification", *words, name="evaluate"))
    # Without the first class by name, labels of the folder are no longer those of the model.
    for path in (tmp_path / "data" / "val" / "blue").iterdir():
        path.unlink()
    (tmp_path / "data" / "val" / "blue").rmdir()
    evaluate(compose(tmp_path / "some", "classification", *words, name="evaluate"))
    per_class = (tmp_path / "some" / "per_class.csv").read_text()
    whole = (tmp_path / "all" / "per_class.csv").read_text()
    assert [row for row in per_class.splitlines() if not row.startswith("blue")] == [
        row for row in whole.splitlines() if not row.startswith("blue")
    ]
