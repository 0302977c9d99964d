"""Ways to harm the tiny data sets, and what a tool says to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from tools import cli

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


JPEG = "train2017/000000000003.jpg"


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


def remove_images(root: Path) -> None:
    for path in (root / "train").rglob("*.[jJ]*"):
        path.unlink()
