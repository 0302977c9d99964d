"""One sample's files, decoded no more often than needed."""

from __future__ import annotations

from mnvision.data.images import DecodedImage, ImageSource, min_decode_size, read_image, reduction


class SampleDecoder:
    """Decodes files for one sample, for its student and its teacher.

    Each gets the file at the scale that its own resolution asks for, as if it were alone: what one sees never depends
    on the other. Where both ask for the same scale the file is decoded once.

    Args:
        reduced: Decode a large JPEG at reduced scale where the resolution allows it.
    """

    def __init__(self, reduced: bool = True) -> None:
        self.reduced = reduced
        self._kept: dict[tuple[ImageSource, int], DecodedImage] = {}

    def read(
        self, path: ImageSource, size: tuple[int, int], part: tuple[float, float], resolution: tuple[int, int]
    ) -> DecodedImage:
        """One file, large enough to show a part of it.

        Args:
            path: The file, or its content.
            size: Height and width of the whole picture.
            part: Height and width of the part that is shown, in its pixels.
            resolution: Height and width at which that part is shown.

        Raises:
            UserError: The file cannot be read.
        """
        least = min_decode_size(size, part, resolution) if self.reduced else None
        key = (path, 1 if least is None else reduction(size, least))
        if key not in self._kept:
            self._kept[key] = read_image(path, least)
        return self._kept[key]
