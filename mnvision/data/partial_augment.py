"""One augmentation for pictures with labels of several heads."""

from __future__ import annotations

from collections.abc import Mapping

from mnvision.errors import UserError
from mnvision.transforms.classification import ClassificationAugment
from mnvision.transforms.detection import DetectionAugment

HeadAugment = ClassificationAugment | DetectionAugment | None

_REMEDY = "say what happens to the pictures they share with multitask.pictures.augment"


def gentlest(augments: Mapping[str, HeadAugment]) -> ClassificationAugment | None:
    """What every head's own augmentation allows: no crop is smaller, no mirroring likelier, no colour further off.

    Detection's crops count with their extent; that they are drawn around objects, zooming out, and changes of hue and
    contrast have no counterpart and are left out.

    Args:
        augments: By head; None where one changes nothing, and then nothing is changed for any.

    Raises:
        UserError: One shows four pictures in one, or has transforms of its own.
    """
    limits = [_limits(name, augment) for name, augment in augments.items() if augment is not None]
    if not limits or len(limits) < len(augments):
        return None
    least = max(limit.area[0] for limit in limits)
    aspect = (max(limit.aspect[0] for limit in limits), min(limit.aspect[1] for limit in limits))
    return ClassificationAugment(
        area=(least, max(least, *(limit.area[1] for limit in limits))),
        aspect=aspect if aspect[0] <= aspect[1] else (1.0, 1.0),
        flip=min(limit.flip for limit in limits),
        brightness=min(limit.brightness for limit in limits),
        saturation=min(limit.saturation for limit in limits),
    )


def _limits(head: str, augment: ClassificationAugment | DetectionAugment) -> ClassificationAugment:
    """The part of an augmentation that every kind has."""
    if augment.to_dict()["extra"]:
        raise UserError(f"{head}.data.augment.extra is that head's alone: {_REMEDY}")
    if isinstance(augment, ClassificationAugment):
        return augment
    if augment.mosaic:
        raise UserError(f"{head}.data.augment.mosaic={augment.mosaic}: {_REMEDY}, which has none")
    cropped = augment.crop > 0
    return ClassificationAugment(
        area=(augment.crop_scale[0] ** 2, augment.crop_scale[1] ** 2) if cropped else (1.0, 1.0),
        aspect=augment.crop_aspect if cropped else (1.0, 1.0),
        flip=augment.flip,
        brightness=augment.colour["brightness"],
        saturation=augment.colour["saturation"],
    )
