"""What a run needs to learn from a teacher: the teacher, its answers stored or live, and the loss towards them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mnvision.data.teacher_view import OutputReader, TaughtDataset, TeacherView
from mnvision.errors import UserError
from mnvision.losses.distillation import Criterion
from mnvision.teachers import cache
from mnvision.teachers.base import Teacher
from mnvision.teachers.cache_files import relative_names
from mnvision.teachers.outputs import OutputsTeacher
from tasks.distillation import Distillation

log = logging.getLogger("mnvision")

# Keys of the teacher node that say how a run uses it, not what it is.
RUN_KEYS = ("cache", "views", "cache_dir", "batch_size")


def build_teacher(cfg: DictConfig) -> Teacher | None:
    """The teacher that ``cfg`` names, asked for what ``cfg.distill`` needs; ``None`` where it names none.

    It takes no draw from the run's random numbers, so that a student starts from the same weights with and without.

    Raises:
        UserError: It cannot be built, or its kind cannot give what is needed.
    """
    if not cfg.get("teacher"):
        return None
    if "criterion" not in (cfg.get("distill") or {}):
        raise UserError("this task learns nothing from a teacher: leave teacher=... out")
    missing = sorted(OmegaConf.missing_keys(cfg.teacher))  # with the whole path
    if missing:
        raise UserError(f"{' and '.join(missing)} must be given: add {missing[0]}=...")
    node: dict[str, Any] = OmegaConf.to_container(cfg.teacher, resolve=True)  # type: ignore[assignment]
    node = {key: value for key, value in node.items() if key not in RUN_KEYS}
    features = list(cfg.distill.features)
    if features and "features" not in node:
        raise UserError(f"{node['_target_'].rsplit('.', 1)[-1]} gives no feature maps: leave distill.features out")
    if features:
        node["features"] = node["features"] or features
    with torch.random.fork_rng(devices=[]):
        criterion = build_criterion(cfg)
        if criterion is not None and "boxes" in criterion.outputs and node.get("detections") is False:
            node["detections"] = True  # of an SSD of ours, which gives its raw outputs else
        return instantiate(node, _convert_="all")


def build_criterion(cfg: DictConfig) -> Criterion | None:
    """The loss towards the teacher that ``cfg.distill`` names; ``None`` for feature regression alone."""
    node = cfg.distill.criterion
    return None if node is None else instantiate(node, _convert_="all")


def build_distillation(
    cfg: DictConfig, teacher: Teacher, data: Any, student: Any, class_names: Sequence[str]
) -> Distillation:
    """The teacher's part of the loss, once it is known to fit the student and the data.

    Raises:
        UserError: It does not fit, a setting is out of range, or labels are mixed in that the data do not have.
    """
    node = cfg.distill
    distillation = Distillation(
        teacher,
        build_criterion(cfg),
        student,
        class_names,
        weight=node.weight,
        labels=node.labels,
        features=list(node.features),
        feature_weight=node.feature_weight,
    )
    if distillation.labels > 0 and not data.labelled:
        raise UserError(f"distill.labels={distillation.labels:g}, but the data have no labels: set distill.labels=0")
    log.info(
        "learning %s from %s; the labels' share of the loss is %g",
        ", ".join(distillation.outputs),
        teacher.spec.name,
        distillation.labels,
    )
    return distillation


def teacher_view(cfg: DictConfig, teacher: Teacher, data: Any) -> TeacherView:
    """How the teacher takes part in the data: by stored answers, or by running.

    Args:
        cfg: The whole config.
        teacher: From :func:`build_teacher`.
        data: The data module, set up.

    Raises:
        UserError: The cache cannot be filled, or stored answers do not fit the data.
    """
    node = cfg.teacher
    if isinstance(teacher, OutputsTeacher):
        return _precomputed(teacher, data)
    if not node.cache:
        return TeacherView(teacher.spec.resolution)
    if node.views is None:
        raise UserError("teacher.cache=true needs a fixed number of views: give teacher.views, such as 8")
    device = "cpu" if cfg.trainer.accelerator == "cpu" else None
    return cache.prepare(teacher, data, node.cache_dir, node.views, node.batch_size, device)


def _precomputed(teacher: OutputsTeacher, data: Any) -> TeacherView:
    """Answers from a file, the same for every view of a picture."""
    if teacher.spec.kind == "detection" and data.augment is not None:
        raise UserError(
            f"{teacher.spec.name} holds boxes in whole pictures, not in random crops: set data.augment=false"
        )

    def answers(dataset: TaughtDataset) -> OutputReader:
        paths = [dataset.path(position) for position in range(len(dataset))]
        return teacher.outputs_for(relative_names(data.root, paths))

    outputs = answers(data.train_dataset(None))
    judged = None if data.labelled else answers(data.eval_dataset("val", None))
    return TeacherView(teacher.spec.resolution, None, outputs, judged)
