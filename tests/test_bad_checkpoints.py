"""Damaged and foreign checkpoints, full disks, and how the process ends: one line, nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mnvision.checkpoints import read_checkpoint
from mnvision.errors import UserError
from mnvision.files import whole_file
from mnvision.prediction.predictor import load_predictor
from tests.builders import make_image_folder, make_tiny_coco
from tests.builders_harm import (
    JPEG,
    ROOT,
    SMALL,
    compose,
    cut,
    line_of,
)
from tests.builders_models import save_classifier, save_detector
from tools.run import evaluate, train


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector and a classifier, as usable; and damaged or foreign files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_detector(folder / "detector.ckpt")
    save_classifier(folder / "classifier.ckpt")
    whole = (folder / "detector.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    middle = len(whole) // 2  # among the weights, which torch would read without a word
    (folder / "flipped.ckpt").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "text.ckpt").write_text("<html>not found</html>")
    (folder / "folder.ckpt").mkdir()
    torch.save({"weight": torch.zeros(2)}, folder / "weights.ckpt")
    torch.save(torch.zeros(2), folder / "tensor.ckpt")
    return folder


DAMAGED = {
    "cut.ckpt": "corrupt",
    "flipped.ckpt": "corrupt",
    "empty.ckpt": "corrupt",
    "text.ckpt": "corrupt",
    "folder.ckpt": "is a folder",
    "weights.ckpt": "not one of our checkpoints",
    "tensor.ckpt": "not a checkpoint",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("tool", ["evaluate", "predict", "resume"])
def test_a_checkpoint_that_is_none_is_refused_by_every_tool(tool: str, name: str, checkpoints: Path, tmp_path: Path):
    make_tiny_coco(tmp_path / "data")
    path, words = checkpoints / name, [f"data.root={tmp_path / 'data'}"]
    if tool == "evaluate":
        line = line_of(evaluate, compose(tmp_path, "ssd_coco", *words, f"checkpoint={path}", name="evaluate"))
    elif tool == "predict":
        line = line_of(lambda cfg: load_predictor(cfg.checkpoint), DictConfig({"checkpoint": str(path)}))
    else:
        line = line_of(train, compose(tmp_path, "ssd_coco", *words, f"ckpt_path={path}"))
    assert DAMAGED[name] in line
    assert name in line


def test_a_checkpoint_of_another_task_is_refused(checkpoints: Path, tmp_path: Path):
    make_tiny_coco(tmp_path / "coco")
    make_image_folder(tmp_path / "folder")
    coco, folder = f"data.root={tmp_path / 'coco'}", f"data.root={tmp_path / 'folder'}"
    detector, classifier = checkpoints / "detector.ckpt", checkpoints / "classifier.ckpt"

    cfg = compose(tmp_path, "classification", folder, f"checkpoint={detector}", name="evaluate")
    line = line_of(evaluate, cfg)
    assert "detector.ckpt is a detection model, but this task is classification" in line
    cfg = compose(tmp_path, "ssd_coco", coco, f"checkpoint={classifier}", name="evaluate")
    line = line_of(evaluate, cfg)
    assert "classifier.ckpt is a classification model, but this task is detection" in line

    line = line_of(train, compose(tmp_path, "ssd_coco", coco, f"ckpt_path={detector}"))
    assert "detector.ckpt: holds a model but no state of its training to resume" in line
    words = ["trainer.max_epochs=1", "scheduler=constant"]
    for task, own, other, data in (
        ("classification", folder, "ssd_coco", coco),
        ("ssd_coco", coco, "classification", folder),
    ):
        train(compose(tmp_path / task, task, own, *words))
        last = tmp_path / task / "checkpoints" / "last.ckpt"
        line = line_of(train, compose(tmp_path / "resumed", other, data, f"ckpt_path={last}"))
        assert re.search(r"a (classification|detection) run cannot resume a", line)


class FullDisk:
    """From its ``limit``-th file on, nothing can be written any more, half-way through the bytes."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def save(self, content: Any, file: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            self.real(content, file)
            return
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = staticmethod(torch.save)


def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_tiny_coco(tmp_path / "data")
    run, words = tmp_path / "run", [f"data.root={tmp_path / 'data'}", "scheduler=constant"]
    monkeypatch.setattr(torch, "save", FullDisk(2).save)  # best.ckpt and last.ckpt of the first epoch
    line = line_of(train, compose(run, "ssd_coco", *words, "trainer.max_epochs=3"))
    assert re.search(r"could not save \S*last\.ckpt", line)
    assert "No space left on device" in line
    assert "the earlier file there is untouched" in line
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt"}
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 1

    monkeypatch.undo()
    words += ["trainer.max_epochs=2", f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]
    assert train(compose(run, "ssd_coco", *words)).global_step == 2


def test_any_file_on_a_full_disk_ends_in_one_line(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch\n0\n")

    def write_more() -> None:
        with whole_file(path) as partial:
            partial.write_text("epoch\n0\n1")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"cannot write .*metrics\.csv: No space left.*untouched; free some space"):
        write_more()
    assert path.read_text() == "epoch\n0\n"
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.csv"]


def run_tool(*words: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / words[0]), *words[1:]]
    if before:
        command = ["bash", "-c", f'{before}; exec "$0" "$@"', *command]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0]


def test_the_process_ends_with_one_line_and_code_two(tmp_path: Path, checkpoints: Path):
    data = make_tiny_coco(tmp_path / "data")
    cut(JPEG)(data)
    words = ["train.py", "task=ssd_coco", *SMALL, f"data.root={data}", "data.num_workers=1"]
    done = run_tool(*words, "debug=fast", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    assert_one_line(done, "image file is truncated", JPEG)
    words = ["evaluate.py", "task=ssd_coco", f"data.root={data}", f"checkpoint={checkpoints / 'detector.ckpt'}"]
    done = run_tool(*words, "backbone.alpha=0.5", f"hydra.run.dir={tmp_path / 'report'}", cwd=tmp_path)
    assert_one_line(done, "backbone.alpha cannot be changed for a trained checkpoint")
    paths = [f"input={data}", f"output={tmp_path / 'out'}"]
    done = run_tool("predict.py", f"checkpoint={checkpoints / 'text.ckpt'}", *paths, cwd=tmp_path)
    assert_one_line(done, "text.ckpt", "corrupt")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_write_failure_ends_with_one_line(tmp_path: Path):
    """Files may not grow beyond 200 KiB here: the system refuses the bytes of the first checkpoint."""
    make_tiny_coco(tmp_path / "data")
    words = ["train.py", "task=ssd_coco", *SMALL, f"data.root={tmp_path / 'data'}", "trainer.max_epochs=1"]
    run = tmp_path / "run"
    done = run_tool(*words, f"hydra.run.dir={run}", "scheduler=constant", cwd=tmp_path, before="ulimit -f 200")
    assert_one_line(done, "could not save", ".ckpt", "File too large")
    assert not list((run / "checkpoints").iterdir())
