"""Several heads trained together: each is an ordinary task, and one pass of the trunk feeds them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.losses.joint import Weighting, conflicts, mean_over_processes
from mnvision.metrics.joint import Monitored, joint_score
from mnvision.multitask import MultiTaskModel
from mnvision.optim import FineTuning
from mnvision.types import JointBatch, JointPart
from tasks.base import VisionTask, joint_name
from tasks.joint_parts import own_rates, span, take
from tasks.sharded_centres import CentredTask, ShardedCentres

JOINT = "val/joint"
"""The score over all heads, see :func:`~mnvision.metrics.joint.joint_score`."""


class MultiTask(CentredTask):
    """Trains and evaluates heads of a :class:`~mnvision.multitask.MultiTaskModel`.

    A head's task is the one that trains it alone, built on ``model.part(name)``: its losses, teacher, metrics and
    calibration are its own, and it logs under its name (``train/ssd/loss``, ``val/ssd/AP``). Heads of the model
    without a task are carried along: their weights and statistics stay as they are.

    Besides, ``train/loss`` is the joint loss, ``train/weight/<head>`` each head's factor in it,
    ``train/conflict/<a>_<b>`` the cosine of two heads' gradients in the trunk, and ``val/joint`` the joint score.

    Args:
        model: The trunk and all heads.
        metadata: Stored in every checkpoint; what it says of the trained heads comes from their tasks.
        tasks: By head.
        data: Data module by head.
        monitored: By head what the joint score is made of.
        weighting: Of the heads' losses.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        conflict_every: Optimizer steps between two looks at the cosines of gradients, each as expensive as a backward
            pass per head; 0 never looks.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: Compile the trunk and the heads with ``torch.compile`` for training.

    Raises:
        UserError: ``conflict_every`` is negative.
    """

    model: MultiTaskModel

    def __init__(
        self,
        model: MultiTaskModel,
        metadata: Metadata,
        tasks: Mapping[str, VisionTask],
        data: Mapping[str, Any],
        monitored: Mapping[str, Monitored],
        weighting: Weighting,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        conflict_every: int = 0,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile)
        if isinstance(conflict_every, bool) or not isinstance(conflict_every, int) or conflict_every < 0:
            raise UserError(f"multitask.conflict_every={conflict_every}: give a whole number of at least 0")
        for name, task in tasks.items():
            task.join(self, name, data[name])
        self.tasks = nn.ModuleDict(tasks)
        self.weighting = weighting
        self.monitored = dict(monitored)
        self.conflict_every = conflict_every
        self._heads = {joint_name(one.metric, name): name for name, one in self.monitored.items()}
        # Sum and count by head; of what is averaged over pictures, those of this process.
        self._measured: dict[str, Tensor] = {}
        self._freeze_carried()

    @property
    def parts(self) -> dict[str, VisionTask]:
        """The trained heads' tasks, by name."""
        found: dict[str, Any] = dict(self.tasks.items())
        return found

    @property
    def carried(self) -> list[str]:
        """Heads that are not trained."""
        return [name for name in self.model.names if name not in self.tasks]

    @property
    def headline(self) -> list[str]:
        """Metrics for one line per epoch: each head's own."""
        return list(self._heads)

    @property
    def last_shared(self) -> nn.Parameter:
        """Weights of the last layer of the trunk that all trained heads use."""
        depth = min(len(task.model.backbone.blocks) for task in self.parts.values())  # type: ignore[union-attr, arg-type]
        convolutions = [part for part in self.model.backbone.blocks[depth - 1].modules() if isinstance(part, nn.Conv2d)]
        return convolutions[-1].weight  # type: ignore[return-value]

    def evaluate_with(self, model: nn.Module) -> None:
        """Measure metrics on ``model`` from now on, those of each head on its part."""
        super().evaluate_with(model)
        for name, task in self.parts.items():
            task.evaluate_with(model.part(name))  # type: ignore[operator]

    def fine_tune(self, settings: FineTuning) -> None:
        """See :class:`~tasks.base.VisionTask`; normalisations of heads learn at the rates of their layers.

        Raises:
            UserError: Gradients in the trunk are to be looked at, and it has none.
        """
        super().fine_tune(settings)
        self._scales |= own_rates(self.model, self._scales)
        looked_at = self.weighting.watches_trunk or self.conflict_every
        if looked_at and not self.last_shared.requires_grad:
            raise UserError(
                "the trunk is frozen, so it has no gradients to compare: give multitask.weighting=fixed or uncertainty "
                "and multitask.conflict_every=0"
            )
        self._freeze_carried()

    def _freeze_carried(self) -> None:
        norms = [self.model.norms[name] for name in self.carried if name in self.model.norms]
        frozen = [*(self.model.heads[name] for name in self.carried), *norms]
        for part in frozen:
            part.requires_grad_(False)
        self._frozen = (*self._frozen, *frozen)

    def setup(self, stage: str) -> None:
        """Give the heads' tasks the trainer, and let them build what depends on their data."""
        for task in self.parts.values():
            task.trainer = self.trainer
            task.setup(stage)

    def on_fit_start(self) -> None:
        """Compile, and let the heads' tasks look at their data.

        Raises:
            UserError: Several processes, steps without some of the heads, and a strategy that cannot do that.
        """
        strategy, data = self.trainer.strategy, self.trainer.datamodule  # type: ignore[attr-defined]
        several = isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters")
        if several and not getattr(data, "whole_steps", True):
            raise UserError(
                "not every step holds every head, so parts of the model go unused: give"
                " trainer.strategy=ddp_find_unused_parameters_true, or multitask.draw=round_robin with all heads"
            )
        if self._compile:
            parts = [self.model.part(name) for name in self.tasks]
            for part in (self.model.backbone, *(p.backbone for p in parts), *(p.head for p in parts)):
                part.compile()
        for task in self.parts.values():
            task.on_fit_start()

    def on_fit_end(self) -> None:
        """Let the heads' tasks say what they have to."""
        for task in self.parts.values():
            task.on_fit_end()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Note which rows of a joint batch follow each other, while that can be read without waiting for a device."""
        for group in batch.get("groups", ()):
            for part in group["parts"]:
                part["rows"] = span(part["rows"])
        return batch

    def training_step(self, batch: JointBatch, batch_idx: int) -> Tensor:
        """The joint loss of one step."""
        losses, size = self.head_losses(batch), sum(len(group["images"]) for group in batch["groups"])
        joint = self.weighting(losses)
        shown = {f"weight/{name}": value for name, value in zip(self.weighting.names, self.weighting.weights().clone())}
        if self.weighting.watches_trunk:
            self.weighting.balance(losses, self.last_shared)
        if self.conflict_every and self.global_step % self.conflict_every == 0:
            shared = [p for p in self.model.backbone.parameters() if p.requires_grad]
            shown |= {f"conflict/{a}_{b}": value for (a, b), value in conflicts(losses, shared).items()}
        self.log_losses("train", {"loss": joint, **shown}, size)
        return joint

    def head_losses(self, batch: JointBatch) -> dict[str, Tensor]:
        """The loss of each head that has a part in a step; the mean where it has several."""
        found: dict[str, list[Tensor]] = {}
        for group in batch["groups"]:
            images = group["images"].contiguous(memory_format=self.memory_format)
            maps = self.model.maps(images, list(dict.fromkeys(part["head"] for part in group["parts"])))
            for part in group["parts"]:
                name = part["head"]
                found.setdefault(name, []).append(self._learn(part, images, maps[name]))
        return {name: torch.stack(losses).mean() for name, losses in found.items()}

    def _learn(self, part: JointPart, images: Tensor, maps: list[Tensor]) -> Tensor:
        task, rows = self.parts[part["head"]], span(part["rows"])
        backbone: Any = task.model.backbone
        batch = {**part["batch"], "images": take(images, rows)}
        own = [take(one, rows) for one in maps]
        by_stride = dict(zip(backbone.feature_strides, own, strict=True)) if task.gives_maps else None
        return task.learn(task.trained_outputs(own, batch), batch, by_stride)

    def on_validation_model_train(self) -> None:
        """Back to training, the heads' parts too, which Lightning does not know."""
        super().on_validation_model_train()
        for name in self.tasks:
            self.model.part(name).training = self.model.training

    def on_validation_epoch_start(self) -> None:
        """Let the heads' tasks forget the previous epoch."""
        self._measured = {}
        for task in self.parts.values():
            task.on_validation_epoch_start()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A batch of one head's own loader; they come in the heads' order."""
        task: Any = list(self.parts.values())[dataloader_idx]
        task.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """The heads' metrics, and the joint score; the same in every process."""
        for task in self.parts.values():
            task.on_validation_epoch_end()
        none = torch.zeros(2, dtype=torch.float64, device=self.device)
        measured = mean_over_processes(torch.stack([self._measured.get(name, none) for name in self.monitored]))
        rows = zip(self.monitored, measured.tolist())
        score = joint_score({name: total / count for name, (total, count) in rows if count}, self.monitored)
        if not math.isnan(score):
            self.log(JOINT, score)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; keeps what the joint score is made of."""
        super().log(name, value, *args, **kwargs)
        if (head := self._heads.get(name)) is not None:
            count = kwargs.get("batch_size") or 1
            number = torch.as_tensor(value, dtype=torch.float64, device=self.device).detach()
            found = torch.stack([number * count, torch.full_like(number, count)])
            self._measured[head] = self._measured[head] + found if head in self._measured else found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that makes the file usable alone; see :class:`~tasks.sharded_centres.CentredTask`."""
        self.metadata.heads |= {name: task.metadata.as_head() for name, task in self.parts.items()}
        super().on_save_checkpoint(checkpoint)

    def take_up(self, stored: Metadata) -> None:
        """Go on with what the heads' tasks have found out.

        Raises:
            UserError: A head has other classes.
        """
        super().take_up(stored)
        for name, task in self.parts.items():
            task.take_up(stored.head(name))

    def all_centres(self) -> Iterator[ShardedCentres]:
        """Those of the heads' tasks."""
        yield from (task.centres for task in self.parts.values() if task.centres is not None)
