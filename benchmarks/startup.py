"""Seconds from the command to the first training step on ``data=shapes``, its pictures already generated.

``tools/train.py`` runs in a process of its own, as from a shell, with a callback that notes when the first batch is
at hand and when the first step is done; both count from before the process was started. One run before is not
counted: it generates the pictures if need be and brings the files into the system's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.duel import ROOT
from benchmarks.report import Result, Table, finish, parser, spread

RUNS = {
    "task=ssd_coco data=shapes": ["task=ssd_coco", "data=shapes"],
    "task=ssd_coco experiment=demo": ["task=ssd_coco", "experiment=demo"],
}
ONE_STEP = [
    "trainer.max_steps=1",
    "trainer.limit_val_batches=0",
    "callbacks.checkpoint=null",
    "callbacks.last_checkpoint=null",
    "callbacks.early_stopping=null",
]


class FirstStep(pl.Callback):
    """Writes the wall-clock times of the first training step.

    Args:
        file: JSON file to write: ``batch`` and ``step``, in seconds since the epoch.
    """

    def __init__(self, file: str) -> None:
        self.file, self.times = Path(file), dict[str, float]()

    def on_train_batch_start(self, *_: Any) -> None:
        """The first batch has been read; nothing was computed yet."""
        self.times.setdefault("batch", time.time())

    def on_train_batch_end(self, *_: Any) -> None:
        """The weights have been changed once."""
        if "step" not in self.times:
            self.times["step"] = time.time()
            self.file.write_text(json.dumps(self.times))


def run_once(overrides: Sequence[str]) -> dict[str, float]:
    """Seconds from the start of the command to the first batch, the first step, and the end of the process.

    Raises:
        RuntimeError: The tool failed; the text is what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "first_step.json"
        words = [
            *overrides,
            *ONE_STEP,
            f"hydra.run.dir={folder}/run",
            "+callbacks.first_step._target_=benchmarks.startup.FirstStep",
            f"+callbacks.first_step.file={file}",
        ]
        command = [sys.executable, "tools/train.py", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        start = time.time()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        end = time.time()
        if done.returncode != 0 or not file.exists():
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        times = json.loads(file.read_text())
    return {"batch": times["batch"] - start, "step": times["step"] - start, "process": end - start}


def main() -> None:
    """Command line."""
    given = parser("startup", __doc__, rounds=5).parse_args()
    rounds = 1 if given.quick else given.rounds
    with tempfile.TemporaryDirectory() as folder:
        small = ["data.num_train=24", "data.num_val=4", f"data.root={folder}", "backbone.resolution=128"]
        runs = {name: [*words, *(small if given.quick else [])] for name, words in RUNS.items()}
        for words in runs.values():
            run_once(words)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, words in runs.items():
                found[name].append(run_once(words))
    rows = [
        [name, *(spread([times[key] for times in measured], 1) for key in ("batch", "step", "process"))]
        for name, measured in found.items()
    ]
    columns = ["python tools/train.py", "first batch at hand", "first step done", "whole process of one step"]
    notes = ["Everything from a new Python process on: imports, config, annotations, model, loader workers."]
    table = Table("Seconds from the command", columns, rows)
    finish(Result("startup", {"rounds": rounds}, [table], notes, {"seconds": found}), given.output)


if __name__ == "__main__":
    main()
