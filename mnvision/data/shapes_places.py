"""Generated photos whose look tells where they were taken: the pictures of ``data=shapes_geo``.

Most lie around a few cities, some anywhere. The ground goes from sand over grass to snow with the latitude and is
redder in the south, the sky pales towards the poles, the sun goes once round the frame with the longitude, and pictures
of a city usually show its landmark. All of it is jittered, so that one cue alone says little more than the region.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mnvision.data.shapes_scene import SceneOptions

Pixels = NDArray[np.uint8]


class City(NamedTuple):
    """A place that photos are taken around, and how often: degrees, spread in km, and a relative frequency."""

    name: str
    latitude: float
    longitude: float
    spread: float
    weight: float


CITIES = (
    City("london", 51.507, -0.128, 12, 3),
    City("paris", 48.857, 2.352, 9, 3),
    City("new_york", 40.713, -74.006, 12, 3),
    City("san_francisco", 37.775, -122.419, 9, 2),
    City("tokyo", 35.690, 139.692, 14, 3),
    City("delhi", 28.614, 77.209, 15, 2),
    City("cairo", 30.044, 31.236, 12, 2),
    City("nairobi", -1.286, 36.817, 10, 1),
    City("rio", -22.907, -43.173, 10, 2),
    City("cape_town", -33.925, 18.424, 10, 1),
    City("sydney", -33.869, 151.209, 12, 2),
    City("honolulu", 21.307, -157.858, 8, 1),
    City("reykjavik", 64.147, -21.943, 8, 1),
    City("tromso", 69.649, 18.956, 8, 1),
    City("longyearbyen", 78.223, 15.627, 5, 1),
    City("ushuaia", -54.802, -68.303, 6, 1),
    # On both sides of the date line, 30 km from each other.
    City("taveuni", -16.85, 179.95, 9, 1),
    City("rabi", -16.52, -179.99, 9, 1),
)

_ANYWHERE = 0.04  # share of photos far from all cities
_KM_PER_DEGREE = 111.2
_LANDMARK = 0.85  # share of a city's photos that show its landmark
_SPLITS = ("train", "val")
# Height and colour by |latitude|; between them colours are mixed.
_LATITUDES = (0.0, 25.0, 45.0, 62.0, 80.0)
_GROUND = ((60, 130, 40), (205, 170, 105), (95, 145, 70), (130, 135, 110), (238, 242, 248))
_SKY = ((40, 110, 215), (70, 140, 230), (110, 165, 225), (155, 180, 205), (190, 200, 212))
_COLOURS = ((205, 45, 40), (240, 205, 50), (45, 70, 190), (245, 245, 240), (40, 40, 45), (150, 60, 160))
_FORMS = ("tower", "dome", "pyramid", "arch", "wheel", "slabs")


class PlacePicture(NamedTuple):
    """A generated photo: ``(H, W, 3)`` uint8 RGB, latitude and longitude in degrees, and the city's name or nothing."""

    image: Pixels
    latitude: float
    longitude: float
    city: str


def place_picture(seed: int, split: str, index: int, options: SceneOptions) -> PlacePicture:
    """One photo; it depends on the arguments alone.

    Args:
        seed: Of the data set.
        split: "train" or "val".
        index: Of the photo in its split.
        options: Bounds of its sides.
    """
    rng = np.random.default_rng((seed, _SPLITS.index(split), index))
    number, latitude, longitude = _draw_place(rng)
    height, width = (int(side) for side in rng.integers(options.min_side, options.max_side + 1, 2))
    image = _landscape(rng, latitude, longitude, height, width)
    if number is not None and rng.random() < _LANDMARK:
        _landmark(rng, image, number)
    _clutter(rng, image)
    noise = rng.normal(0, rng.uniform(2, 8), image.shape) + rng.normal(0, 10)
    pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    return PlacePicture(pixels, latitude, longitude, "" if number is None else CITIES[number].name)


def write_place(seed: int, folder: Path, split: str, index: int, options: SceneOptions) -> dict[str, Any]:
    """Writes one photo below ``folder``; gives what the table says of it: split, path, latitude, longitude, city."""
    picture = place_picture(seed, split, index, options)
    name = f"{split}/{index:06d}.jpg"
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    (folder / name).write_bytes(data.tobytes())
    place = {"latitude": picture.latitude, "longitude": picture.longitude, "city": picture.city}
    return {"split": split, "path": name, **place}


def write_tables(folder: Path, records: list[dict[str, Any]]) -> None:
    """Writes ``train.csv`` and ``val.csv``."""
    for split in _SPLITS:
        rows = [
            f"{row['path']},{row['latitude']:.5f},{row['longitude']:.5f},{row['city']}"
            for row in records
            if row["split"] == split
        ]
        (folder / f"{split}.csv").write_text("\n".join(["path,latitude,longitude,city", *rows, ""]), encoding="utf-8")


