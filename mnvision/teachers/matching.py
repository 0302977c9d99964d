"""Whether a teacher's outputs fit a student, settled before the first step, and which columns answer to which name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mnvision.backbones.pretrained.classes import match_classes
from mnvision.errors import UserError
from mnvision.teachers.spec import TeacherSpec

_NAMED = 5


def match_columns(
    teacher_names: Sequence[str] | None,
    teacher_count: int,
    student_names: Sequence[str],
    what: str = "classes",
    teacher: str = "the teacher",
) -> Tensor | None:
    """Which of the teacher's columns the student learns, in the student's order.

    By name where the teacher has names (case, ``_`` and ``-`` do not count, WordNet ids stand for their
    descriptions, one of several synonyms will do); the teacher may have more. Without names, by their number alone.

    Args:
        teacher_names: One per column of the teacher; None if it does not say.
        teacher_count: The teacher's columns, background not counted.
        student_names: One per column of the student.
        what: What the columns are, for errors: "classes" or "attributes".
        teacher: Name of the teacher, for errors.

    Returns:
        ``(len(student_names),)`` int64: ``teacher_outputs[..., index]`` fits the student. None where the columns
        already do, one by one.

    Raises:
        UserError: A class or attribute that the teacher lacks; without names, another number of them; or names
            that are not one per column.
    """
    count = len(student_names)
    if teacher_names is None:
        if teacher_count != count:
            raise UserError(
                f"{teacher} has {teacher_count} {what}, the student {count}, and the teacher has no names to choose "
                f"by: give teacher.class_names (a file with {teacher_count} lines), or another teacher"
            )
        return None
    if len(teacher_names) != teacher_count:
        raise UserError(f"{teacher} has {teacher_count} {what} but {len(teacher_names)} names for them")
    rows, missing = match_classes(student_names, teacher_names)
    if missing:
        raise UserError(
            f"{teacher} has {teacher_count} {what} ({_some(teacher_names)}), the student {count}; the teacher lacks "
            f"{len(missing)} of them: {_some(missing)}"
        )
    if rows == list(range(teacher_count)):
        return None
    return torch.tensor(rows, dtype=torch.int64)


def match_labels(index: Tensor | None, teacher_count: int) -> Tensor:
    """The student's label for each of the teacher's, for detectors, which answer in labels and not in columns.

    Args:
        index: From :func:`match_columns`.
        teacher_count: The teacher's classes, without background.

    Returns:
        ``(teacher_count,)`` int64, -1 for classes that the student does not have.
    """
    if index is None:
        return torch.arange(teacher_count)
    labels = torch.full((teacher_count,), -1, dtype=torch.int64)
    labels[index] = torch.arange(len(index))
    return labels


def require_outputs(spec: TeacherSpec, *names: str) -> None:
    """Refuse a teacher that does not give ``names``.

    Args:
        spec: Of the teacher.
        *names: Names of outputs, e.g. "logits".

    Raises:
        UserError: Names what the teacher gives instead, with shapes.
    """
    lacking = [name for name in names if name not in spec.outputs]
    if lacking:
        raise UserError(f"{spec.name} gives {spec.describe_outputs()}, not {' and '.join(lacking)}: {_advice(lacking)}")


def match_embedding(spec: TeacherSpec, dim: int) -> None:
    """Refuse a teacher whose embedding has another length than the student's.

    Args:
        spec: Of the teacher.
        dim: Length of the student's embedding.

    Raises:
        UserError: No embedding, or another length; both are named.
    """
    require_outputs(spec, "embedding")
    (length,) = spec.outputs["embedding"]
    if length != dim:
        raise UserError(
            f"{spec.name} gives an embedding of {length} numbers, the student one of {dim}: "
            f"set the student's size to {length}"
        )


def match_default_boxes(spec: TeacherSpec, default_boxes: Tensor, resolution: tuple[int, int]) -> None:
    """Refuse an SSD teacher whose default boxes are not the student's, one by one.

    Args:
        spec: Of the teacher.
        default_boxes: ``(A, 4)`` float32 of the student, xyxy in pixels of its input.
        resolution: Height and width of the student's input.

    Raises:
        UserError: No SSD of ours, another number of boxes, or boxes more than 1e-4 of the input apart.
    """
    require_outputs(spec, "cls_logits", "box_offsets")
    height, width = resolution
    own = default_boxes.cpu() / torch.tensor([width, height, width, height])
    theirs = spec.default_boxes
    if theirs is None or theirs.shape != own.shape:
        count = spec.outputs["cls_logits"][0]
        raise UserError(
            f"{spec.name} has {count} default boxes at {spec.resolution[0]} x {spec.resolution[1]} px, the student "
            f"{len(own)} at {height} x {width} px: distillation of SSD outputs needs the same; give both models one "
            "resolution and one set of boxes, or learn from its detections (pseudo-labels)"
        )
    apart = float((theirs - own).abs().max())
    if apart > 1e-4:
        raise UserError(
            f"{spec.name}: its {len(own)} default boxes are not the student's (up to {apart:.3g} of the input apart): "
            "set the student's head.box_sizes, scales and aspect ratios to the teacher's"
        )


def _some(names: Sequence[str]) -> str:
    more = f", ... {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    # Of ImageNet's names the first synonym.
    return f"{', '.join(name.partition(',')[0] for name in names[:_NAMED])}{more}"


def _advice(lacking: list[str]) -> str:
    features = [name for name in lacking if name.startswith("features_")]
    if features:
        strides = ", ".join(name.removeprefix("features_") for name in features)
        return f"ask for the maps with teacher.features=[{strides}]"
    return "choose a teacher of this task, or a distill criterion that fits the teacher"
