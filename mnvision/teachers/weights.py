"""Weights and class names of other people's models, from local files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mnvision.backbones.pretrained.classes import labels_beside, parse_labels
from mnvision.checkpoints import read_checkpoint
from mnvision.errors import UserError
from mnvision.teachers.base import one_line

# Where training programs put the weights within what they save, averaged ones first.
CONTAINERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.", "model.")

log = logging.getLogger(__name__)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a local file; names lose what ``DataParallel`` and ``torch.compile`` put before them.

    Args:
        path: .safetensors, or .pth / .pt / .bin / .ckpt loaded with ``weights_only=True``.

    Raises:
        UserError: Missing, damaged, or not a mapping of names to tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a local file of weights (.safetensors, .pth, .pt, .ckpt)")
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state: Mapping[str, object] = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path}: damaged or truncated safetensors file ({one_line(error)})") from error
    else:
        content = read_checkpoint(path)
        inside = (content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping) and content[key])
        state = next(inside, content)
    tensors = {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if not tensors or len(tensors) != len(state):
        raise UserError(f"{path}: holds no state dict (a flat mapping of names to tensors)")
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def read_names(class_names: str | Path | None, count: int | None, beside: Path | None = None) -> tuple[str, ...] | None:
    """Names of a teacher's columns from a text file, one per line.

    Args:
        class_names: The file; None looks for ``FILE.labels.txt`` or ``labels.txt`` beside the weights.
        count: Columns of the teacher; None where it does not show them, as in a detector's labels.
        beside: The file of weights, if there is one.

    Returns:
        The names; None where there is no such file, or where the one beside the weights has another number of
        lines, which is logged.

    Raises:
        UserError: The file that was given is missing, unreadable, or has another number of names.
    """
    if class_names is None:
        found = None if beside is None else labels_beside(beside)
        if found is not None and count not in (None, len(found)):
            log.warning("the labels beside %s are %d, its columns %d: not used", beside, len(found), count)
            return None
        return found
    path = Path(class_names).expanduser()
    try:
        names = parse_labels(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"teacher.class_names={path}: cannot be read as UTF-8 text ({one_line(error)})") from error
    if count not in (None, len(names)):
        raise UserError(f"teacher.class_names={path}: {len(names)} names, the teacher has {count} columns")
    return names
