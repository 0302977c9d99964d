"""Bad input through the tools: refused in one line that names it, or counted, skipped and reported."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mnvision.checkpoints import read_checkpoint
from mnvision.predict import load_predictor
from tests.builders import make_image_folder, make_tiny_coco, make_tiny_voc, voc_object, voc_xml
from tests.builders_models import save_classifier, save_detector
from tools import cli
from tools.run import evaluate, train

ROOT = Path(__file__).parents[1]
SMALL = [
    "backbone.alpha=0.25",
    "backbone.resolution=96",
    "data.batch_size=6",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "logger=none",
]
Harm = Callable[[Path], Any]


def compose(folder: Path, task: str, *words: str, name: str = "config") -> DictConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return cli.compose_config(name, [f"task={task}", *SMALL, f"paths.output_dir={folder}", *words])


def line_of(tool: Callable[[DictConfig], Any], cfg: DictConfig) -> str:
    """What the tool prints before it leaves with exit code 2."""
    with pytest.raises(Exception, match=r".") as caught:
        tool(cfg)
    line = cli.message_for_user(caught.value)
    assert line is not None, f"a traceback: {caught.value!r}"
    assert "\n" not in line
    assert "Traceback" not in line
    return line


def in_json(change: Callable[[dict[str, Any]], Any], split: str = "train2017") -> Harm:
    """A harm done to an annotation file."""

    def harm(root: Path) -> None:
        path = root / "annotations" / f"instances_{split}.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return harm


def set_box(row: int, *box: float) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["annotations"][row].update(bbox=list(box))


def cut(name: str, end: int = -60) -> Harm:
    """A download that broke off."""

    def harm(root: Path) -> None:
        path = root / name
        path.write_bytes(path.read_bytes()[:end])

    return harm


def write(name: str, text: str) -> Harm:
    return lambda root: (root / name).write_text(text)


def remove(name: str) -> Harm:
    return lambda root: (root / name).unlink()


def nothing(root: Path) -> None:
    """The harm is in the words."""


JPEG = "train2017/000000000003.jpg"
JSON = "annotations/instances_train2017.json"

COCO_REFUSED: dict[str, tuple[Harm, list[str], list[str]]] = {
    "no data root": (nothing, ["data.root=nowhere"], ["data root not found: nowhere", "set data.root"]),
    "no annotation file": (remove(JSON), [], ["instances_train2017.json", "not found"]),
    "a missing picture": (
        remove(JPEG),
        [],
        ["1 of 6 image files", "000000000003.jpg", "data.missing=skip"],
    ),
    "an unknown category id": (
        in_json(lambda d: d["annotations"][1].update(category_id=55)),
        [],
        ["instances_train2017.json", "55", "annotation 2", "add them or remove"],
    ),
    "an unknown image id": (
        in_json(lambda d: d["annotations"][1].update(image_id=55)),
        [],
        ["annotation 2", "image id 55", "remove it or add"],
    ),
    "an image id twice": (
        in_json(lambda d: d["images"][1].update(id=100)),
        [],
        ["image id used more than once: 100", "give each its own"],
    ),
    "an annotation id twice": (
        in_json(lambda d: d["annotations"][1].update(id=1)),
        [],
        ["annotation id used more than once: 1", "give each its own"],
    ),
    "a category id twice": (
        in_json(lambda d: d["categories"][1].update(id=7)),
        [],
        ["category id used more than once: 7"],
    ),
    "a box of three numbers": (in_json(set_box(1, 1, 2, 3)), [], ["annotation 2", "four numbers"]),
    "a box of words": (in_json(lambda d: d["annotations"][1].update(bbox="all")), [], ["annotation 2"]),
    "other categories in val": (
        in_json(lambda d: d["categories"][1].update(name="human"), "val2017"),
        [],
        ["categories of train and val differ", "2: person / human", "instances_val2017.json"],
    ),
    "no images in train": (
        in_json(lambda d: d.update(images=[], annotations=[])),
        [],
        ["instances_train2017.json", "'images' is empty"],
    ),
    "no images in val": (
        in_json(lambda d: d.update(images=[], annotations=[]), "val2017"),
        [],
        ["instances_val2017.json", "'images' is empty"],
    ),
    "no boxes in train": (
        in_json(lambda d: d.update(annotations=[])),
        [],
        ["instances_train2017.json", "no usable box"],
    ),
    "no JSON": (cut(JSON), [], ["instances_train2017.json is not valid JSON"]),
    "a list for a file": (write(JSON, "[]"), [], ["not a COCO annotation file"]),
    "a size that is not the picture's": (
        in_json(lambda d: d["images"][0].update(width=640)),
        ["debug=fast"],
        ["000000000000.jpg is 64x48 but annotated as 640x48", "image id 100", "correct"],
    ),
    "a truncated picture": (cut(JPEG), ["debug=fast"], ["truncated", JPEG, "fetch it again"]),
    "a truncated picture in a worker": (
        cut(JPEG),
        ["debug=fast", "data.num_workers=1"],
        ["truncated", JPEG, "fetch it again"],
    ),
    "no picture at all": (write(JPEG, "<html>not found</html>"), ["debug=fast"], ["not an image", JPEG]),
    "no picture at all in a worker": (
        write(JPEG, "<html>not found</html>"),
        ["debug=fast", "data.num_workers=1"],
        ["not an image", JPEG],
    ),
    "an empty picture": (write(JPEG, ""), ["debug=fast"], ["empty", JPEG, "fetch it again"]),
    "a folder for a picture": (
        lambda root: ((root / JPEG).unlink(), (root / JPEG).mkdir()),
        ["debug=fast"],
        [JPEG],
    ),
    "alpha 0": (nothing, ["backbone.alpha=0"], ["alpha", "0"]),
    "alpha below 0": (nothing, ["backbone.alpha=-0.5"], ["alpha", "-0.5"]),
    "resolution 0": (nothing, ["backbone.resolution=0"], ["resolution", "0"]),
    "resolution below 0": (nothing, ["backbone.resolution=-96"], ["resolution", "-96"]),
    "no checkpoint": (nothing, ["ckpt_path=nowhere.ckpt"], ["nowhere.ckpt does not exist"]),
    "no pretrained file": (nothing, ["backbone.pretrained=nowhere.h5"], ["nowhere.h5"]),
}


@pytest.mark.parametrize("case", COCO_REFUSED)
def test_detection_data_that_cannot_be_used_are_refused_by_name(case: str, tmp_path: Path):
    harm, words, texts = COCO_REFUSED[case]
    harm(make_tiny_coco(tmp_path / "data"))
    line = line_of(train, compose(tmp_path / "run", "ssd_coco", f"data.root={tmp_path / 'data'}", *words))
    for text in texts:
        assert text in line
    assert not list((tmp_path / "run").rglob("*.ckpt"))


COCO_COUNTED: dict[str, tuple[Harm, list[str], str]] = {
    "zero width": (in_json(set_box(1, 5, 5, 0, 9)), [], "1 boxes of zero area skipped (annotation 2)"),
    "negative height": (in_json(set_box(1, 5, 5, 9, -9)), [], "1 boxes of zero area skipped (annotation 2)"),
    "outside": (in_json(set_box(1, 500, 5, 9, 9)), [], "1 boxes outside their image skipped (annotation 2)"),
    "over the edge": (in_json(set_box(1, 50, 5, 99, 9)), [], "1 boxes clipped to their image (annotation 2)"),
    "NaN": (
        in_json(set_box(1, float("nan"), 5, 9, 9)),
        [],
        "1 boxes with NaN or infinite coordinates skipped (annotation 2)",
    ),
    "infinity": (
        in_json(set_box(1, 5, 5, float("inf"), 9)),
        [],
        "1 boxes with NaN or infinite coordinates skipped (annotation 2)",
    ),
    "a missing picture": (
        remove(JPEG),
        ["data.missing=skip"],
        "5 images, 8 boxes; 1 images without file skipped (000000000003.jpg)",
    ),
    "crowds": (nothing, [], "1 crowd regions (annotation 1000)"),
}


@pytest.mark.parametrize("case", COCO_COUNTED)
def test_boxes_that_cannot_be_used_are_counted_and_the_rest_trains(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    harm, words, text = COCO_COUNTED[case]
    harm(make_tiny_coco(tmp_path / "data"))
    with caplog.at_level(logging.INFO, "mnvision"):
        trainer = train(
            compose(
                *(tmp_path / "run", "ssd_coco", "debug=fast", f"data.root={tmp_path / 'data'}", *words),
                "data.batch_size=5",
            )
        )
    reported = [
        record.getMessage() for record in caplog.records if "instances_train2017" in record.getMessage()
    ]
    assert len(reported) == 1
    assert text in reported[0]
    assert trainer.global_step == 1
    assert all(p.isfinite().all() for p in trainer.lightning_module.parameters())


XML = "Annotations/2007_000001.xml"
VOC_REFUSED: dict[str, tuple[Harm, list[str]]] = {
    "no XML": (write(XML, "<annotation><object>"), [XML, "not readable XML"]),
    "an empty XML": (write(XML, ""), [XML, "not readable XML"]),
    "no XML file": (remove(XML), [XML, "not found"]),
    "no picture": (remove("JPEGImages/2007_000001.jpg"), ["2007_000001", "complete the folder or the list"]),
    "no corners": (
        write(XML, voc_xml("2007_000001", (48, 64), "<object><name>cat</name></object>")),
        [XML, "bndbox/xmin is missing"],
    ),
    "a corner of letters": (
        write(XML, voc_xml("2007_000001", (48, 64), voc_object("cat", ("a", 1, 2, 3)))),  # type: ignore[arg-type]
        [XML, "'a', not a number"],
    ),
    "a size of NaN": (
        write(XML, voc_xml("2007_000001", (float("nan"), 64), "")),  # type: ignore[arg-type]
        [XML, "size/height", "nan"],
    ),
    "no name": (
        write(XML, voc_xml("2007_000001", (48, 64), voc_object("", (1, 1, 9, 9)))),
        [XML, "no name"],
    ),
    "an empty list": (write("ImageSets/Main/val.txt", "\n"), ["val.txt is empty"]),
    "no list": (remove("ImageSets/Main/train.txt"), ["train.txt", "not found"]),
    "an image twice": (
        write("ImageSets/Main/train.txt", "2007_000001\n2007_000001\n"),
        ["train.txt", "more than once: 2007_000001"],
    ),
}


@pytest.mark.parametrize("case", VOC_REFUSED)
def test_voc_sets_that_cannot_be_read_are_refused_by_name(case: str, tmp_path: Path):
    harm, texts = VOC_REFUSED[case]
    harm(make_tiny_voc(tmp_path / "data"))
    line = line_of(train, compose(tmp_path / "run", "ssd_voc", f"data.root={tmp_path / 'data'}"))
    for text in texts:
        assert text in line


def add_class(root: Path) -> None:
    (root / "val" / "violet").mkdir()
    (root / "val" / "red" / "1.jpg").rename(root / "val" / "violet" / "1.jpg")


def remove_images(root: Path) -> None:
    for path in (root / "train").rglob("*.[jJ]*"):
        path.unlink()


def remove_folders(root: Path) -> None:
    (root / "val").rename(root / "gone")
    (root / "val").mkdir()


FOLDER_REFUSED: dict[str, tuple[Harm, list[str], list[str]]] = {
    "no data root": (nothing, ["data.root=nowhere"], ["data root not found: nowhere", "set data.root"]),
    "a class of val that train lacks": (add_class, [], ["violet", "remove or rename"]),
    "no images": (remove_images, [], ["train holds no images"]),
    "no classes": (remove_folders, [], ["val has no class folders"]),
    "a truncated picture": (cut("train/red/1.jpg"), ["debug=fast"], ["truncated", "train/red/1.jpg"]),
    "a truncated picture in a worker": (
        cut("train/red/1.jpg"),
        ["debug=fast", "data.num_workers=1"],
        ["truncated", "train/red/1.jpg"],
    ),
    "a picture cut in its header": (
        cut("train/red/1.jpg", 100),
        ["debug=fast"],
        ["cannot read the image header", "train/red/1.jpg", "fetch it again"],
    ),
    "no picture": (write("train/red/1.jpg", "no"), ["debug=fast"], ["train/red/1.jpg"]),
    "a truncated picture to validate on": (
        cut("val/red/1.jpg"),
        ["debug=fast"],
        ["truncated", "val/red/1.jpg"],
    ),
    "alpha 0": (nothing, ["backbone.alpha=0"], ["alpha", "0"]),
    "resolution 0": (nothing, ["backbone.resolution=0"], ["resolution", "0"]),
}


@pytest.mark.parametrize("case", FOLDER_REFUSED)
def test_image_folders_that_cannot_be_used_are_refused_by_name(case: str, tmp_path: Path):
    harm, words, texts = FOLDER_REFUSED[case]
    harm(make_image_folder(tmp_path / "data"))
    words = [f"data.root={tmp_path / 'data'}", "data.batch_size=18", *words]
    line = line_of(train, compose(tmp_path / "run", "classification", *words))
    for text in texts:
        assert text in line


def test_a_pretrained_classifier_of_other_classes_is_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_image_folder(tmp_path / "data")
    save_classifier(tmp_path / "pets.ckpt")
    words = ["debug=fast", f"data.root={tmp_path / 'data'}", f"backbone.pretrained={tmp_path / 'pets.ckpt'}"]
    with caplog.at_level(logging.INFO, "mnvision"):
        train(compose(tmp_path / "run", "classification", *words))
    assert re.search(
        r"classifier of \S*pets\.ckpt left out: it has no class named 'blue', 'green'", caplog.text
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector and a classifier, as usable; and damaged or foreign files."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_detector(folder / "detector.ckpt")
    save_classifier(folder / "classifier.ckpt")
    whole = (folder / "detector.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.ckpt").write_bytes(whole[:3000] + bytes(64) + whole[3064:])
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
    "folder.ckpt": "does not exist",
    "weights.ckpt": "not one of our checkpoints",
    "tensor.ckpt": "not a checkpoint",
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("tool", ["evaluate", "predict", "resume"])
def test_a_checkpoint_that_is_none_is_refused_by_every_tool(
    tool: str, name: str, checkpoints: Path, tmp_path: Path
):
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
    assert "detector.ckpt is a detection checkpoint" in line
    cfg = compose(tmp_path, "ssd_coco", coco, f"checkpoint={classifier}", name="evaluate")
    line = line_of(evaluate, cfg)
    assert "classifier.ckpt is a classification checkpoint" in line

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
    done = run_tool("evaluate.py", f"checkpoint={checkpoints / 'cut.ckpt'}", cwd=tmp_path)
    assert_one_line(done, "cut.ckpt", "corrupt")
    paths = [f"input={data}", f"output={tmp_path / 'out'}"]
    done = run_tool("predict.py", f"checkpoint={checkpoints / 'text.ckpt'}", *paths, cwd=tmp_path)
    assert_one_line(done, "text.ckpt", "corrupt")
    assert not (tmp_path / "out").exists()


def test_a_real_write_failure_ends_with_one_line(tmp_path: Path):
    """Files may not grow beyond 200 KiB here: the system refuses the bytes of the first checkpoint."""
    make_tiny_coco(tmp_path / "data")
    words = ["train.py", "task=ssd_coco", *SMALL, f"data.root={tmp_path / 'data'}", "trainer.max_epochs=1"]
    run = tmp_path / "run"
    done = run_tool(
        *words, f"hydra.run.dir={run}", "scheduler=constant", cwd=tmp_path, before="ulimit -f 200"
    )
    assert_one_line(done, "could not save", ".ckpt", "File too large")
    assert not list((run / "checkpoints").iterdir())
