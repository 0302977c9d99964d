"""Pictures per second of one loading process: decoding, SSD augmentation and resizing to 300 px.

Ours: the training data set of ``data=coco``. The peer: torchvision's v2 transforms in the order of its
detection references' "ssd" preset, then a resize to 300 px and uint8; with PIL images (the references' default),
with tensors, and with tensors that torchvision's own decoder gives. 640x480 JPEGs with 7 boxes on average; one
thread per process. Then large JPEGs: decoding whole and at reduced scale, alone and within the augmentation.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks.duel import Contestant, Samples, contest, rate_table, ratio_table, raw
from benchmarks.pictures import write_coco_set
from benchmarks.report import Result, Table, finish, parser
from mnvision.data.coco import read_coco
from mnvision.data.detection_dataset import DetectionDataset, collate_detection
from mnvision.data.images import min_decode_size, read_image
from mnvision.data.loaders import train_loader
from mnvision.transforms.detection import DetectionAugment

HERE = "benchmarks.data_loading"
SIDE = (300, 300)
BATCH = 16
PEERS = ("PIL", "tensor", "tensor, decode_jpeg")


class ReferenceDataset(Dataset[tuple[Tensor, dict[str, Any]]]):
    """A COCO-format set read and augmented as torchvision's references do it.

    Args:
        annotations: COCO-format file; the pictures lie in ``images/`` beside it.
        backend: One of ``PEERS``.
    """

    def __init__(self, annotations: Path, backend: str) -> None:
        content = json.loads(annotations.read_text())
        self.backend, self.folder = backend, annotations.parent / "images"
        self.images = content["images"]
        self.objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for item in content["annotations"]:
            self.objects[item["image_id"]].append(item)
        self.transform = v2.Compose(
            [
                *([v2.ToImage()] if backend == "tensor" else []),
                v2.RandomPhotometricDistort(),
                v2.RandomZoomOut(fill=defaultdict(lambda: (123.0, 117.0, 104.0), {tv_tensors.Mask: 0})),
                v2.RandomIoUCrop(),
                v2.RandomHorizontalFlip(p=0.5),
                v2.Resize(SIDE, antialias=True),
                *([v2.PILToTensor()] if backend == "PIL" else []),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, dict[str, Any]]:
        """One augmented picture, ``(3, 300, 300)`` uint8, and its target."""
        entry = self.images[position]
        path, objects = self.folder / entry["file_name"], self.objects[entry["id"]]
        image: Any
        if self.backend == "tensor, decode_jpeg":
            image = tv_tensors.Image(decode_jpeg(read_file(str(path))))
        else:
            image = Image.open(path).convert("RGB")
        boxes = torch.tensor([item["bbox"] for item in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        canvas = (entry["height"], entry["width"])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
            "labels": torch.tensor([item["category_id"] for item in objects]),
        }
        transformed: tuple[Tensor, dict[str, Any]] = self.transform(image, target)
        return transformed


def as_tuples(samples: list[Any]) -> tuple[Any, ...]:
    """The references' collate function: a tuple of images and one of targets."""
    return tuple(zip(*samples))


def our_loading(annotations: str, workers: int, reduced: bool = True) -> Callable[[], int]:
    """A round over all pictures with our data set; without workers there is no loader either."""
    index = read_coco(annotations, Path(annotations).parent / "images")
    dataset = DetectionDataset(index, SIDE, DetectionAugment(), reduced_decoding=reduced)
    return _round(dataset, train_loader(dataset, BATCH, workers, collate_detection) if workers else None)


def peer_loading(annotations: str, workers: int, backend: str) -> Callable[[], int]:
    """A round over all pictures with torchvision's transforms."""
    torch.manual_seed(0)
    dataset = ReferenceDataset(Path(annotations), backend)
    loader = None
    if workers:
        options: dict[str, Any] = {
            "num_workers": workers,
            "persistent_workers": True,
            "collate_fn": as_tuples,
        }
        loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, **options)
    return _round(dataset, loader)


