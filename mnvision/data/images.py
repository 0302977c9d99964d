"""Image files, on disk or in memory, to uint8 RGB arrays.

OpenCV decodes, because it is the fastest decoder at hand and can decode JPEGs at a half, a quarter or an
eighth of their size. It may fill the missing part of a truncated JPEG without a word, so completeness is
checked here from the file's own markers (JPEG: ITU-T T.81, annex B; PNG: ISO/IEC 15948, section 11.2.5; WebP:
RFC 9649, section 2.4; Exif orientation: tag 0x0112 of the TIFF structure in APP1).
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mnvision.errors import UserError

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
"""File name endings (lower case) that count as images in folders."""

_REDUCED_RGB = {
    # OpenCV's IMREAD_REDUCED_COLOR_* ask for BGR; without their lowest bit they can be joined with RGB.
    factor: (flag & ~cv2.IMREAD_COLOR_BGR) | cv2.IMREAD_COLOR_RGB
    for factor, flag in (
        (2, cv2.IMREAD_REDUCED_COLOR_2),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (8, cv2.IMREAD_REDUCED_COLOR_8),
    )
}
_JPEG_START, _JPEG_END, _PNG_START = b"\xff\xd8", b"\xff\xd9", b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_REMEDY = "fetch it again or take it out of the set"
_ORIENTATION_TAG = 0x0112
_TRANSPOSING = range(5, 9)  # Exif orientations that swap height and width


class DecodedImage(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: ``(h, w, 3)`` uint8 RGB; smaller than ``size`` where it was decoded at reduced scale.
        size: Height and width of the whole picture in the file, after Exif orientation. A box in pixels of
            the picture is scaled by ``w / size[1]`` and ``h / size[0]`` to fit ``pixels``.
    """

    pixels: Pixels
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """The content of an image file that is no file of its own, such as a member of an archive.

    Attributes:
        name: What messages call it, such as ``photos-000003.tar/cat.jpg``; or what turns into that text when it is
            needed.
        data: The bytes of the file.
    """

    name: object
    data: bytes

    def __str__(self) -> str:
        return str(self.name)


ImageSource = str | os.PathLike[str] | EncodedImage
"""Where a picture's bytes are: the path of a file, or memory."""


class _JpegHeader(NamedTuple):
    size: tuple[int, int]  # oriented
    scan_start: int


