"""Where a photo was taken, from the GPS part of its Exif data.

Exif 2.32 (CIPA DC-008), section 4.6.6: tags 1 to 4 hold the hemisphere of the latitude (N or S), the latitude as three
rationals (degrees, minutes, seconds), and the same of the longitude (E or W).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

_READERS = 8
_HEMISPHERES = {"N": 1.0, "S": -1.0, "E": 1.0, "W": -1.0}


class Gps(NamedTuple):
    """What a file says of its place.

    Attributes:
        latitude: Degrees; NaN where it is not known.
        longitude: Degrees; NaN where it is not known.
        flaw: Why it is not known, to follow a number of files; None where it is.
    """

    latitude: float
    longitude: float
    flaw: str | None = None


NO_GPS = "without GPS position left out"
NO_PICTURE = "that cannot be read as pictures left out"
BROKEN = "with a broken GPS position left out"


def read_gps(paths: Sequence[Path]) -> Iterator[Gps]:
    """Position of each file, in order."""
    # For all threads at once: Pillow warns of flaws in Exif data, which are counted here.
    with warnings.catch_warnings(), ThreadPoolExecutor(_READERS) as pool:
        warnings.simplefilter("ignore")
        yield from pool.map(gps_of_file, paths)


def gps_of_file(path: Path) -> Gps:
    """Position of one file; never an error."""
    try:
        with Image.open(path) as image:
            tags = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return _without(NO_PICTURE)
    except Exception:  # Pillow parses a hostile structure and may raise anything, such as struct.error
        return _without(BROKEN)
    return gps_of_tags(tags)


def gps_of_tags(tags: Mapping[int, Any]) -> Gps:
    """Position in the GPS part's tags, by number."""
    base = ExifTags.GPS
    if base.GPSLatitude not in tags and base.GPSLongitude not in tags:
        return _without(NO_GPS)
    latitude = _degrees(tags.get(base.GPSLatitude), tags.get(base.GPSLatitudeRef), "NS")
    longitude = _degrees(tags.get(base.GPSLongitude), tags.get(base.GPSLongitudeRef), "EW")
    return _without(BROKEN) if math.isnan(latitude + longitude) else Gps(latitude, longitude)


def _without(flaw: str) -> Gps:
    return Gps(math.nan, math.nan, flaw)


def _degrees(value: Any, reference: Any, hemispheres: str) -> float:
    """Signed degrees; NaN where a part is no number, or the hemisphere is not given."""
    text = reference.decode("latin-1") if isinstance(reference, bytes) else str(reference)
    letter = text.strip("\0 ").upper()[:1]
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if letter not in hemispheres or not letter or not 1 <= len(parts) <= 3:
        return math.nan
    numbers = [_number(part) for part in parts]
    # Writers that have no seconds write 0/0 for them; without minutes it would be no place.
    if len(parts) == 3 and math.isnan(numbers[2]) and _is_zero_by_zero(parts[2]):
        numbers[2] = 0.0
    if not all(0 <= number < limit for number, limit in zip(numbers, (math.inf, 60.0 + 1e-9, 60.0 + 1e-9))):
        return math.nan
    return _HEMISPHERES[letter] * sum(number / 60**power for power, number in enumerate(numbers))


def _number(part: Any) -> float:
    try:
        return float(part)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan


def _is_zero_by_zero(part: Any) -> bool:
    return getattr(part, "numerator", None) == 0 and getattr(part, "denominator", None) == 0
