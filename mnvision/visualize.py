"""Pictures with detections drawn into them, and sheets of pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnvision.errors import UserError

_GOLDEN_RATIO = 0.618033988749895
Color = tuple[int, int, int]


def class_color(label: int) -> Color:
    """A bright RGB colour that is always the same for a label, and far from its neighbours' colours.

    Hues step by the golden ratio, which spreads any number of them over the circle; brightness and saturation
    alternate, so that classes with near hues still differ.

    Args:
        label: ``0, 1, 2 ..``.
    """
    hue = (0.02 + label * _GOLDEN_RATIO) % 1.0
    saturation = (0.85, 0.6, 1.0)[label % 3]
    value = (1.0, 0.95, 0.75)[(label // 3) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(
    image: NDArray[np.uint8],
    boxes: NDArray[np.floating],
    labels: NDArray[np.integer],
    scores: NDArray[np.floating] | None = None,
    class_names: Sequence[str] = (),
    score_threshold: float = 0.0,
) -> NDArray[np.uint8]:
    """A copy of a picture with boxes, class names and scores.

    Line width and letters grow with the picture. The best detection is drawn last, hence on top.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, not changed.
        boxes: ``(D, 4)`` xyxy in pixels of the picture; what lies outside is cut off.
        labels: ``(D,)``, ``0 .. K-1``; rows with ``-1`` (padding) are skipped.
        scores: ``(D,)`` in [0, 1], or ``None`` for annotations, which have none.
        class_names: The K names, in any script; a label without a name is shown as its number.
        score_threshold: Detections below it are not drawn.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        UserError: The picture is not ``(H, W, 3)`` uint8, or the arrays' lengths differ.
    """
    check_picture(image)
    count = len(boxes)
    if len(labels) != count or (scores is not None and len(scores) != count):
        given = len(labels if scores is None else scores)
        raise UserError(f"{count} boxes with {len(labels)} labels and {given} scores; give one of each")
    keep = np.asarray(labels) >= 0
    order = np.arange(count)[::-1]
    if scores is not None:
        keep &= np.asarray(scores) >= score_threshold
        order = np.argsort(scores, kind="stable")
    canvas = image.copy()
    captions = []
    thickness = max(1, round(min(image.shape[:2]) / 250))
    for row in order[keep[order]]:
        corners = _inside(boxes[row], image.shape[1], image.shape[0])
        label = int(labels[row])
        name = class_names[label] if label < len(class_names) else str(label)
        caption = name if scores is None else f"{name} {scores[row]:.2f}"
        cv2.rectangle(canvas, corners[:2], corners[2:], class_color(label), thickness)
        captions.append((caption, corners, class_color(label)))
    return _draw_captions(canvas, captions)


def check_picture(image: NDArray[np.uint8]) -> None:
    """Refuse what is no picture.

    Raises:
        UserError: Not ``(H, W, 3)`` uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"picture has shape {image.shape} and type {image.dtype}; expected (H, W, 3) uint8")


def _inside(box: NDArray[np.floating], width: int, height: int) -> tuple[int, int, int, int]:
    """Corners as whole pixels of the picture; numbers that are no finite ones become its border."""
    limits = np.array([width - 1, height - 1, width - 1, height - 1])
    finite = np.nan_to_num(np.asarray(box, np.float64), nan=0.0, posinf=float(max(width, height)), neginf=0.0)
    left, top, right, bottom = np.clip(np.round(finite), 0, limits).astype(int).tolist()
    return left, top, right, bottom


@lru_cache(maxsize=16)
def caption_font(size: int) -> ImageFont.FreeTypeFont:
    """Letters of that many pixels."""
    # The font that comes with matplotlib: Pillow's own lacks even accented Latin letters. A character that it
    # does not have either is drawn as an empty box.
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _draw_captions(
    canvas: NDArray[np.uint8], captions: Sequence[tuple[str, tuple[int, int, int, int], Color]]
) -> NDArray[np.uint8]:
    """Captions above their boxes, moved inside where the picture ends."""
    height, width = canvas.shape[:2]
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = caption_font(int(np.clip(min(height, width) / 28, 10, 40)))
    for caption, (left, top, _, bottom), color in captions:
        text = shortened(draw, " ".join(caption.split()), font, width - 4)
        # The same height for all letters, so that captions do not dance.
        ascent, descent = draw.textbbox((0, 0), "Ág", font=font)[1::2]
        box_width, box_height = round(draw.textlength(text, font=font)) + 4, round(descent - ascent) + 4
        x = max(0, min(left, width - box_width))
        y = top - box_height if top >= box_height else min(top, bottom, max(0, height - box_height))
        draw.rectangle((x, y, x + box_width - 1, y + box_height - 1), fill=color)
        draw.text((x + 2, y + 2 - ascent), text, font=font, fill=_readable_on(color))
    return np.array(picture)


def shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """A text cut to ``room`` pixels."""
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(text + "..", font=font) > room:
        text = text[:-1]
    return text + ".." if text else ""


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out (luma of ITU-R BT.601)."""
    luma = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if luma > 140 else (255, 255, 255)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], columns: int = 4, cell: int = 320, gap: int = 6
) -> NDArray[np.uint8]:
    """Pictures of any sizes side by side, each fitted into a square cell without distortion.

    Args:
        images: ``(H, W, 3)`` uint8 RGB each.
        columns: Cells per row, at least 1.
        cell: Side of a cell in pixels, at least 1. Smaller pictures are enlarged.
        gap: White pixels between and around the cells, at least 0.

    Returns:
        ``(H, W, 3)`` uint8 RGB; fewer pictures than columns give a narrower sheet.

    Raises:
        UserError: No picture, a picture that is not ``(H, W, 3)`` uint8, or a number out of range.
    """
    if not images or columns < 1 or cell < 1 or gap < 0:
        raise UserError(
            f"contact sheet of {len(images)} pictures, columns {columns}, cell {cell}, gap {gap}; give at "
            "least one picture, columns and cell at least 1, gap at least 0"
        )
    across = min(columns, len(images))
    down = -(-len(images) // across)
    sheet = np.full((down * (cell + gap) + gap, across * (cell + gap) + gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        check_picture(image)
        scale = cell / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        top = gap + index // across * (cell + gap) + (cell - size[1]) // 2
        left = gap + index % across * (cell + gap) + (cell - size[0]) // 2
        sheet[top : top + size[1], left : left + size[0]] = small
    return sheet
