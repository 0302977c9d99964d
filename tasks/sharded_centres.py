"""Class centres that differ from process to process: what a task must do otherwise than for its other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mnvision.errors import UserError
from mnvision.losses.margins import MarginSoftmax
from mnvision.losses.sharding import whole_on_first
from tasks.base import VisionTask


def clip_norm(spread: Sequence[ShardedCentres], parameters: Iterable[nn.Parameter], limit: float) -> None:
    """As ``clip_grad_norm_``, with the norm over the centres of all processes: every process scales alike.

    Args:
        spread: Centres of which this process holds a part; at least one.
        parameters: All that are trained, these centres among them.
        limit: Of the norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    own = [one.loss.centres.grad for one in spread if one.loss.centres.grad is not None]
    shared = [gradient.norm().square() for gradient in gradients if all(gradient is not one for one in own)]
    centres = torch.stack([torch.zeros_like(shared[0]), *(gradient.norm().square() for gradient in own)]).sum()
    distributed.all_reduce(centres)
    norm = torch.stack([*shared, centres]).sum().sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))


class ShardedCentres:
    """Spreads a margin loss over the processes of a run, and writes and reads whole centres in its checkpoints.

    A checkpoint is the same for every number of processes, so a run can be resumed with another one.

    Args:
        task: Holds ``loss``; its optimizer is built on ``task.parameter_groups()``.
        loss: The margin loss.
        name: Of the centres in the task's state dict.
    """

    def __init__(self, task: VisionTask, loss: MarginSoftmax, name: str = "loss.centres") -> None:
        self.task, self.loss, self.name = task, loss, name

    def spread(self) -> None:
        """Split the centres over the processes if there are several; before DDP wraps the task."""
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return
        self.loss.shard_over(distributed.get_rank(), distributed.get_world_size())
        # Else DDP would copy the first process's centres to all, and average gradients of different centres.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.task, [self.name])

    @property
    def is_spread(self) -> bool:
        """Whether this process holds only a part."""
        return self.loss.shard is not None

    def make_whole(self, checkpoint: dict[str, Any]) -> None:
        """Replace this process's centres and their optimizer state by all of them, in the first process."""
        if self.is_spread:
            self._replace(checkpoint, self._whole)

    def take_own(self, checkpoint: dict[str, Any]) -> None:
        """Replace whole centres and their optimizer state by those of this process.

        Raises:
            UserError: The checkpoint was trained on another number of identities.
        """
        stored = checkpoint["state_dict"].get(self.name)
        rows = self.loss.num_identities * self.loss.centres_per_identity
        if stored is not None and len(stored) != rows:
            raise UserError(
                f"ckpt_path: the checkpoint was trained on {len(stored) // self.loss.centres_per_identity} identities, "
                f"but the data have {self.loss.num_identities}; resume on the same data, or start anew from its "
                "weights with backbone.pretrained=FILE"
            )
        if self.is_spread and stored is not None:
            self._replace(checkpoint, lambda rows: self.loss.own_rows(rows).clone(), stored.shape)

    def _whole(self, rows: Tensor) -> Tensor:
        assert self.loss.shard is not None
        each = self.loss.centres_per_identity
        grouped = rows.unflatten(0, (-1, each))
        whole = whole_on_first(grouped, self.loss.shard, self.loss.num_identities)
        return rows if whole is None else whole.flatten(0, 1)

    def _replace(
        self, checkpoint: dict[str, Any], change: Callable[[Tensor], Tensor], shape: torch.Size | None = None
    ) -> None:
        """Change the centres and all of the optimizer's state that has their shape."""
        shape = self.loss.centres.shape if shape is None else shape
        checkpoint["state_dict"][self.name] = change(checkpoint["state_dict"][self.name])
        ordered = [p for group in self.task.parameter_groups() for p in group["params"]]
        position = next(i for i, p in enumerate(ordered) if p is self.loss.centres)
        for optimizer in checkpoint.get("optimizer_states", []):
            state = optimizer["state"].get(position, {})
            changed = {k: change(v) if isinstance(v, Tensor) and v.shape == shape else v for k, v in state.items()}
            if state:
                optimizer["state"] = {**optimizer["state"], position: changed}


class CentredTask(VisionTask):
    """A task with class centres that may be spread over the processes: they are clipped, saved and read as a whole."""

    def all_centres(self) -> Iterator[ShardedCentres]:
        """What is spread, or could be."""
        if self.centres is not None:
            yield self.centres

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's own, but for a norm that runs over class centres in several processes."""
        spread = [centres for centres in self.all_centres() if centres.is_spread]
        if not spread or not gradient_clip_val or gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            clip_norm(spread, [p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that makes the file usable alone; class centres are saved whole."""
        super().on_save_checkpoint(checkpoint)
        for centres in self.all_centres():
            centres.make_whole(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from another task, model or classes; take this process's class centres."""
        for centres in self.all_centres():
            centres.take_own(checkpoint)
        super().on_load_checkpoint(checkpoint)
