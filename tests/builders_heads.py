"""Heads of several kinds on one small trunk, with pictures and labels in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mnvision.build import build_model
from mnvision.callbacks.checkpoint_io import AtomicCheckpointIO
from mnvision.checkpoints import Metadata
from mnvision.losses.attributes import AttributeLoss
from mnvision.losses.joint import FixedWeights, Weighting
from mnvision.losses.margins import ArcFace
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.metrics.joint import Monitored
from mnvision.multitask import MultiTaskModel
from tasks.base import VisionTask
from tasks.detection import DetectionTask
from tasks.face_attributes import FaceAttributesTask
from tasks.face_embeddings import FaceEmbeddingsTask
from tasks.multitask import MultiTask

SIDE, PEOPLE, DIM = 64, 3, 6
ATTRIBUTES, CLASSES = ["Red", "Dark"], ["disc", "ring", "star"]
BACKBONE: dict[str, Any] = {
    "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
    "alpha": 0.25,
    "resolution": SIDE,
    "variant": "shallow",
    "bn_momentum": 0.3,
}
_PIXELS: dict[str, Any] = {"mean": [127.5] * 3, "std": [127.5] * 3}
MODELS: dict[str, dict[str, Any]] = {
    "ssd": {
        "_target_": "mnvision.models.Detector",
        "backbone": {**BACKBONE, "out_strides": [16, 32]},
        "head": {"_target_": "mnvision.heads.ssd.SSDHead", "num_classes": 3, "resolution": SIDE, "alpha": 0.25},
        "decoder": {"_target_": "mnvision.boxes.postprocess.SSDDecoder"},
        **_PIXELS,
    },
    "attributes": {
        "_target_": "mnvision.models.AttributeClassifier",
        "backbone": BACKBONE,
        "head": {"_target_": "mnvision.heads.attributes.AttributeHead", "num_classes": len(ATTRIBUTES)},
        "decoder": {"_target_": "mnvision.heads.attributes.AttributeScores"},
        **_PIXELS,
    },
    "embedding": {
        "_target_": "mnvision.models.Embedder",
        "backbone": BACKBONE,
        "head": {"_target_": "mnvision.heads.embedding.EmbeddingHead", "resolution": SIDE, "dim": DIM},
        "decoder": {"_target_": "mnvision.heads.embedding.UnitLength"},
        **_PIXELS,
    },
}
MONITORED = {
    "ssd": Monitored("val/AP", "max"),
    "attributes": Monitored("val/mAP", "max"),
    "embedding": Monitored("val/accuracy", "max"),
}


class HeadData(pl.LightningDataModule):
    """What a head's task and a trainer want of a data module; ``steps`` batches of ``size`` pictures."""

    labelled = True
    num_identities = PEOPLE

    def __init__(self, name: str, steps: int = 2, size: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.class_names = {"ssd": CLASSES, "attributes": ATTRIBUTES}.get(name, [])
        generator = torch.Generator().manual_seed(seed)
        self.train = [head_batch(name, size, i * size, generator) for i in range(steps)]
        self.val = [head_batch(name, size, i * size, generator) for i in range(2)]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=None)  # type: ignore[arg-type]

    def source(self, split: str) -> Any:
        batches = self.train if split == "train" else self.val
        return SimpleNamespace(labels=np.concatenate([batch["labels"].numpy() for batch in batches]))

    def pairs(self, split: str) -> tuple[Any, Any, Any]:
        labels = torch.cat([batch["labels"] for batch in self.val]).numpy()
        first, second = np.triu_indices(len(labels), 1)
        return np.stack([first, second], axis=1), labels[first] == labels[second], np.arange(len(first)) % 5


