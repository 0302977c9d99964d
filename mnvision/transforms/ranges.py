"""Range checks of augmentation options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mnvision.errors import UserError


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside a range.

    Raises:
        UserError: It lies outside, or is not a number.
    """
    if isinstance(value, (str, bool)) or value is None or not low <= value <= high:
        raise UserError(f"augment.{name} must lie in {low}..{high}, got {value}")


def check_pair(name: str, value: Sequence[float], low: float, high: float) -> None:
    """Refuses a pair that is not rising or leaves a range.

    Raises:
        UserError: It does.
    """
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2
    if not is_pair or not low <= value[0] <= value[1] <= high:
        raise UserError(f"augment.{name} must be a rising pair in {low}..{high}, got {value}")


def check_options(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses options that do not exist.

    Raises:
        UserError: Some are unknown; the text lists those that are known.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"unknown augment option {', '.join(unknown)}; known are {', '.join(known)}")
