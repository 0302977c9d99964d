"""How the faces of a set are aligned: by a file of landmarks, by fixed points, or as the pictures are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.identity_index import People
from mnvision.data.images import image_size
from mnvision.data.index import first_few
from mnvision.data.landmarks import landmarks_of, read_landmark_table, usable
from mnvision.errors import UserError
from mnvision.transforms.alignment import TEMPLATES, FivePoints
from mnvision.transforms.framing import Framing, Stretch

log = logging.getLogger(__name__)

Missing = Literal["error", "skip", "median"]
MISSING: tuple[Missing, ...] = ("error", "skip", "median")

FixedPoints = str | Sequence[Sequence[float]] | None

_TRIED = 32  # pictures looked at for a warning
_OFF = 0.1  # mean distance from the template, relative to its side, from which pictures do not look aligned


@dataclass(frozen=True)
class FaceSettings:
    """What is known of where faces are.

    Attributes:
        framing: The recipe; for :class:`~mnvision.transforms.alignment.FivePoints` without points of its own.
        landmarks: File of landmarks, or None.
        points: Where the five points lie in pictures that are laid out alike, see ``FivePoints``; used where there is
            no file of landmarks.
        missing: What becomes of pictures without landmarks: "error" refuses them, "skip" leaves them out, "median"
            takes the median place of the others' points.
    """

    framing: Framing
    landmarks: Path | None
    points: FixedPoints
    missing: Missing


class LaidOut(NamedTuple):
    """How the pictures of a set are shown.

    Attributes:
        kept: ``(I,)`` which pictures remain.
        points: Landmarks of those that remain, ``(K, 5, 2)`` float32; None without a file of landmarks.
        framing: How they are laid out.
    """

    kept: NDArray[np.bool_]
    points: NDArray[np.float32] | None
    framing: Framing


def face_settings(
    root: Path,
    framing: Framing,
    landmarks: str | Path | None,
    points: FixedPoints,
    missing: Missing,
    name: str = "data.",
) -> FaceSettings:
    """Checked settings of one set of pictures.

    Args:
        root: Folder of the set, which ``landmarks`` is relative to.
        framing: See :class:`FaceSettings`.
        landmarks: See :class:`FaceSettings`.
        points: See :class:`FaceSettings`.
        missing: See :class:`FaceSettings`.
        name: Start of the settings' names in messages: ``data.`` or ``data.pairs_``.

    Raises:
        UserError: They contradict each other, or a value is out of range.
    """
    if missing not in MISSING:
        raise UserError(f"data.missing_landmarks={missing}: choose {', '.join(MISSING)}")
    if isinstance(framing, FivePoints):
        if framing.points is not None:
            raise UserError("data.framing.points: give data.points and data.pairs_points, which may differ, instead")
        framing.at(points)
    elif points is not None:
        raise UserError(f"{name}points are for data.framing.resize=five_points; leave them out")
    return FaceSettings(framing, None if landmarks is None else root / Path(landmarks).expanduser(), points, missing)


def lay_out(people: People, settings: FaceSettings, resolution: tuple[int, int], name: str = "data.") -> LaidOut:
    """Finds the landmarks of pictures, and says where they do not look aligned.

    Args:
        people: The pictures; findings are counted there.
        settings: What is known of them.
        resolution: Height and width of the network's input.
        name: Start of the settings' names in messages.

    Raises:
        UserError: There are neither landmarks nor fixed points where the recipe needs them, or pictures without any.
    """
    framing, every = settings.framing, np.ones(len(people), np.bool_)
    if settings.landmarks is None:
        if isinstance(framing, FivePoints):
            if settings.points is None:
                raise UserError(
                    f"{people.source}: data.framing sets faces upright by five points, which are not known: "
                    f"give {name}landmarks=FILE; or {name}points, for pictures that are laid out alike ({name}points="
                    "arcface for crops aligned as ArcFace's); or data.framing={resize: stretch}"
                )
            framing = framing.at(settings.points)
        _warn_unless_alike(people, framing)
        return LaidOut(every, None, framing)
    points = landmarks_of(read_landmark_table(settings.landmarks), people.folder, people.file_names, people.found)
    known = usable(points)
    points[~known] = np.nan
    if not isinstance(framing, FivePoints):
        _warn_unless_aligned(people, framing, points, resolution)
        return LaidOut(every, points, framing)
    if known.all():
        return LaidOut(every, points, framing)
    without = [people.file_names[row] for row in np.flatnonzero(~known)]
    if settings.missing == "error":
        raise UserError(
            f"{len(without)} of {len(people)} pictures have no landmarks in {settings.landmarks}: {first_few(without)}"
            "; leave them out with data.missing_landmarks=skip, or show them at the median place of the other faces "
            "with data.missing_landmarks=median"
        )
    if settings.missing == "skip":
        people.found.add("pictures without landmarks left out", without)
        return LaidOut(known, points[known], framing)
    people.found.add("pictures without landmarks shown at the median place of the others", without)
    points[~known] = np.median(points[known], axis=0)
    return LaidOut(every, points, framing)


def _some(people: People) -> list[int]:
    return np.unique(np.linspace(0, len(people) - 1, min(_TRIED, len(people))).astype(int)).tolist()


def _warn_unless_alike(people: People, framing: Framing) -> None:
    """Pictures that were aligned before are of one size, and square where they are shown whole."""
    sizes = [image_size(people.folder / people.file_names[row]) for row in _some(people)]
    shapes = sorted({round(width / height, 2) for height, width in sizes})
    squeezed = isinstance(framing, Stretch) and shapes != [1.0]
    if len(shapes) == 1 and not squeezed:
        return
    found = f"{len(shapes)} different proportions" if len(shapes) > 1 else f"{sizes[0][1]} x {sizes[0][0]} pixels"
    log.warning(
        "%s: pictures do not look aligned (%s), and there are no landmarks: faces at different places are harder to "
        "tell apart; give a file of landmarks",
        people.source,
        found,
    )


def _warn_unless_aligned(
    people: People, framing: Framing, points: NDArray[np.float32], resolution: tuple[int, int]
) -> None:
    """Where landmarks are known but not used, they tell how far the shown faces are from the template."""
    distances = []
    for row in _some(people):
        if np.isnan(points[row]).any():
            continue
        plane = framing.plane(image_size(people.folder / people.file_names[row]))
        window = framing.eval_window(plane.size, resolution)
        shown = points[row].astype(np.float64)
        if plane.matrix is not None:
            shown = shown @ plane.matrix[:, :2].T + plane.matrix[:, 2]
        sides = (window.x1 - window.x0, window.y1 - window.y0)
        distances.append(np.linalg.norm((shown - (window.x0, window.y0)) / sides - TEMPLATES["arcface"], axis=1).mean())
    if distances and np.mean(distances) > _OFF:
        log.warning(
            "%s: faces are shown %.0f %% of the side away from the template, though landmarks are known: "
            "data.framing={resize: five_points} aligns them",
            people.source,
            100 * float(np.mean(distances)),
        )
