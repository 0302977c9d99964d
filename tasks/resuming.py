"""Whether a run can go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mnvision.checkpoints import KEY
from mnvision.errors import UserError
from mnvision.optim import SCALE


def check_resumable(task: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another task, another model, or another fine-tuning.

    Args:
        task: A :class:`~tasks.base.VisionTask`, as its run's config made it.
        checkpoint: Its whole content.

    Raises:
        UserError: It does not fit.
    """
    stored = checkpoint.get(KEY)
    if stored is None:
        raise UserError("ckpt_path: not one of our checkpoints; weights alone go to backbone.pretrained=FILE")
    if stored["kind"] != task.metadata.kind:
        raise UserError(f"ckpt_path: a checkpoint of a {stored['kind']} run cannot resume a {task.metadata.kind} run")
    own = task.state_dict()
    for key, value in checkpoint["state_dict"].items():
        if key not in own or own[key].shape != value.shape:
            have = tuple(own[key].shape) if key in own else "absent"
            raise UserError(
                f"ckpt_path: the checkpoint was trained with another model: {key} is {tuple(value.shape)} there "
                f"and {have} here; repeat the overrides of its run, or use resume=RUN_DIR"
            )
    for key in own.keys() - checkpoint["state_dict"].keys():
        raise UserError(
            f"ckpt_path: the checkpoint was trained without {key}; repeat the overrides of its run, or use "
            "resume=RUN_DIR"
        )
    groups = [(len(group["params"]), group.get(SCALE)) for group in task.parameter_groups()]
    for optimizer in checkpoint.get("optimizer_states", []):
        if [(len(group["params"]), group.get(SCALE)) for group in optimizer["param_groups"]] != groups:
            raise UserError(
                "ckpt_path: the checkpoint was trained with another fine_tuning.freeze or layer_decay; repeat "
                "them, or start a new run from its weights with init_from=FILE"
            )


def place_in_epoch(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where in its epoch a checkpoint's training loader was; None where that is not known."""
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    return states[0] if len(states) == 1 else None


def go_on(loader: Any, place: Mapping[str, Any] | None) -> None:
    """Have a training loader begin where a checkpoint left off.

    Lightning does so itself, but only where nothing asked for the number of steps before: a schedule does, which
    makes the loader before the checkpoint's loops are restored (2.6, ``FitLoop.setup_data``).
    """
    if place is not None and hasattr(loader, "load_state_dict"):
        loader.load_state_dict(place)
