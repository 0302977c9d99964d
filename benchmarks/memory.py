"""Memory of the main process and of the loader's workers on an annotation file of COCO's size, over many batches.

118,287 images and 860,001 boxes as train2017 has them, written with a polygon per box so that the file is as large
too; the image files are hard links to a few pictures. Shown: seconds to read it, the peak, and RSS / PSS / USS
(resident, with shared pages divided among their users, and unshared) at intervals, which must not grow.
``--peer`` runs torchvision's CocoDetection through the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.transforms import v2

from benchmarks.data_loading import as_tuples
from benchmarks.duel import ROOT
from benchmarks.pictures import CATEGORIES, NUM_CLASSES, random_boxes, write_photos
from benchmarks.report import Result, Table, finish, parser
from mnvision.data.coco import read_coco
from mnvision.data.detection_dataset import DetectionDataset, collate_detection
from mnvision.data.loaders import train_loader
from mnvision.runtime import tune_allocator
from mnvision.transforms.detection import DetectionAugment

HEIGHT, WIDTH, SIDE = 480, 640, 300
IMAGES, BOXES = 118_287, 860_001
POLYGON = json.dumps([[round(100 + 7.31 * i, 2) for i in range(50)]])
Memory = dict[str, float]


def write_annotations(root: Path, images: int, boxes: int) -> Path:
    """A COCO-format file of ``images`` images and ``boxes`` boxes with their (hard-linked) pictures."""
    sources = write_photos(root / "sources", 16, HEIGHT, WIDTH)
    folder = root / "images"
    folder.mkdir()
    names = [f"{i + 1:012d}.jpg" for i in range(images)]
    for i, name in enumerate(names):
        os.link(sources[i % len(sources)], folder / name)
    rng = np.random.default_rng(0)
    owners = np.sort(rng.integers(1, images + 1, boxes)).tolist()
    labels = rng.integers(1, NUM_CLASSES + 1, boxes).tolist()
    corners = random_boxes(rng, boxes, HEIGHT, WIDTH).tolist()
    file = root / "annotations.json"
    with file.open("w") as out:
        out.write('{"images": [')
        size = f'"height": {HEIGHT}, "width": {WIDTH}'
        out.write(",".join(f'{{"id": {i + 1}, "file_name": "{n}", {size}}}' for i, n in enumerate(names)))
        out.write('], "annotations": [')
        for i, (owner, label, box) in enumerate(zip(owners, labels, corners)):
            out.write("," if i else "")
            out.write(f'{{"segmentation": {POLYGON}, "area": {box[2] * box[3]:.2f}, "iscrowd": 0, ')
            out.write(f'"image_id": {owner}, "bbox": {box}, "category_id": {label}, "id": {i + 1}}}')
        out.write(f'], "categories": {json.dumps(CATEGORIES)}}}')
    return file


def memory_of(pid: int) -> Memory:
    """RSS, PSS, USS and the peak of RSS of a process, in MiB (Linux)."""
    values = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0, "VmHWM": 0}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in values:
                values[key] = int(rest.split()[0])
    private = values["Private_Clean"] + values["Private_Dirty"]
    sizes = {"RSS": values["Rss"], "PSS": values["Pss"], "USS": private, "peak RSS": values["VmHWM"]}
    return {key: kilobytes / 1024 for key, kilobytes in sizes.items()}


def our_loader(annotations: Path, workers: int, batch: int) -> DataLoader[Any]:
    """The training loader of ``data=coco``."""
    index = read_coco(annotations, annotations.parent / "images")
    return train_loader(DetectionDataset(index, (SIDE, SIDE), DetectionAugment()), batch, workers, collate_detection)


def peer_loader(annotations: Path, workers: int, batch: int) -> DataLoader[Any]:
    """Torchvision's CocoDetection, pictures resized."""
    transform = v2.Compose([v2.PILToTensor(), v2.Resize((SIDE, SIDE))])
    dataset = CocoDetection(str(annotations.parent / "images"), str(annotations), transform)
    return DataLoader(dataset, batch, shuffle=True, num_workers=workers, collate_fn=as_tuples)


