"""Faces set upright: five landmarks are moved onto those of a template by a similarity transform.

Sources: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (PAMI 1991),
here in the closed form that it has for two dimensions; the template is the one that ArcFace models are trained with
(``face_align.py`` of the insightface release, for pictures of 112 x 112).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnvision.errors import UserError
from mnvision.transforms.framing import Framing, Matrix, Plane, Points
from mnvision.transforms.windows import Window, whole_picture

SIDE = 112
"""Height and width of the template's plane."""

ARCFACE_POINTS = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""x and y of the eyes, the nose and the mouth's corners, left ones first (as the viewer sees them), in a picture of
``SIDE`` by ``SIDE``."""

TEMPLATES: dict[str, Points] = {"arcface": np.array(ARCFACE_POINTS) / SIDE}
"""Name -> ``(5, 2)`` points as fractions of width and height."""

_OPTIONS = ("points", "template", "margin")
# Off-diagonal parts that are rounding errors: without them a picture that is upright already is not interpolated.
_ROUNDING = 1e-9


class FivePoints(Framing):
    """The face upright in the middle, at the place and size that a template gives it.

    Args:
        points: Where the five points lie in pictures whose landmarks are not known, because all were laid out alike
            before: five pairs of fractions of width and height, or the name of the template they were aligned to.
            None refuses pictures without landmarks.
        template: Where they are moved to: "arcface", or five pairs of fractions of the plane.
        margin: How much more than the template's square is shown, on every side, as a share of its side, above -0.5.
            0 is the template itself, 0.25 shows about the whole head.

    Raises:
        UserError: A value is out of range.
    """

    def __init__(
        self,
        points: str | Sequence[Sequence[float]] | None = None,
        template: str | Sequence[Sequence[float]] = "arcface",
        margin: float = 0.0,
    ) -> None:
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not -0.5 < margin <= 10:
            raise UserError(f"framing margin={margin!r}: give a number above -0.5, such as 0 or 0.25")
        self._given: dict[str, Any] = {"points": _plain(points), "template": _plain(template), "margin": float(margin)}
        self.points = None if points is None else five_points(points, "points")
        self.needs_landmarks = points is None
        target = five_points(template, "template")
        self._target = ((target - 0.5) / (1 + 2 * margin) + 0.5) * SIDE

    @classmethod
    def from_dict(cls, rule: Mapping[str, Any]) -> FivePoints:
        """The framing of a rule as :meth:`to_dict` gives it.

        Raises:
            UserError: An unknown key, or a value out of range.
        """
        unknown = sorted(set(rule) - {"resize", *_OPTIONS})
        if unknown:
            raise UserError(f"framing five_points has no {', '.join(unknown)}; known are {', '.join(_OPTIONS)}")
        return cls(**{key: rule[key] for key in _OPTIONS if key in rule})

    def at(self, points: str | Sequence[Sequence[float]] | None) -> FivePoints:
        """The same template for pictures that are laid out in another way; see ``points``."""
        return FivePoints(**{**self._given, "points": points})

    def plane(self, size: tuple[int, int], landmarks: Points | None = None) -> Plane:
        """See :meth:`~mnvision.transforms.framing.Framing.plane`; known landmarks go before fixed points.

        Raises:
            UserError: Neither is there, or all five lie in one place.
        """
        if landmarks is None:
            if self.points is None:
                raise UserError(
                    "a picture has no landmarks, which its alignment needs: give a file of landmarks, or the points of "
                    "pictures that are laid out alike"
                )
            landmarks = self.points * (size[1], size[0])
        return Plane((SIDE, SIDE), similarity(landmarks, self._target))

    def eval_window(self, plane_size: tuple[int, int], resolution: tuple[int, int]) -> Window:
        """See :meth:`~mnvision.transforms.framing.Framing.eval_window`: all of it, stretched if not square."""
        return whole_picture(plane_size)

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`~mnvision.transforms.framing.Framing.to_dict`."""
        return {"resize": "five_points", **self._given}


def similarity(source: Points, target: Points) -> Matrix:
    """The rotation, scale and shift, without mirroring, that bring points closest to others (least squares).

    With centred points as complex numbers z and w, ``a = sum(conj(z) w) / sum(|z|^2)`` minimises
    ``sum(|a z - w|^2)``: its length is the scale, its angle the turn.

    Args:
        source: ``(N, 2)`` x and y.
        target: ``(N, 2)``.

    Returns:
        ``(2, 3)`` float64, source -> target.

    Raises:
        UserError: All points of one of them lie in one place, or a coordinate is not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    from_centre, to_centre = source.mean(axis=0), target.mean(axis=0)
    z, w = ((points - centre) @ (1, 1j) for points, centre in ((source, from_centre), (target, to_centre)))
    spread = float(np.vdot(z, z).real)
    a = complex(np.vdot(z, w) / spread) if spread > 0 else 0j
    if not 0 < abs(a) < float("inf"):
        raise UserError(f"landmarks {np.round(source, 2).tolist()} cannot be aligned; correct or leave out the picture")
    turn = 0.0 if abs(a.imag) < _ROUNDING * abs(a) else a.imag
    linear = np.array([[a.real, -turn], [turn, a.real]])
    return np.column_stack([linear, to_centre - linear @ from_centre])


def five_points(value: str | Sequence[Sequence[float]], name: str) -> Points:
    """``(5, 2)`` fractions of width and height, from a template's name or five pairs.

    Raises:
        UserError: An unknown name, not five pairs of numbers, or numbers that are no fractions.
    """
    if isinstance(value, str):
        if value not in TEMPLATES:
            raise UserError(f"framing {name}={value}: give {' or '.join(TEMPLATES)}, or five pairs of fractions")
        return TEMPLATES[value]
    try:
        points = np.array(value, np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.shape != (5, 2):
        raise UserError(f"framing {name}: give five pairs (x, y): eyes, nose, mouth corners, the viewer's left first")
    if not (np.abs(points - 0.5) <= 1.5).all():
        raise UserError(f"framing {name}={points.tolist()}: give fractions of width and height, 0 to 1, not pixels")
    if points[0, 0] >= points[1, 0]:
        raise UserError(f"framing {name}: the first point is the eye that the viewer sees on the left")
    return points


def _plain(value: str | Sequence[Sequence[float]] | None) -> str | list[list[float]] | None:
    """Numbers as checkpoints hold them."""
    return value if value is None or isinstance(value, str) else five_points(value, "points").tolist()