def read_image(path: ImageSource, min_size: tuple[int, int] | None = None) -> DecodedImage:
    """Decodes one image file; Exif orientation is applied.

    Grey, palette and CMYK pictures become RGB, 16-bit ones keep their high byte, alpha is dropped (the
    colours beneath stay), of an animation the first frame is taken.

    Args:
        path: The file, or its content.
        min_size: Smallest height and width that the caller can use. A JPEG of at least twice that size is
            decoded at the smallest of 1/2, 1/4 and 1/8 scale that still has it, which saves time and memory;
            other formats and smaller pictures are decoded whole.

    Returns:
        The pixels and the size of the whole picture.

    Raises:
        UserError: The file is missing, unreadable, truncated or not an image; the text names it.
    """
    data = _read_bytes(path)
    header = _check_complete(data, path)
    if header is not None and min_size is not None:
        factor = reduction(header.size, min_size)
        if factor > 1:
            pixels = _decode(data, _REDUCED_RGB[factor])
            if pixels is not None and pixels.shape[:2] == tuple(-(-side // factor) for side in header.size):
                return DecodedImage(pixels, header.size)
    pixels = _decode(data, cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        pixels = _decode_with_pillow(data, path)
    height, width = pixels.shape[:2]
    return DecodedImage(pixels, (height, width))


def image_size(path: ImageSource) -> tuple[int, int]:
    """Height and width of a picture after Exif orientation, from the file's header alone.

    Raises:
        UserError: The file is missing or has no readable image header.
    """
    try:
        with _opened(path) as file:
            head = file.read(65536)
            if head.startswith(_JPEG_START):
                header = _jpeg_header(head) or _jpeg_header(head + file.read())
                if header is not None:
                    return header.size
            file.seek(0)
            with Image.open(file) as image:
                width, height = image.size
                # Pillow announces the turned size of a TIFF by itself.
                turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION_TAG, 1) in _TRANSPOSING
                return (width, height) if turned else (height, width)
    except FileNotFoundError:
        raise UserError(f"image file not found: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"not an image, or of an unknown format: {path}; {_REMEDY}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read the image header of {path}: {_one_line(error)}; {_REMEDY}") from None


def check_image(path: ImageSource) -> None:
    """Reads one image file without decoding it.

    Raises:
        UserError: The file is missing, unreadable, truncated or not an image; the text names it.
    """
    data = _read_bytes(path)
    if _check_complete(data, path) is None:
        image_size(EncodedImage(str(path), data))


def reduction(size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """Largest of 8, 4, 2, 1 by which a picture of ``size`` can be divided and still have ``min_size``."""
    for factor in (8, 4, 2):
        if size[0] >= factor * min_size[0] and size[1] >= factor * min_size[1]:
            return factor
    return 1


def min_decode_size(size: tuple[int, int], part: tuple[float, float], target: tuple[int, int]) -> tuple[int, int]:
    """Size a whole picture must be decoded to so that a part of it still has the pixels of its target.

    Args:
        size: Height and width of the picture.
        part: Height and width of the part that is used, in the picture's pixels.
        target: Height and width in pixels to which that part is resized.
    """
    height, width = (max(1, math.ceil(full * out / max(used, 1.0))) for full, used, out in zip(size, part, target))
    return height, width


def _opened(path: ImageSource) -> BinaryIO:
    return io.BytesIO(path.data) if isinstance(path, EncodedImage) else open(path, "rb")


def _read_bytes(path: ImageSource) -> bytes:
    try:
        data = path.data if isinstance(path, EncodedImage) else Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"image file not found: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read image file {path}: {error.strerror or error}") from None
    if not data:
        raise UserError(f"image file is empty: {path}; {_REMEDY}")
    return data


def _check_complete(data: bytes, path: ImageSource) -> _JpegHeader | None:
    """Refuses a truncated JPEG, PNG or WebP; gives the header of a JPEG, None for anything else."""
    complete, header = True, None
    if data.startswith(_JPEG_START):
        header = _jpeg_header(data)
        # Bytes after the end marker are legal (phones append previews), and a thumbnail before the scan has
        # an end marker of its own: what counts is one after the start of the scan.
        complete = header is not None and (data.endswith(_JPEG_END) or data.rfind(_JPEG_END, header.scan_start) >= 0)
    elif data.startswith(_PNG_START):
        complete = data.endswith(_PNG_END) or _PNG_END in data
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        complete = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if not complete:
        raise UserError(f"image file is truncated: {path} ({len(data)} bytes); {_REMEDY}")
    return header


def _jpeg_header(data: bytes) -> _JpegHeader | None:
    """Walks the segments up to the first scan; None where the data ends before."""
    position, size, orientation = 2, None, 1
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = position + 4
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and body + 5 <= len(data):
            size = (
                int.from_bytes(data[body + 1 : body + 3], "big"),
                int.from_bytes(data[body + 3 : body + 5], "big"),
            )
        elif marker == 0xE1 and data[body : body + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[body + 6 : position + 2 + length])
        elif marker == 0xDA:
            if size is None or 0 in size:
                return None
            turned = orientation in _TRANSPOSING
            return _JpegHeader((size[1], size[0]) if turned else size, body)
        position += 2 + length
    return None


def _exif_orientation(tiff: bytes) -> int:
    """Orientation 1-8 of a TIFF structure; 1 where it is absent or malformed."""
    if tiff[:2] not in (b"II", b"MM") or len(tiff) < 10:
        return 1
    little_endian = tiff[:2] == b"II"

    def number(start: int, count: int) -> int:
        return int.from_bytes(tiff[start : start + count], "little" if little_endian else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _decode(data: bytes, flags: int) -> Pixels | None:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # raised for pictures beyond OpenCV's size limit, among others
        return None
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _decode_with_pillow(data: bytes, path: ImageSource) -> Pixels:
    """Second opinion for what OpenCV cannot decode; a UserError with the reason when Pillow cannot either."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            pixels = np.asarray(image.convert("RGB"))
            tiff = image.format == "TIFF"
    except UnidentifiedImageError:
        raise UserError(f"not an image, or of an unknown format: {path}; {_REMEDY}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot decode image file {path}: {_one_line(error)}; {_REMEDY}") from None
    return pixels if tiff else _orient(pixels, orientation)


def _orient(pixels: Pixels, orientation: int) -> Pixels:
    """Applies an Exif orientation (1-8)."""
    if orientation in _TRANSPOSING:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