def decoding(annotations: str, how: str) -> Callable[[], int]:
    """A round of decoding every picture for a 300 px target: "reduced", "whole", or "PIL"."""
    index = read_coco(annotations, Path(annotations).parent / "images")

    def run() -> int:
        for position in range(len(index)):
            if how == "PIL":
                Image.open(index.path(position)).convert("RGB").load()
            else:
                size = index.size(position)
                read_image(index.path(position), min_decode_size(size, size, SIDE) if how == "reduced" else None)
        return len(index)

    return run


def _round(dataset: Any, loader: DataLoader[Any] | None) -> Callable[[], int]:
    def direct() -> int:
        for position in range(len(dataset)):
            dataset[position]
        return len(dataset)

    def loaded() -> int:
        assert loader is not None
        return sum(1 for _ in loader) * BATCH

    return direct if loader is None else loaded


def against_torchvision(annotations: Path, workers: int, rounds: int) -> tuple[list[Table], Samples]:
    """Our data set beside the three forms of the reference pipeline."""
    options = {"annotations": str(annotations), "workers": workers}
    contestants = [Contestant("ours", f"{HERE}:our_loading", options, tuned=True, threads=1)]
    names = {backend: f"torchvision v2, {backend}" for backend in PEERS}
    for backend, name in names.items():
        chosen = options | {"backend": backend}
        contestants.append(Contestant(name, f"{HERE}:peer_loading", chosen, threads=1))
    samples = contest(contestants, rounds)
    where = "with a DataLoader of 1 worker" if workers else "in one process, without a DataLoader"
    pairs = [("ours", name) for name in names.values()]
    rates = rate_table(f"Detection augmentation {where}", "images", samples)
    return [rates, ratio_table(f"Ratio {where}", samples, pairs)], samples


def large_pictures(annotations: Path, rounds: int) -> tuple[list[Table], Samples]:
    """Reduced decoding against decoding whole."""
    names = {"reduced": "ours, reduced", "whole": "ours, whole", "PIL": "PIL, whole"}
    options = {"annotations": str(annotations)}
    contestants = [
        Contestant(name, f"{HERE}:decoding", options | {"how": how}, tuned=True, threads=1)
        for how, name in names.items()
    ]
    for reduced, name in ((True, "ours, reduced + augmentation"), (False, "ours, whole + augmentation")):
        chosen = options | {"workers": 0, "reduced": reduced}
        contestants.append(Contestant(name, f"{HERE}:our_loading", chosen, tuned=True, threads=1))
    samples = contest(contestants, rounds)
    pairs = [
        (names["reduced"], names["whole"]),
        (names["reduced"], names["PIL"]),
        ("ours, reduced + augmentation", "ours, whole + augmentation"),
    ]
    rates = rate_table("Large JPEGs for a 300 px target", "images", samples)
    return [rates, ratio_table("Ratio on large JPEGs", samples, pairs)], samples


def main() -> None:
    """Command line."""
    options = parser("data_loading", __doc__)
    options.add_argument("--images", type=int, default=96, help="640x480 pictures per round (default 96)")
    options.add_argument("--large", type=int, default=12, help="2400x1800 pictures per round (default 12)")
    given = options.parse_args()
    count, large, rounds = (16, 2, 1) if given.quick else (given.images, given.large, given.rounds)
    with tempfile.TemporaryDirectory() as folder:
        common = write_coco_set(Path(folder) / "common", count, 480, 640)
        huge = write_coco_set(Path(folder) / "large", large, 1800, 2400)
        weight = sum(path.stat().st_size for path in (common.parent / "images").iterdir()) / count / 1024
        found = {
            "one process": against_torchvision(common, 0, rounds),
            "one worker": against_torchvision(common, 1, rounds),
            "large": large_pictures(huge, rounds),
        }
    notes = [
        "The peer's photometric distortion, zoom-out (1-4x), IoU crop and flip have torchvision's own defaults, "
        "ours the SSD paper's; both draw a zoom-out for half of the pictures.",
        "Ours has its allocator set as its tools do; the peer runs as the system made it.",
    ]
    settings = {"images": count, "mean KB": round(weight), "large images": large, "rounds": rounds}
    tables = [table for part, _ in found.values() for table in part]
    samples = {name: raw(part) for name, (_, part) in found.items()}
    finish(Result("data_loading", settings, tables, notes, samples), given.output)


if __name__ == "__main__":
    main()
