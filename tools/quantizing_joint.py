"""Fine-tuning several heads for int8: their checkpoint's model, rounded once, and how their tasks go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mnvision.checkpoints import Metadata, load_model, read_metadata
from mnvision.data.joint import named
from mnvision.errors import UserError
from mnvision.quantization.layers import quantize
from tasks.joint_parts import span, take
from tools.quantizing import Start, measure, require_all, require_backbone, take_over


@dataclass(frozen=True)
class JointStart(Start):
    """A multi-task checkpoint's model that computes as its int8 file will, with ranges of the trunk for all heads."""

    def prepare(self, task: Any, cfg: DictConfig, data: Any) -> None:
        """Measure the ranges and give the heads' tasks what they need to go on where the checkpoint ended.

        Args:
            task: Of all heads.
            cfg: The whole config.
            data: Joint batches, and the heads' own data modules.

        Raises:
            UserError: The data do not fit the checkpoint.
        """
        task.quantization = self.ranges  # a submodule: saved, restored and synchronised with the task
        for name, own in task.parts.items():
            with named(name):
                take_over(own, self.metadata.head(name), data.data[name])
        measure(self.ranges, self.model, cfg, data, show)


def joint_metadata(cfg: DictConfig, heads: Mapping[str, Any]) -> Metadata:
    """What the checkpoint to be fine-tuned says of itself, once it is known to have these heads.

    Raises:
        UserError: It has others.
    """
    metadata = read_metadata(cfg.init_from)
    if not metadata.heads:
        raise UserError(f"init_from={cfg.init_from} is a model of one head: leave task=multitask out")
    require_all(str(cfg.init_from), heads, metadata)
    require_backbone(cfg, next(iter(metadata.model["heads"].values())))
    norms = metadata.model.get("norms", "shared")
    if cfg.multitask.norms != norms == "shared":
        raise UserError(f"multitask.norms={cfg.multitask.norms}, but {cfg.init_from} has {norms} ones: leave it out")
    return metadata


def start_joint(cfg: DictConfig, config: dict[str, Any]) -> JointStart:
    """The model that ``init_from`` names, to be fine-tuned for int8.

    Args:
        cfg: The whole config.
        config: Of the model, as the checkpoint has it but for what was asked for otherwise.

    Raises:
        UserError: It cannot be quantised.
    """
    model, metadata = load_model(Path(cfg.init_from), config)
    model, ranges = quantize(model.train(), cfg.quantize.momentum, cfg.quantize.weights)
    return JointStart(model, ranges, metadata)


def show(model: Any, batch: Mapping[str, Any]) -> int:
    """Have a model answer a joint batch, each head on its own pictures; gives their number."""
    pictures = 0
    for group in batch["groups"]:
        images, parts = group["images"].to(model.mean.device), group["parts"]
        maps = model.maps(images, list(dict.fromkeys(part["head"] for part in parts)))
        for part in parts:
            rows = span(part["rows"])
            model.part(part["head"]).answer([take(one, rows) for one in maps[part["head"]]])
        pictures += len(images)
    return pictures
