"""Whole runs on tiny data: what they write, that they resume exactly, and that a checkpoint alone is enough."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mnvision.checkpoints import load_model, read_checkpoint
from mnvision.errors import UserError
from tests.builders import make_image_folder, make_tiny_coco, make_tiny_voc
from tests.builders_faces import make_tiny_celeba
from tests.builders_fine_grained import make_dogs
from tests.builders_identities import make_people
from tests.builders_places import make_places
from tools import cli
from tools.run import evaluate, train

ROOT = Path(__file__).parents[1]
SMALL = [
    "backbone.alpha=0.25",
    "backbone.resolution=96",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "logger=none",
]
# Several heads have data sets of their own: tests/test_multitask_run.py.
TASKS = sorted(path.stem for path in (cli.CONF / "task").glob("*.yaml") if path.stem != "multitask")


def compose(folder: Path, *words: str, name: str = "config"):
    folder.mkdir(parents=True, exist_ok=True)
    return cli.compose_config(name, [*words[:1], *SMALL, f"paths.output_dir={folder}", *words[1:]])


@pytest.fixture(scope="session")
def shapes_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def shapes_words(cache: Path, epochs: int) -> list[str]:
    return [
        "data=shapes",
        f"data.root={cache}",
        "data.num_train=16",
        "data.num_val=9",
        f"trainer.max_epochs={epochs}",
        "scheduler=constant",
    ]


def read_rows(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def make_data(task: str, root: Path) -> None:
    if task == "ssd_voc":
        make_tiny_voc(root)
    elif "ssd" in task or "faster_rcnn" in task:
        make_tiny_coco(root)
    elif task == "face_attributes":
        make_tiny_celeba(root)
    elif task == "face_embeddings":
        make_people(root, {f"Person_{i}": 2 for i in range(60)})
    elif task == "geolocation":
        make_places(root)
    elif task == "fine_grained":
        make_dogs(root)
    else:
        make_image_folder(root)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_one_batch_on_data_in_its_own_layout(task: str, tmp_path: Path):
    make_data(task, tmp_path / "data")
    aligned = ["data.points=arcface"] if task == "face_embeddings" else []
    cfg = compose(tmp_path / "run", f"task={task}", f"data.root={tmp_path / 'data'}", "debug=fast", *aligned)
    trainer = train(cfg)
    assert trainer.global_step == 1
    assert all(p.isfinite().all() for p in trainer.lightning_module.parameters())


def test_a_run_leaves_its_folder_and_a_checkpoint_that_is_enough(tmp_path: Path, shapes_cache: Path):
    run = tmp_path / "run"
    train(compose(run, "task=ssd_coco", *shapes_words(shapes_cache, 2)))
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert names >= {"config.yaml", "metrics.csv", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    rows = read_rows(run)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    summary = json.loads((run / "metrics.json").read_text())
    assert summary["last"]["epoch"] == 1
    assert OmegaConf.load(run / "config.yaml").backbone.resolution == 96

    model, metadata = load_model(run / "checkpoints" / "last.ckpt")
    assert len(metadata.class_names) == 12
    assert metadata.preprocess == {"resize": "stretch"}
    assert metadata.category_ids[-1] == 31
    assert model.resolution == (96, 96)

    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert content["ema_state_dict"].keys() == model.state_dict().keys()


def test_evaluation_of_a_checkpoint_gives_the_scores_of_its_training(tmp_path: Path, shapes_cache: Path):
    run, words = tmp_path / "run", shapes_words(shapes_cache, 1)
    trained = train(compose(run, "task=ssd_coco", *words, "decoder.score_threshold=0.0"))
    logged = {k: float(v) for k, v in trained.callback_metrics.items() if k.startswith("val/A")}
    checkpoint = run / "checkpoints" / "last.ckpt"
    words = [*words, "decoder.score_threshold=0.0", f"checkpoint={checkpoint}"]
    report = tmp_path / "report"
    again = evaluate(compose(report, "task=ssd_coco", *words, name="evaluate"))
    official = evaluate(
        compose(tmp_path / "official", "task=ssd_coco", *words, "task.evaluator=pycocotools", name="evaluate")
    )
    assert max(logged.values()) > 0
    for name, value in logged.items():
        assert again[name] == value
        assert official[name] == value
    assert (report / "detections.json").is_file()
    assert (report / "figures" / "precision_recall.png").stat().st_size > 10_000
    assert len(json.loads((report / "metrics.json").read_text())["per_class"]) == 12


def weights(run: Path, key: str = "state_dict") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")[key]


def test_half_a_run_and_its_resumption_equal_the_whole_run(tmp_path: Path, shapes_cache: Path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(compose(whole, "task=ssd_coco", *shapes_words(shapes_cache, 4)))
    train(compose(halves, "task=ssd_coco", *shapes_words(shapes_cache, 2)))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, "task=ssd_coco", *shapes_words(shapes_cache, 4), f"ckpt_path={last}"))
    for key in ("state_dict", "ema_state_dict"):
        one, two = weights(whole, key), weights(halves, key)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    raw, averaged = weights(whole), weights(whole, "ema_state_dict")
    assert not torch.equal(raw["model.backbone.stem.conv.weight"], averaged["backbone.stem.conv.weight"])
    rows = read_rows(halves)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    best = json.loads((halves / "metrics.json").read_text())["best"]
    assert all(isinstance(value, int | float) for value in best.values())


def test_a_resumed_run_draws_the_same_dropout(tmp_path: Path):
    make_image_folder(tmp_path / "images")
    words = ["task=classification", f"data.root={tmp_path / 'images'}", "head.dropout=0.5", "callbacks.ema=null"]
    words += ["backbone.alpha=0.25", "backbone.resolution=32", "data.num_workers=0", "data.batch_size=2"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    # A constant rate, so that a run of one epoch is the first half of a run of two.
    words += ["scheduler=constant"]
    train(compose(whole, *words, "trainer.max_epochs=2"))
    train(compose(halves, *words, "trainer.max_epochs=1"))
    last = halves / "checkpoints" / "last.ckpt"
    train(compose(halves, *words, "trainer.max_epochs=2", f"ckpt_path={last}"))
    one, two = weights(whole), weights(halves)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["backbone.alpha=-1"], "alpha"),
        (["backbone.alpha=0"], "alpha"),
        (["backbone.alpha=wide"], "alpha"),
        (["backbone.resolution=0"], "resolution"),
        (["head.num_classes=3"], "head.num_classes=3, but the data have 12 classes"),
        (["trainer.max_epochs=0", "scheduler=cosine"], "max_epochs"),
        (["data.batch_size=0"], "batch_size"),
        (["callbacks.ema.decay=2"], "decay"),
        (["backbone.pretrained=nowhere.h5"], "nowhere.h5"),
        (["ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["optimizer.lr=fast"], "the optimizer cannot be built"),
        (["trainer.accelerator=abacus"], "abacus"),
        (["optimizer.lr=1e30", "trainer.gradient_clip_val=null"], "the run has diverged; lower optimizer.lr"),
    ],
)
def test_wrong_values_end_in_one_line(words: list[str], text: str, tmp_path: Path, shapes_cache: Path):
    with pytest.raises(Exception, match=r".") as caught:
        train(compose(tmp_path / "run", "task=ssd_coco", *shapes_words(shapes_cache, 1), *words))
    line = cli.message_for_user(caught.value)
    assert line is not None
    assert text in line
    assert "\n" not in line


def test_a_checkpoint_of_another_task_or_model_is_refused(tmp_path: Path, shapes_cache: Path):
    run = tmp_path / "run"
    train(compose(run, "task=ssd_coco", *shapes_words(shapes_cache, 1)))
    last = run / "checkpoints" / "last.ckpt"
    make_image_folder(tmp_path / "images")
    with pytest.raises(UserError, match="detection run cannot resume a classification run"):
        train(
            compose(tmp_path / "other", "task=classification", f"data.root={tmp_path / 'images'}", f"ckpt_path={last}")
        )
    words = [*shapes_words(shapes_cache, 2), "head=ssdlite", f"ckpt_path={last}"]
    other = compose(tmp_path / "lite", "task=ssd_coco", *words)
    with pytest.raises(UserError, match="trained with another model"):
        train(other)


def test_two_processes_score_as_one_and_leave_one_run_folder(tmp_path: Path, shapes_cache: Path):
    """9 pictures on 2 processes: an even split would have to repeat one of them."""
    run = tmp_path / "run"
    train(compose(run, "task=ssd_coco", *shapes_words(shapes_cache, 1)))
    checkpoint = run / "checkpoints" / "last.ckpt"
    words = [*SMALL, *shapes_words(shapes_cache, 1)[:4], f"checkpoint={checkpoint}", "decoder.score_threshold=0.001"]
    scores = []
    for processes in (1, 2):
        folder = tmp_path / f"processes{processes}"
        command = [sys.executable, "tools/evaluate.py", "task=ssd_coco", *words, f"hydra.run.dir={folder}"]
        ddp = [f"trainer.devices={processes}", "trainer.strategy=ddp"] if processes > 1 else []
        done = subprocess.run([*command, *ddp], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        scores.append(json.loads((folder / "metrics.json").read_text()))
    assert scores[0]["num_images"] == scores[1]["num_images"] == 9
    assert scores[0] == scores[1]
    assert scores[0]["num_detections"] > 0


def test_training_in_two_processes_writes_one_run_folder(tmp_path: Path, shapes_cache: Path):
    runs = tmp_path / "runs"
    done = subprocess.run(
        [
            *(sys.executable, "tools/train.py", "task=ssd_coco", *SMALL, *shapes_words(shapes_cache, 1)),
            *("trainer.devices=2", "trainer.strategy=ddp", "callbacks.progress=null"),
        ],
        cwd=ROOT,
        env={**os.environ, "MNVISION_RUNS": str(runs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folders = list((runs / "ssd_coco").iterdir())
    assert len(folders) == 1
    assert re.search(r"run folder: \S+", done.stdout)
    assert len(read_rows(folders[0])) == 1
    assert (folders[0] / "checkpoints" / "best.ckpt").is_file()
