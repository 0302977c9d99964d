"""The position beside a picture in a shard: a JSON object, or a text with two numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnvision.geo.coordinate_columns import USUAL_NAMES


class PlaceError(ValueError):
    """A member holds no position; the text says why."""


@dataclass(frozen=True)
class PlaceKeys:
    """Names of a JSON object's fields; dots lead into objects inside (``exif.gps.lat``).

    Attributes:
        latitude: None looks for the usual names.
        longitude: None looks for the usual names.
    """

    latitude: str | None = None
    longitude: str | None = None


def place_of(data: bytes, kind: str, keys: PlaceKeys) -> tuple[float, float]:
    """Latitude and longitude of a member, unchecked; NaN for empty fields.

    Args:
        data: The member's content.
        kind: "json", or "txt" for two numbers with a comma or blanks between them.
        keys: Of the JSON object.

    Raises:
        PlaceError: There is no position.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise PlaceError("no UTF-8 text") from None
    if kind != "json":
        words = [word for word in re.split(r"[\s,;]+", text) if word]
        if len(words) != 2:
            raise PlaceError(f"{len(words)} words instead of two numbers")
        return _number(words[0]), _number(words[1])
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise PlaceError("no JSON") from None
    if not isinstance(fields, Mapping):
        raise PlaceError("no JSON object")
    latitude, longitude = _field(fields, keys.latitude, "latitude"), _field(fields, keys.longitude, "longitude")
    return _number(latitude), _number(longitude)


def _field(fields: Mapping[str, Any], name: str | None, what: str) -> Any:
    if name is None:
        usual = USUAL_NAMES[what]
        for given, found in fields.items():
            if given.lower() in usual:
                return found
        raise PlaceError(f"no field {' or '.join(usual[:2])}; there are {', '.join(list(fields)[:8]) or 'none'}")
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise PlaceError(f"no field {name}")
        value = value[part]
    return value


def _number(value: Any) -> float:
    if value is None or value == "":
        return float("nan")
    try:
        return float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):  # JSON's whole numbers have any length
        raise PlaceError(f"{str(value)[:20]!r} is no number") from None
