"""An epoch of distillation: with the teacher's outputs stored, with the teacher run every step, and timm's own task.

Teacher: timm's resnet50 with random weights. Student: our MobileNetV1 at 96 px. An epoch is reading, augmenting, the
teacher's part, forward, the soft targets' loss mixed with the labels' by halves, backward and optimizer. timm: its
``LogitDistillationTask``, loader and optimizer on the same network and pictures; its task shows the teacher what the
student sees, so its teacher looks at 96 px, for which our live run has a row too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import Tensor, nn

from benchmarks.duel import Contestant, Samples, contest, rate_table, ratio_table, raw
from benchmarks.pictures import write_photos
from benchmarks.report import Result, Table, finish, parser
from benchmarks.steps import optimizer_for
from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.data.image_folder import ImageFolderDataModule
from mnvision.data.teacher_view import TeacherView
from mnvision.heads.classifier import ClassifierHead, ClassScores
from mnvision.losses.distillation import SoftTargets
from mnvision.models import Classifier
from mnvision.teachers.cache import prepare
from mnvision.teachers.timm import TimmTeacher
from tasks.distillation import Distillation

HERE = "benchmarks.teacher_cache"
STUDENT_SIDE, CLASSES, TEMPERATURE, LABELS, VIEWS = 96, 4, 4.0, 0.5, 2
TEACHER = "resnet50"


class PeerStudent(nn.Module):
    """Our network as timm's task wants it: normalised floats in, and timm's attributes."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        model = make_student(alpha)
        self.backbone, self.head = model.backbone, model.head
        self.num_classes, self.in_chans = CLASSES, 3
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def make_student(alpha: float) -> Classifier:
    """The same weights in every process."""
    torch.manual_seed(0)
    backbone = MobileNetV1(alpha=alpha, resolution=STUDENT_SIDE)
    return Classifier(backbone, ClassifierHead(backbone.feature_channels, CLASSES), ClassScores())


