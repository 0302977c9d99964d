"""Build and measure several heads on one trunk, each from the config of the task that trains it alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mnvision.checkpoints import Metadata, load_model
from mnvision.data.joint import HeadsDataModule, JointDataModule, named
from mnvision.data.partial import PartialLabelsDataModule
from mnvision.errors import UserError
from mnvision.export.runtime import is_exported, open_metadata, open_model
from mnvision.files import whole_file
from mnvision.losses.joint import check_number, make_weighting, per_head
from mnvision.metrics.joint import Monitored, joint_score
from mnvision.multitask import MultiTaskModel
from mnvision.optim import BACKBONE, FineTuning
from mnvision.teachers.base import Teacher
from tasks.base import VisionTask, joint_name
from tasks.joint_composition import Start, compose_joint, measure_joint, read_start
from tasks.multitask import JOINT, MultiTask
from tools.heads import carried_words, compose_head, heads_word, unfold, words_by_head
from tools.quantizing_joint import JointStart, joint_metadata, start_joint
from tools.run import adjusted, build_data, fine_tuning, learned_classes, overrides, plain, score
from tools.teaching import build_distillation, build_teacher, teacher_view

log = logging.getLogger("mnvision")

TRUNKS = ("frozen", "partial", "full")


@dataclass
class Head:
    """What trains one head: its config, data, teacher and classes."""

    cfg: DictConfig
    data: Any
    teacher: Teacher | None
    class_names: list[str]


def build_joint(cfg: DictConfig) -> tuple[MultiTask, HeadsDataModule]:
    """The task of all heads, ready to train, and their data.

    Raises:
        UserError: A value, a head, its data or a checkpoint does not fit; the head's name stands first.
    """
    words = words_by_head(cfg)
    tuning = joint_tuning(cfg)
    _check_options(cfg, list(words))
    stored = joint_metadata(cfg, words) if cfg.get("quantize") else None
    heads = {name: _prepare(name, own, cfg) for name, own in words.items()}
    modules = {name: head.data for name, head in heads.items()}
    options = cfg.multitask
    together = options.norms == "shared"
    data: HeadsDataModule = JointDataModule(modules, options.draw, options.batches_per_step, together)
    if options.same_pictures:
        data = PartialLabelsDataModule(modules, **plain(options.pictures), seed=cfg.seed, together=together)
    start = None if cfg.init_from is None or stored else read_start(str(cfg.init_from))
    begun = None if stored is None else _begun(cfg, stored, words, heads)
    if begun is not None:
        model, config = begun.model, begun.metadata.model
    else:
        model, config = compose_joint(
            {name: plain(head.cfg.model) for name, head in heads.items()},
            {name: head.class_names for name, head in heads.items()},
            cfg.multitask.norms,
            start,
        )
        if not cfg.ckpt_path:
            measure_joint(model, data.train_dataloader, modules, tuning.freeze == BACKBONE)
    metadata = Metadata(
        kind=model.kind,
        model=config,
        class_names=[],
        heads={} if start is None else dict(start.metadata.heads),
        run={**plain(cfg), "heads_run": {name: plain(head.cfg) for name, head in heads.items()}},
        overrides=_all_words(overrides(), words, start),
    )
    tasks = {}
    for name, head in heads.items():
        with named(name):
            tasks[name] = _task(name, head, model, config)
    metadata.heads |= {name: task.metadata.as_head() for name, task in tasks.items()}
    task = instantiate(cfg.task, _convert_="all", _partial_=True)(
        model=model,
        metadata=metadata,
        tasks=tasks,
        data=modules,
        monitored=_monitored(cfg, {name: head.cfg for name, head in heads.items()}),
        weighting=make_weighting(options.weighting, list(heads), _given(options.weights), plain(options.gradnorm)),
    )
    task.fine_tune(tuning)
    if begun is not None:
        begun.prepare(task, cfg, data)
    if task.carried:
        changes = "" if tuning.freeze == BACKBONE else "; the trunk changes, and what they answer with it"
        log.info("carried along untouched: %s%s", ", ".join(task.carried), changes)
    return task, data


def joint_tuning(cfg: DictConfig) -> FineTuning:
    """How much of the trunk changes.

    Raises:
        UserError: ``trunk`` is none of the three, contradicts ``fine_tuning``, or would keep random weights.
    """
    if cfg.trunk not in (None, *TRUNKS):
        raise UserError(f"trunk={cfg.trunk}: choose {', '.join(TRUNKS)}")
    if cfg.init_head:
        raise UserError("init_head: heads of the checkpoint that are trained again start from its weights anyway")
    tuning = FineTuning(**plain(cfg.fine_tuning))
    partial = tuning != FineTuning()
    if cfg.trunk in ("frozen", "full") and partial:
        raise UserError(f"trunk={cfg.trunk} and fine_tuning=...: give trunk=partial, or leave fine_tuning out")
    if cfg.trunk == "partial" and not partial:
        raise UserError("trunk=partial: say how, with fine_tuning.freeze=BLOCKS or fine_tuning.layer_decay=0.7")
    if cfg.trunk == "frozen":
        cfg.fine_tuning.freeze = BACKBONE
    if cfg.trunk is not None and not (cfg.init_from or cfg.backbone.pretrained or cfg.ckpt_path):
        raise UserError(f"trunk={cfg.trunk}: there is no trained trunk: give init_from=FILE")
    return fine_tuning(cfg)


def evaluate_joint(cfg: DictConfig, words: Sequence[str]) -> dict[str, float]:
    """Measure every head of a checkpoint on its own data, as its single task does; returns all metrics.

    Args:
        cfg: The whole config.
        words: The overrides that made it.

    Raises:
        UserError: There is no multi-task checkpoint, or a head of it is not known.
    """
    if not cfg.checkpoint:
        raise UserError("nothing to evaluate: give checkpoint=FILE of a task=multitask run")
    metadata = open_metadata(cfg.checkpoint)
    if metadata.kind != MultiTaskModel.kind:
        raise UserError(f"{cfg.checkpoint} is a {metadata.kind} model, but this task is multitask: leave out task=...")
    heads: dict[str, DictConfig] = {}
    for name, own in words_by_head(cfg).items():
        with named(name):
            metadata.head(name)
            heads[name] = compose_head(name, own, cfg)
    changed = _adjusted_heads(metadata, words, words_by_head(cfg), heads)
    if is_exported(cfg.checkpoint) and changed != metadata.model:
        raise UserError(f"{cfg.checkpoint} is finished: resolution and decoding are those it was exported with")
    model, metadata = open_model(cfg.checkpoint) if changed == metadata.model else load_model(cfg.checkpoint, changed)
    found: dict[str, float] = {}
    for name, head in heads.items():
        with named(name):
            found |= _score_head(cfg, name, head, model, metadata)
    return _report(cfg, found, _monitored(cfg, heads))


def _adjusted_heads(
    metadata: Metadata,
    words: Sequence[str],
    by_head: Mapping[str, Sequence[str]],
    heads: Mapping[str, DictConfig],
) -> dict[str, Any]:
    """A stored model config with what was asked for now, see :func:`~tools.run.adjusted`."""
    stored = set(unfold(metadata.overrides))
    common = [word for word in words if not word.startswith("heads=") and word not in stored]
    changed = {**metadata.model, "heads": dict(metadata.model["heads"])}
    for name, own in by_head.items():
        with named(name):
            given = [word for word in own if f"{name}.{word}" not in stored]
            changed["heads"][name] = adjusted(metadata.head(name).model, [*common, *given], heads[name])
    return changed


def _begun(
    cfg: DictConfig, stored: Metadata, words: Mapping[str, Sequence[str]], heads: Mapping[str, Head]
) -> JointStart:
    """A checkpoint's model to be fine-tuned for int8; its classes are the heads'."""
    for name, head in heads.items():
        head.class_names = stored.head(name).class_names
    configs = {name: head.cfg for name, head in heads.items()}
    return start_joint(cfg, _adjusted_heads(stored, overrides(), words, configs))


def _prepare(name: str, words: Sequence[str], cfg: DictConfig) -> Head:
    with named(name):
        head = compose_head(name, words, cfg)
        data = build_data(head, "fit")
        teacher = build_teacher(head)
        classes = learned_classes(head, data, teacher)
        if not data.labelled:
            head.monitor = {"metric": "val/distill", "mode": "min"}
        return Head(head, data, teacher, classes)


def _task(name: str, head: Head, model: MultiTaskModel, config: Mapping[str, Any]) -> VisionTask:
    part = model.part(name)
    metadata = Metadata(
        kind=part.kind,
        model=config["heads"][name],
        class_names=head.class_names,
        category_ids=list(getattr(head.data, "category_ids", [])),
        preprocess=head.data.preprocess,
        run=plain(head.cfg),
    )
    parts: dict[str, Any] = {"model": part, "metadata": metadata}
    if head.teacher is not None:
        parts["distillation"] = build_distillation(head.cfg, head.teacher, head.data, part, head.class_names)
        head.data.teacher_view = teacher_view(head.cfg, head.teacher, head.data)
    task: VisionTask = instantiate(head.cfg.task, _convert_="all", _partial_=True)(**parts)
    return task


def _check_options(cfg: DictConfig, names: Sequence[str]) -> None:
    """Refuse wrong options before any data are read."""
    options = cfg.multitask
    for key in ("weights", "reference", "importance"):
        if options[key] is not None and not OmegaConf.is_dict(options[key]):
            raise UserError(
                f"multitask.{key}={options[key]}: give numbers by head, in quotes for the shell: "
                f"'multitask.{key}={{{names[0]}: 1.0}}'"
            )
    make_weighting(options.weighting, names, _given(options.weights), plain(options.gradnorm))
    for key in ("reference", "importance"):
        per_head(f"multitask.{key}", _given(options[key]), names)
    if options.conflict_every:
        check_number("multitask.conflict_every", options.conflict_every, least=0)


def _given(node: Any) -> dict[str, Any]:
    """What is said of some heads; nothing for null."""
    return plain(node) if node else {}


def _monitored(cfg: DictConfig, heads: Mapping[str, DictConfig]) -> dict[str, Monitored]:
    options = cfg.multitask
    references, importance = _given(options.reference), _given(options.importance)
    return {
        name: Monitored(
            head.monitor.metric, head.monitor.mode, float(references.get(name, 1)), float(importance.get(name, 1))
        )
        for name, head in heads.items()
    }


def _all_words(given: Sequence[str], trained: Mapping[str, Sequence[str]], start: Start | None) -> list[str]:
    """The overrides of a run, with those that measure carried heads."""
    if start is None or not given:
        return list(given)
    stored = start.metadata.overrides
    alone = not any(word.startswith("heads=") for word in stored)
    carried = {}
    for name, config in start.heads.items():
        if name not in trained:
            resolution = f"backbone.resolution={config['backbone']['resolution']}"
            carried[name] = [*carried_words(stored, None if alone else name), resolution]
    return [*(word for word in given if not word.startswith("heads=")), heads_word({**carried, **trained})]


def _score_head(cfg: DictConfig, name: str, head: DictConfig, model: Any, metadata: Metadata) -> dict[str, float]:
    head.paths.output_dir = str(Path(cfg.paths.output_dir) / name)
    OmegaConf.set_struct(head, False)
    head.split, head.checkpoint, head.trainer, head.callbacks = cfg.split, cfg.checkpoint, cfg.trainer, cfg.callbacks
    log.info("head %s", name)
    found = score(head, model.part(name), metadata.head(name), f"{cfg.checkpoint} ({name})")
    return {joint_name(key, name): value for key, value in found.items()}


def _report(cfg: DictConfig, found: dict[str, float], monitored: Mapping[str, Monitored]) -> dict[str, float]:
    """Write all scores into one file, and log one line per head."""
    values = {name: found.get(joint_name(one.metric, name)) for name, one in monitored.items()}
    known = {name: value for name, value in values.items() if value is not None}
    found[JOINT] = joint_score(known, monitored)
    folder = Path(cfg.paths.output_dir)
    with whole_file(folder / "metrics.json") as path:
        path.write_text(json.dumps(found, indent=2) + "\n")
    for name, value in known.items():
        log.info("%s %.4f", joint_name(monitored[name].metric, name), value)
    log.info("%s %.4f: %s", JOINT, found[JOINT], folder)
    return found