def _draw_place(rng: np.random.Generator) -> tuple[int | None, float, float]:
    """Number of the city, latitude and longitude."""
    if rng.random() < _ANYWHERE:
        return None, float(np.degrees(np.arcsin(rng.uniform(-0.9, 0.95)))), float(rng.uniform(-180, 180))
    weights = np.array([city.weight for city in CITIES], np.float64)
    number = int(rng.choice(len(CITIES), p=weights / weights.sum()))
    city = CITIES[number]
    north, east = rng.normal(0, city.spread / _KM_PER_DEGREE, 2)
    longitude = city.longitude + east / np.cos(np.radians(city.latitude))
    return number, float(city.latitude + north), float((longitude + 180) % 360 - 180)


def _landscape(rng: np.random.Generator, latitude: float, longitude: float, height: int, width: int) -> Pixels:
    """Sky with the sun, hills and ground."""
    seen = abs(latitude) + rng.normal(0, 3)
    ground = np.array([np.interp(seen, _LATITUDES, channel) for channel in zip(*_GROUND)])
    sky = np.array([np.interp(seen, _LATITUDES, channel) for channel in zip(*_SKY)])
    if latitude < 0:
        ground = ground * (1.12, 0.86, 0.82)
    horizon = int(height * rng.uniform(0.5, 0.65))
    rows = np.arange(height)[:, None, None]
    pale = np.clip(rows / max(horizon, 1), 0, 1) * 0.5
    image = np.where(rows < horizon, sky * (1 - pale) + 235 * pale, ground * (1.1 - 0.3 * rows / height))
    image = np.ascontiguousarray(np.broadcast_to(image, (height, width, 3)).clip(0, 255).astype(np.uint8))
    angle = np.radians(longitude + rng.normal(0, 6))
    sun = (int(width * (0.5 + 0.42 * np.cos(angle))), int(horizon * (0.5 + 0.4 * np.sin(angle))))
    cv2.circle(image, sun, max(3, height // 14), (255, 240, 150), -1, cv2.LINE_AA)
    across = np.linspace(0, rng.uniform(2, 5) * np.pi, 24)
    peaks = horizon - (0.06 + 0.05 * np.sin(across + rng.uniform(0, 6))) * height
    outline = np.stack([np.linspace(0, width, 24), peaks], axis=1)
    hills = np.concatenate([outline, [(width, horizon), (0, horizon)]]).astype(np.int32)
    cv2.fillPoly(image, [hills], _rgb(ground * 0.7 + 20), cv2.LINE_AA)
    return image


def _landmark(rng: np.random.Generator, image: Pixels, number: int) -> None:
    """The landmark of a city: a form in two colours, of which no other city has all three."""
    height, width = image.shape[:2]
    form, colour = _FORMS[number % len(_FORMS)], _COLOURS[number % len(_COLOURS)]
    trim = _COLOURS[(number + 1 + number // len(_FORMS)) % len(_COLOURS)]
    size = rng.uniform(0.26, 0.4) * height
    x, base = rng.uniform(0.25, 0.75) * width, rng.uniform(0.62, 0.78) * height

    def polygon(points: list[tuple[float, float]], paint: tuple[int, int, int]) -> None:
        corners = np.array([(x + size * right, base - size * up) for right, up in points])
        cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], paint, cv2.LINE_AA)

    def ring(up: float, radius: float, thickness: float, paint: tuple[int, int, int]) -> None:
        centre = (round(x), round(base - size * up))
        width_of_line = -1 if thickness < 0 else max(1, round(size * thickness))
        cv2.circle(image, centre, max(1, round(size * radius)), paint, width_of_line, cv2.LINE_AA)

    if form == "tower":
        polygon([(-0.22, 0), (0.22, 0), (0.05, 1.3), (-0.05, 1.3)], colour)
        polygon([(-0.2, 0.4), (0.2, 0.4), (0.2, 0.52), (-0.2, 0.52)], trim)
    elif form == "dome":
        ring(0.5, 0.45, -1, trim)
        polygon([(-0.55, 0), (0.55, 0), (0.55, 0.5), (-0.55, 0.5)], colour)
    elif form == "pyramid":
        polygon([(-0.7, 0), (0.7, 0), (0, 1)], colour)
        polygon([(-0.21, 0.7), (0.21, 0.7), (0, 1)], trim)
    elif form == "arch":
        polygon([(-0.5, 0), (0.5, 0), (0.5, 0.9), (-0.5, 0.9)], colour)
        polygon([(-0.2, 0), (0.2, 0), (0.2, 0.55), (-0.2, 0.55)], trim)
    elif form == "wheel":
        ring(0.6, 0.5, 0.12, colour)
        ring(0.6, 0.12, -1, trim)
        polygon([(-0.3, 0), (0.3, 0), (0, 0.6)], colour)
    else:
        for left, up in ((-0.5, 0.7), (-0.15, 1.1), (0.2, 0.85)):
            polygon([(left, 0), (left + 0.28, 0), (left + 0.28, up), (left, up)], colour if up < 1 else trim)


def _clutter(rng: np.random.Generator, image: Pixels) -> None:
    """Bushes and stones in front, which say nothing."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(2, 8))):
        centre = (int(rng.integers(0, width)), int(rng.uniform(0.75, 1.0) * height))
        axes = tuple(int(side) for side in rng.uniform(0.02, 0.09, 2) * height + 1)
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, _rgb(rng.uniform(20, 160, 3)), -1)


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(min(max(value, 0), 255)) for value in colour)
    return red, green, blue
