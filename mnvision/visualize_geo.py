"""A photo with maps of where it may have been taken beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnvision.visualize import Color, caption_font, check_picture, shortened
from mnvision.world_map import RegionView, View, WorldView, borders, on_land

if TYPE_CHECKING:
    from mnvision.prediction.results_geo import ImageLocation

Pixels = NDArray[np.uint8]

_WIDTH, _WORLD, _REGION = 480, 240, 300  # pixels of the panel's maps at scale 1
_GAP, _LETTER, _LINES = 10, 15, 4.6
_SMALLEST = 360  # pixels of height from which on a photo is shown as it is
_WIDEST = 2000  # pixels of width that no photo is enlarged beyond
_NEAREST_KM, _FARTHEST_KM = 300.0, 5000.0  # half the height of the region's map
_LISTED = 3
_SEA, _LAND, _BORDER, _CELL_EDGE = (224, 233, 242), (250, 249, 245), (165, 165, 165), (120, 105, 105)
_DARK, _PALE, _MARK = (25, 25, 25), (120, 120, 120), (20, 60, 200)
_FAINTEST = 0.003  # of the greatest probability; cells below it are not coloured
_MOST_EDGES = 0.12  # share of a map's pixels on edges of cells beyond which they are not drawn


def draw_location_panel(image: Pixels, result: ImageLocation) -> Pixels:
    """A photo with a panel at its right: the answer in words, a map of the earth and one of the answer's region.

    Cells are coloured by their probability, the darkest being the most probable one. The region's map shows true
    distances from the answer. The result's size depends on the photo's size alone: all frames of a video get the same.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, not changed.
        result: What was predicted for it.

    Returns:
        ``(H', W', 3)`` uint8 RGB.

    Raises:
        UserError: The picture is not ``(H, W, 3)`` uint8.
    """
    check_picture(image)
    image = _enlarged(image)
    scale = float(np.clip(image.shape[0] / _height(1.0), 1.0, 2.0))
    panel = _panel(result, scale)
    height = max(image.shape[0], panel.shape[0])
    canvas = np.full((height, image.shape[1] + panel.shape[1], 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    canvas[: panel.shape[0], image.shape[1] :] = panel
    return canvas


def _enlarged(image: Pixels) -> Pixels:
    factor = max(1, min(-(-_SMALLEST // image.shape[0]), _WIDEST // image.shape[1]))
    if factor == 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


def _height(scale: float) -> int:
    return round(scale * (_WORLD + _REGION + 4 * _GAP + 1.5 * _LETTER * _LINES))


def _panel(result: ImageLocation, scale: float) -> Pixels:
    width, gap, line = round(scale * _WIDTH), round(scale * _GAP), round(scale * 1.5 * _LETTER)
    canvas = Image.new("RGB", (width + 2 * gap, _height(scale)), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    font = caption_font(round(scale * _LETTER))
    places = result.top(_LISTED)

    def write(row: float, text: str, color: Color) -> None:
        draw.text((gap, gap + row * line), shortened(draw, text, font, width), font=font, fill=color)

    write(0, f"{_position(result)}   probability {result.probability:.3f}", _DARK)
    write(1, f"if cell {places[0].name} is right, within {places[0].radius_km:,.0f} km", _PALE)
    top = gap + round(2.4 * line)
    world = WorldView(width)
    region = RegionView(width, round(scale * _REGION), result.latitude, result.longitude, _half_km(places[0].radius_km))
    canvas.paste(_map(world, _world_labels(result, world), result, font), (gap, top))
    lower = top + world.height + gap
    canvas.paste(_map(region, result.cells.labels_at(*region.places()), result, font), (gap, lower))
    rest = (lower + region.height + gap / 2 - gap) / line
    for row, place in enumerate(places[1:]):
        write(rest + row, f"or {place}, cell {place.name}", _PALE)
    return np.array(canvas)


def _position(result: ImageLocation) -> str:
    from mnvision.prediction.results_geo import position_text

    return position_text(result.latitude, result.longitude)


def _half_km(radius_km: float) -> float:
    """Half the height of the region's map: the answered cell and some surroundings."""
    return float(np.clip(1.5 * radius_km, _NEAREST_KM, _FARTHEST_KM))