def measure(annotations: Path, given: Namespace) -> None:
    """In a fresh process: read, load batches, and print every reading as a line of JSON."""
    if given.measure == "ours":
        tune_allocator()
    start = time.perf_counter()
    loader = (our_loader if given.measure == "ours" else peer_loader)(annotations, given.workers, given.batch)
    seconds = time.perf_counter() - start
    # The peer prints while it reads; the parent looks at lines that begin with a brace only.
    print("\n" + json.dumps({"batch": 0, "seconds": seconds, "main": memory_of(os.getpid()), "workers": []}))
    for number, _ in enumerate(loader, start=1):
        if number % given.every == 0 or number == given.batches:
            workers = [memory_of(process.pid) for process in multiprocessing.active_children() if process.pid]
            print(json.dumps({"batch": number, "main": memory_of(os.getpid()), "workers": workers}))
        if number == given.batches:
            break


def readings(annotations: Path, side: str, given: Namespace) -> Iterator[dict[str, Any]]:
    """What ``measure`` prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", side, "--annotations", str(annotations)]
    for key in ("batches", "every", "workers", "batch"):
        command += [f"--{key}", str(getattr(given, key))]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line)


def tables(side: str, found: list[dict[str, Any]]) -> list[Table]:
    """The course over the batches, and the sums at its end."""
    rows = [_row(reading) for reading in found]
    columns = ["batches", "main RSS", "main USS", "workers RSS, largest", "workers USS, sum", "PSS of all"]
    course = Table(f"{side}: MiB over the batches", columns, rows)
    first, last = found[min(1, len(found) - 1)], found[-1]
    peaks = [f"{max(w['peak RSS'] for w in last['workers']):.0f}" if last["workers"] else "-"]
    values = [f"{found[0]['seconds']:.1f}", f"{last['main']['peak RSS']:.0f}", *peaks]
    growth = f"{_pss(last) - _pss(first):+.0f} ({first['batch']} to {last['batch']})"
    columns = ["reader", "seconds to read", "main peak RSS", "workers' peak RSS", "growth of PSS (batches)"]
    return [course, Table(f"{side}: summary, MiB", columns, [[side, *values, growth]])]


def _row(reading: dict[str, Any]) -> list[str]:
    main, workers = reading["main"], reading["workers"]
    largest = max((worker["RSS"] for worker in workers), default=0.0)
    values = [main["RSS"], main["USS"], largest, sum(worker["USS"] for worker in workers), _pss(reading)]
    return [str(reading["batch"]), *(f"{value:.0f}" for value in values)]


def _pss(reading: dict[str, Any]) -> float:
    return reading["main"]["PSS"] + sum(worker["PSS"] for worker in reading["workers"])


def main() -> None:
    """Command line."""
    options = parser("memory", __doc__, rounds=1)
    options.add_argument("--batches", type=int, default=1000, help="batches to load (default 1000)")
    options.add_argument("--every", type=int, default=100, help="batches between two readings (default 100)")
    options.add_argument("--batch", type=int, default=24, help="pictures per batch (default 24)")
    options.add_argument("--workers", type=int, default=2, help="loader processes (default 2)")
    options.add_argument("--peer", action="store_true", help="torchvision's CocoDetection too (several GiB)")
    options.add_argument("--measure", choices=("ours", "peer"), help="for its own use: measure in this process")
    options.add_argument("--annotations", type=Path, help="for its own use: what to measure on")
    given = options.parse_args()
    if given.measure:
        measure(given.annotations, given)
        return
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory: left out, /proc/PID/smaps_rollup is not there (Linux only)")
        return
    images, boxes = IMAGES, BOXES
    if given.quick:
        images, boxes, given.batches, given.every, given.batch = 500, 3600, 8, 4, 8
    sides = {"ours": "ours", **({"torchvision CocoDetection": "peer"} if given.peer else {})}
    with tempfile.TemporaryDirectory() as folder:
        annotations = write_annotations(Path(folder), images, boxes)
        megabytes = round(annotations.stat().st_size / 2**20)
        found = {name: list(readings(annotations, side, given)) for name, side in sides.items()}
    settings = {"images": images, "boxes": boxes, "file MiB": megabytes, "workers": given.workers}
    settings |= {"batch": given.batch, "batches": given.batches}
    notes = ["Row 0 is after reading, before the workers start. USS is what a process would give back if it ended."]
    shown = [table for name, side_found in found.items() for table in tables(name, side_found)]
    finish(Result("memory", settings, shown, notes, {"readings": found}), given.output)


if __name__ == "__main__":
    main()