def our_epochs(root: str, alpha: float, batch: int, side: int, workers: int, cached: bool) -> Callable[[], int]:
    """A round is an epoch; stored outputs are computed before the first one.

    Args:
        root: Image folder; the cache lies beside it.
        alpha: Of the student.
        batch: Pictures of a step.
        side: Of the teacher's input, in pixels.
        workers: Of the loader.
        cached: Store the teacher's outputs, else run it every step.
    """
    torch.manual_seed(0)
    teacher = TimmTeacher(TEACHER, pretrained=False, num_classes=CLASSES, resolution=side)
    data = ImageFolderDataModule(root, STUDENT_SIDE, batch, workers)
    data.setup("fit")
    folder = Path(root).with_name("teacher_cache")
    views = TeacherView(teacher.spec.resolution, VIEWS)
    data.teacher_view = prepare(teacher, data, folder, VIEWS, batch) if cached else views
    student = make_student(alpha).train().to(memory_format=torch.channels_last)
    distillation = Distillation(teacher, SoftTargets(TEMPERATURE), student, data.class_names, labels=LABELS)
    loss, optimizer, loader = nn.CrossEntropyLoss(), optimizer_for(student), data.train_dataloader()
    sampler: Any = loader.sampler

    def epoch() -> int:
        count = 0
        for step in loader:
            logits = student(step["images"].contiguous(memory_format=torch.channels_last))
            total = distillation.mix(loss(logits, step["labels"]), logits, step)["loss"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            count += len(logits)
        sampler.set_epoch(sampler.epoch + 1)
        return count

    return epoch


def timm_epochs(root: str, alpha: float, batch: int, workers: int) -> Callable[[], int]:
    """A round is an epoch of timm's task, as timm's ``train.py`` sets it up."""
    torch.manual_seed(0)
    student = PeerStudent(alpha)
    teacher = timm.create_model(TEACHER, num_classes=CLASSES)
    task = LogitDistillationTask(
        student, teacher, nn.CrossEntropyLoss(), task_loss_weight=LABELS, temperature=TEMPERATURE, verbose=False
    ).train()
    dataset = create_dataset("", root, split="train", is_training=True, batch_size=batch)
    loader = create_loader(
        dataset,
        (3, STUDENT_SIDE, STUDENT_SIDE),
        batch,
        is_training=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        num_workers=workers,
        device=torch.device("cpu"),
    )
    optimizer = create_optimizer_v2(student, opt="sgd", lr=1e-6, weight_decay=2e-5, momentum=0.9)

    def epoch() -> int:
        count = 0
        for images, labels in loader:
            task(images, labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(labels)
        return count

    return epoch


def duel(root: Path, alpha: float, batch: int, side: int, workers: int, rounds: int) -> tuple[list[Table], Samples]:
    """All contestants for one width of the student."""
    options = {"root": str(root), "alpha": alpha, "batch": batch, "workers": workers}
    ours = f"{HERE}:our_epochs"
    cached, live, small = f"ours, stored, {side} px", f"ours, live, {side} px", f"ours, live, {STUDENT_SIDE} px"
    peer, tuned_peer = f"timm, {STUDENT_SIDE} px", f"timm, {STUDENT_SIDE} px, our allocator"
    contestants = [
        Contestant(cached, ours, options | {"side": side, "cached": True}, tuned=True),
        Contestant(live, ours, options | {"side": side, "cached": False}, tuned=True),
        Contestant(small, ours, options | {"side": STUDENT_SIDE, "cached": False}, tuned=True),
        Contestant(peer, f"{HERE}:timm_epochs", options),
        Contestant(tuned_peer, f"{HERE}:timm_epochs", options, tuned=True),
    ]
    samples = contest(contestants, rounds)
    pairs = [(cached, live), (cached, peer), (cached, tuned_peer), (small, peer), (small, tuned_peer)]
    rates = rate_table(f"Distillation epoch, student alpha {alpha} at {STUDENT_SIDE} px", "images", samples)
    return [rates, ratio_table(f"Ratio, student alpha {alpha}", samples, pairs)], samples


def write_classes(root: Path, count: int, side: int) -> Path:
    """``root/train/<class>/*.jpg`` and a small ``root/val``, as image folders have them."""
    for number in range(CLASSES):
        write_photos(root / "train" / f"class{number}", count // CLASSES, side, side, seed=number)
        write_photos(root / "val" / f"class{number}", 1, side, side, seed=100 + number)
    return root


def main() -> None:
    """Command line."""
    options = parser("teacher_cache", __doc__, rounds=5)
    options.add_argument("--images", type=int, default=192, help="pictures of an epoch (default 192)")
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--side", type=int, default=112, help="teacher's input in pixels (default 112)")
    options.add_argument("--alphas", type=float, nargs="+", default=[0.25, 0.5], help="widths of the student")
    options.add_argument("--workers", type=int, default=1, help="loader workers (default 1)")
    given = options.parse_args()
    count, batch, side, alphas, rounds = given.images, given.batch, given.side, given.alphas, given.rounds
    if given.quick:
        count, batch, side, alphas, rounds = 8, 4, 64, [0.25], 1
    tables, samples = [], {}
    with tempfile.TemporaryDirectory() as folder:
        root = write_classes(Path(folder) / "pictures", count, 256)
        for alpha in alphas:
            found, measured = duel(root, alpha, batch, side, given.workers, rounds)
            tables += found
            samples[f"alpha {alpha}"] = raw(measured)
    notes = [
        "The pixels of a row are those of the teacher's input. What is stored was computed before, at about the time "
        "of one live epoch per view, once for all students.",
        "Left out on both sides: validation, averaged weights, the start of the workers.",
    ]
    settings = {
        "images": count,
        "batch": batch,
        "workers": given.workers,
        "teacher": TEACHER,
        "rounds": rounds,
        "timm": timm.__version__,
    }
    finish(Result("teacher_cache", settings, tables, notes, samples), given.output)


if __name__ == "__main__":
    main()