def _world_labels(result: ImageLocation, view: WorldView) -> NDArray[np.int64]:
    """The shared map of cells at this view's size."""
    labels = result.cells.world
    rows = (np.arange(view.height) * labels.shape[0]) // view.height
    columns = (np.arange(view.width) * labels.shape[1]) // view.width
    return labels[rows[:, None], columns[None]]


def _map(view: View, labels: NDArray[np.int64], result: ImageLocation, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Land, cells in their colours, borders, the answer, and a scale where distances are true."""
    pixels = _background(view)
    share = np.append(result.probabilities / max(result.probability, result.probabilities.max(), 1e-30), 0.0)[labels]
    strength = np.sqrt(np.where(share >= _FAINTEST, share, 0.0))[..., None]  # -1 reads the zero at the end
    colors = colormaps["YlOrRd"](0.15 + 0.75 * strength[..., 0])[..., :3] * 255
    cover = np.where(strength > 0, 0.35 + 0.5 * strength, 0.0)
    pixels = np.asarray(pixels * (1 - cover) + colors * cover, np.uint8)
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    if isinstance(view, WorldView):  # a cell of two pixels would be all edge
        edges &= strength[..., 0] == 0
    if edges.mean() < _MOST_EDGES:
        pixels[edges] = np.asarray(0.6 * pixels[edges] + 0.4 * np.array(_CELL_EDGE), np.uint8)
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    (x, y), arm = view.pixels([result.latitude], [result.longitude])[0], font.size / 2
    draw.ellipse((x - arm, y - arm, x + arm, y + arm), outline=_MARK, width=max(2, round(arm / 4)))
    if isinstance(view, RegionView):  # a cross would hide a small cell on the map of the earth
        draw.line((x - arm / 2, y, x + arm / 2, y), fill=_MARK, width=2)
        draw.line((x, y - arm / 2, x, y + arm / 2), fill=_MARK, width=2)
        _draw_scale(draw, view, font)
    draw.rectangle((0, 0, view.width - 1, view.height - 1), outline=_BORDER)
    return drawn


def _background(view: View) -> Pixels:
    if isinstance(view, WorldView):
        return _world_background(view.width).copy()
    return _draw_background(view)


@lru_cache(maxsize=4)
def _world_background(width: int) -> Pixels:
    """The same for all photos of a size."""
    return _draw_background(WorldView(width))


def _draw_background(view: View) -> Pixels:
    pixels = np.where(on_land(*view.places())[..., None], _LAND, _SEA).astype(np.uint8)
    inside = _touches(view)
    lines = [np.round(run * 8).astype(np.int32) for line in borders() for run in view.runs(*line.T) if inside(run)]
    cv2.polylines(pixels, lines, isClosed=False, color=_BORDER, thickness=1, lineType=cv2.LINE_AA, shift=3)
    return pixels


def _touches(view: View) -> Callable[[NDArray[np.float64]], bool]:
    """Whether a line has a point on the map: those far away are not worth drawing, and overflow OpenCV's numbers."""
    size = np.array([view.width, view.height])
    return lambda run: bool(((run >= -size) & (run <= 2 * size)).all(axis=1).any())


def _draw_scale(draw: ImageDraw.ImageDraw, view: RegionView, font: ImageFont.FreeTypeFont) -> None:
    """A bar of a round number of kilometres, at most a third of the map's width."""
    most = view.width / 3 * view.km_per_pixel
    power = 10 ** np.floor(np.log10(most))
    km = float(max(step * power for step in (1, 2, 5) if step * power <= most))
    left, bottom = font.size * 0.6, view.height - font.size * 0.6
    right = left + km / view.km_per_pixel
    draw.line((left, bottom, right, bottom), fill=_DARK, width=2)
    for end in (left, right):
        draw.line((end, bottom - font.size * 0.25, end, bottom), fill=_DARK, width=2)
    draw.text((left + 3, bottom - font.size * 1.35), f"{km:,.0f} km", font=font, fill=_DARK)
