"""Pictures of faces with what was found out about them beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mnvision.visualize import Color, caption_font, check_picture, class_color, shortened

_SMALLEST = 360  # pixels of height from which on a picture is shown as it is
_WIDEST = 2000  # pixels of width that no picture is enlarged beyond
_LONGEST = 22  # of a name, in heights of a letter
_DARK, _PALE, _TRACK = (25, 25, 25), (140, 140, 140), (232, 232, 232)


def draw_attribute_panel(
    image: NDArray[np.uint8],
    attributes: Sequence[tuple[str, float, bool]],
    names: Sequence[str],
    everything: bool = False,
    title: str = "",
) -> NDArray[np.uint8]:
    """A picture with a panel at its right: one line per attribute with its name, its probability and a bar.

    Small pictures are enlarged by a whole number, so that the letters have room. The result's size depends on the
    picture's size and on ``names`` alone: all frames of a video get the same.

    Args:
        image: ``(H, W, 3)`` uint8 RGB, not changed.
        attributes: Name, probability in [0, 1] and decision of those to list, in this order; those that are decided
            not to be there are written in grey.
        names: All that can occur.
        everything: Make room for all names, in as many columns as it takes; else one column, whose last line says
            how many did not fit.
        title: A line above them; none where it is empty.

    Returns:
        ``(H', W', 3)`` uint8 RGB.

    Raises:
        UserError: The picture is not ``(H, W, 3)`` uint8.
    """
    check_picture(image)
    image = _enlarged(image)
    height, width = max(image.shape[0], _SMALLEST), image.shape[1]
    font = caption_font(int(np.clip(height / 28, 13, 40)))
    layout = _Layout(names, font, width, height, everything, title)
    canvas = Image.new("RGB", (width + layout.width, height), (255, 255, 255))
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((layout.left, layout.top - layout.line), title, font=font, fill=_DARK)
    left_out = max(len(attributes) - layout.places, 0)
    listed = attributes[: layout.places - 1] if left_out else attributes
    for place, (name, probability, decision) in enumerate(listed):
        color = class_color(names.index(name)) if decision else _PALE
        layout.write(draw, place, _one_line(name), probability, _DARK if decision else _PALE, color)
    if left_out:
        draw.text(layout.corner(len(listed)), f"and {left_out + 1} more", font=font, fill=_PALE)
    elif not listed:
        draw.text(layout.corner(0), "nothing found", font=font, fill=_PALE)
    return np.array(canvas)


def _enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = max(1, min(math.ceil(_SMALLEST / image.shape[0]), _WIDEST // image.shape[1]))
    if factor == 1:
        return image
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)


class _Layout:
    """Lines of a panel, in columns.

    Args:
        names: All that can occur.
        font: Letters.
        left: Where the panel begins.
        height: Of the panel.
        everything: Make room for all names.
        title: What is written above; a line is left for it.
    """

    def __init__(
        self, names: Sequence[str], font: ImageFont.FreeTypeFont, left: int, height: int, everything: bool, title: str
    ) -> None:
        self.font, self.letter = font, int(font.size)
        self.line, self.gap, margin = round(1.5 * self.letter), self.letter, self.letter // 2
        self.top = margin + (self.line if title else 0)
        rows = max((height - self.top - margin) // self.line, 1)
        columns = max(math.ceil(len(names) / rows), 1) if everything else 1
        self.rows = math.ceil(len(names) / columns) if columns > 1 else rows
        self.places = columns * self.rows
        longest = max((font.getlength(_one_line(name)) for name in (*names, title)), default=0.0)
        self.room = min(math.ceil(longest), _LONGEST * self.letter)
        self.column = self.room + self.gap + math.ceil(font.getlength("0.00"))
        self.left, self.width = left + self.gap, columns * (self.column + self.gap) + self.gap

    def corner(self, place: int) -> tuple[int, int]:
        """Top left of a line."""
        column, row = divmod(place, self.rows)
        return self.left + column * (self.column + self.gap), self.top + row * self.line

    def write(
        self, draw: ImageDraw.ImageDraw, place: int, text: str, probability: float, ink: Color, bar: Color
    ) -> None:
        """One attribute: text, number and a bar below."""
        x, y = self.corner(place)
        draw.text((x, y), shortened(draw, text, self.font, self.room), font=self.font, fill=ink)
        draw.text((x + self.column, y), f"{probability:.2f}", font=self.font, fill=ink, anchor="ra")
        upper, lower = y + self.line - self.letter // 4, y + self.line - self.letter // 8
        draw.rectangle((x, upper, x + self.column - 1, lower), fill=_TRACK)
        filled = round(probability * self.column)
        if filled:
            draw.rectangle((x, upper, x + filled - 1, lower), fill=bar)


def _one_line(name: str) -> str:
    return " ".join(name.replace("_", " ").split())