class JointData(pl.LightningDataModule):
    """A joint batch of one batch per head, as :class:`~mnvision.data.joint.JointDataModule` makes it."""

    def __init__(self, data: Mapping[str, HeadData], together: bool) -> None:
        super().__init__()
        self.data, self.together = dict(data), together

    def train_dataloader(self) -> DataLoader[Any]:
        steps = zip(*(data.train for data in self.data.values()))
        joined = [joint_batch(dict(zip(self.data, batches)), self.together) for batches in steps]
        return DataLoader(joined, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        return [data.val_dataloader() for data in self.data.values()]


def head_batch(name: str, size: int, first: int, generator: torch.Generator) -> dict[str, Any]:
    """Blotches; the labels have nothing to do with them."""
    small = torch.rand(size, 3, 5, 5, generator=generator)
    images = (torch.nn.functional.interpolate(small, size=(SIDE, SIDE)) * 255).to(torch.uint8)
    if name == "ssd":
        corners = torch.rand(size, 2, 2, generator=generator) * 24
        boxes = torch.cat([corners, corners + 30], dim=2)
        labels = torch.randint(0, 3, (size, 2), generator=generator)
        targets = {"boxes": boxes, "labels": labels, "crowd": torch.zeros(size, 2, dtype=torch.bool)}
        sizes = torch.full((size, 2), SIDE)
        return {"images": images, "targets": targets, "image_ids": torch.arange(first, first + size), "sizes": sizes}
    if name == "attributes":
        labels = torch.randint(-1, 2, (size, len(ATTRIBUTES)), generator=generator).to(torch.int8)
    else:
        labels = torch.arange(size) % PEOPLE
    return {"images": images, "labels": labels, "indices": torch.arange(first, first + size)}


def joint_batch(batches: Mapping[str, Mapping[str, Any]], together: bool) -> dict[str, Any]:
    """One group of all, or one for each."""
    groups: list[dict[str, Any]] = []
    for name, batch in batches.items():
        if not groups or not together:
            groups.append({"images": [], "parts": []})
        first = sum(map(len, groups[-1]["images"]))
        own = {key: value for key, value in batch.items() if key != "images"}
        rows = torch.arange(first, first + len(batch["images"]))
        groups[-1]["images"].append(batch["images"])
        groups[-1]["parts"].append({"head": name, "rows": rows, "batch": own})
    return {"groups": [{**group, "images": torch.cat(group["images"])} for group in groups]}


def head_task(name: str, model: Any, **options: Any) -> VisionTask:
    """The ordinary task of a head."""
    optimizer = options.pop("optimizer", partial(torch.optim.SGD, lr=0.01))
    names: Sequence[str] = {"ssd": CLASSES, "attributes": ATTRIBUTES}.get(name, [])
    metadata = Metadata(model.kind, MODELS[name], list(names))
    if name == "ssd":
        return DetectionTask(model, metadata, MultiBoxLoss(), optimizer, **options)
    if name == "attributes":
        return FaceAttributesTask(model, metadata, AttributeLoss(), optimizer, **options)
    return FaceEmbeddingsTask(model, metadata, partial(ArcFace, scale=8.0), optimizer, **options)


def joint_model(*names: str, norms: str = "shared", seed: int = 0) -> MultiTaskModel:
    """Untrained; its config is :func:`joint_config`."""
    torch.manual_seed(seed)
    model: MultiTaskModel = build_model(joint_config(*names, norms=norms))
    return model


def joint_config(*names: str, norms: str = "shared") -> dict[str, Any]:
    """A model of these heads."""
    heads = {name: deepcopy(MODELS[name]) for name in names}
    return {"_target_": "mnvision.multitask.MultiTaskModel", "heads": heads, "norms": norms}


def joint_task(
    model: MultiTaskModel,
    data: Mapping[str, HeadData],
    weighting: Weighting | None = None,
    optimizer: Any = None,
    monitored: Mapping[str, Monitored] = MONITORED,
    **options: Any,
) -> MultiTask:
    """The task of the heads that ``data`` names; other heads of the model are carried along."""
    tasks = {name: head_task(name, model.part(name)) for name in data}
    metadata = Metadata("multitask", joint_config(*model.names, norms="per_head" if model.own_norms else "shared"), [])
    return MultiTask(
        model,
        metadata,
        tasks,
        data,
        {name: monitored[name] for name in data},
        weighting or FixedWeights(list(data)),
        optimizer or partial(torch.optim.SGD, lr=0.01),
        **options,
    )


def fit(task: VisionTask, data: Any, folder: Path, ckpt: Path | None = None, **options: Any) -> pl.Trainer:
    """A short run on the CPU."""
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "plugins": [AtomicCheckpointIO()],
    }
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(**(settings | options))
    trainer.fit(task, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return trainer


class Gradients(pl.Callback):
    """Keeps the gradients of the first step, before the optimizer's."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.found:
            named = pl_module.named_parameters()
            self.found = {name: p.grad.clone() for name, p in named if p.grad is not None}
