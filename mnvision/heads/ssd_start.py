"""Start an SSD head from another one's weights: what has no classes as it is, class rows where classes correspond."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mnvision.heads.ssd import SSDHead

CLASS_ROWS = re.compile(r"predictors\.\d+\.cls(\.conv)?\.(weight|bias)")


@dataclass(frozen=True)
class SSDStart:
    """What :func:`start_ssd_head` copied.

    Attributes:
        shared: Tensors without classes (extra layers, box predictors) that were taken.
        anew: Those that were not, for want of a counterpart of the same shape.
        class_maps: Feature maps whose class predictors took rows.
    """

    shared: int
    anew: tuple[str, ...]
    class_maps: int


def is_ssd(stored: Mapping[str, Tensor]) -> bool:
    """Whether the weights of a head (names without ``head.``) are those of an :class:`SSDHead`."""
    return any(CLASS_ROWS.fullmatch(name) for name in stored)


def start_ssd_head(head: SSDHead, stored: Mapping[str, Tensor], num_stored: int, row_of: Mapping[int, int]) -> SSDStart:
    """Copy what fits; all else keeps what it had.

    Args:
        head: Changed in place.
        stored: Weights of another SSD head by name.
        num_stored: Its classes without background.
        row_of: The label there by the label here, of the classes that start from a row. If there is any, background
            starts from its row too.
    """
    shared, anew, class_maps = 0, [], 0
    columns = {0: 0} | {mine + 1: theirs + 1 for mine, theirs in row_of.items()} if row_of else {}
    with torch.no_grad():
        for name, own in head.state_dict().items():
            given = stored.get(name)
            if CLASS_ROWS.fullmatch(name):
                copied = given is not None and _copy_rows(own, head.num_classes + 1, given, num_stored + 1, columns)
                class_maps += copied and name.endswith("weight")
            elif given is not None and given.shape == own.shape:
                own.copy_(given)
                shared += 1
            else:
                anew.append(name)
    return SSDStart(shared, tuple(anew), class_maps)


def _copy_rows(own: Tensor, columns: int, given: Tensor, given_columns: int, chosen: Mapping[int, int]) -> bool:
    """Rows lie default box by default box; both need as many boxes a cell and the same inputs."""
    fits = own.shape[1:] == given.shape[1:] and own.shape[0] // columns * given_columns == given.shape[0]
    if not fits or not chosen:
        return False
    by_box = own.view(-1, columns, *own.shape[1:])
    by_box[:, list(chosen)] = given.view(-1, given_columns, *given.shape[1:])[:, list(chosen.values())].to(own.dtype)
    return True
