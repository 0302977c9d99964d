"""Short lines of text beside boxes in pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mnvision.visualize import caption_font, check_picture, class_color, shortened

_DARK, _PALE = (25, 25, 25), (250, 250, 250)
_WIDEST = 14  # of a line, in heights of a letter


def draw_notes(
    image: NDArray[np.uint8], notes: Sequence[tuple[tuple[float, ...], int, Sequence[str]]]
) -> NDArray[np.uint8]:
    """A copy of a picture with lines of text beside boxes: at the right of each, else at its left, else inside.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, not changed.
        notes: Of each box xyxy in pixels of the picture, its label and its lines; the first is drawn on top.

    Returns:
        ``(H, W, 3)`` uint8 RGB.

    Raises:
        UserError: The picture is not ``(H, W, 3)`` uint8.
    """
    check_picture(image)
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    font = caption_font(int(np.clip(min(height, width) / 36, 9, 30)))
    line = round(1.3 * font.size)
    for box, label, lines in reversed(notes):
        if not lines:
            continue
        texts = [shortened(draw, " ".join(text.split()), font, min(_WIDEST * int(font.size), width)) for text in lines]
        room = round(max(draw.textlength(text, font=font) for text in texts)) + 6
        x, y = _place(box, (room, line * len(texts) + 4), (width, height))
        draw.rectangle((x, y, x + room - 1, y + line * len(texts) + 3), fill=_PALE, outline=class_color(label))
        for number, text in enumerate(texts):
            draw.text((x + 3, y + 2 + number * line), text, font=font, fill=_DARK)
    return np.array(picture)


def _place(box: Sequence[float], size: tuple[int, int], picture: tuple[int, int]) -> tuple[int, int]:
    """Top left of a note of a width and a height."""
    left, top, right, _ = (round(edge) for edge in box)
    if right + size[0] <= picture[0]:
        x = right + 1
    elif left - size[0] >= 0:
        x = left - size[0]
    else:
        x = min(left + 2, picture[0] - size[0])
        top += size[1] // 3  # below the caption of a box at the picture's edge
    return max(x, 0), max(min(top, picture[1] - size[1]), 0)
