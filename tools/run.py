"""Build what a composed config names, and call it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mnvision.backbones.pretrained.unfold import folded_norms, measure_folded
from mnvision.build import locate
from mnvision.callbacks.checkpoint_io import AtomicCheckpointIO
from mnvision.checkpoints import Metadata, load_model
from mnvision.errors import UserError
from mnvision.export.runtime import NoLoss, is_exported, open_model
from mnvision.files import whole_file
from mnvision.optim import FineTuning
from mnvision.teachers.base import Teacher
from mnvision.teachers.scored import ScoredTeacher
from tasks.composition import compose_model, compose_published_classifier
from tools.quantizing import start as start_quantized
from tools.teaching import build_distillation, build_teacher, teacher_view

log = logging.getLogger("mnvision")
# Its notes on absent accelerators and logging services say nothing about the run.
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)


def plain(node: Any) -> Any:
    """A config node as resolved dicts, lists and numbers."""
    return OmegaConf.to_container(node, resolve=True)


def overrides() -> list[str]:
    """The command line's overrides, or none when a config was composed in Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def build_all(node: DictConfig | None) -> list[Any]:
    """Every part of a group of parts, e.g. callbacks; those set to null are left out."""
    return [instantiate(part, _convert_="all") for part in (node or {}).values() if part]


def build_data(cfg: DictConfig, stage: str) -> Any:
    """The data module, its files read and its problems reported."""
    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup(stage)
    return data


def build_trainer(cfg: DictConfig, callbacks: list[Any]) -> pl.Trainer:
    """Lightning's trainer with checkpoints that are written whole or not at all."""
    loggers = build_all(cfg.logger)
    return instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False, plugins=[AtomicCheckpointIO()])


def is_joint(cfg: DictConfig) -> bool:
    """Whether several heads are meant, each with its own config."""
    return "heads" in cfg


def train(cfg: DictConfig) -> pl.Trainer:
    """Build everything ``cfg`` names, fit it, and return the trainer."""
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    folder = Path(cfg.paths.output_dir)
    if is_joint(cfg):
        from tools.multitask import build_joint

        task, data = build_joint(cfg)
    else:
        task, data = build_single(cfg)
    metadata = task.metadata
    trainer = build_trainer(cfg, build_all(cfg.callbacks))
    if 0 in (trainer.max_epochs, trainer.max_steps):
        raise UserError("nothing to train: trainer.max_epochs or trainer.max_steps is 0")
    if trainer.is_global_zero and not cfg.trainer.fast_dev_run:
        with whole_file(folder / "config.yaml") as path:
            OmegaConf.save(cfg, path, resolve=True)
    classes = ", ".join(metadata.heads) if metadata.heads else f"{len(metadata.class_names)} classes"
    log.info("training %s: %s, %d images, %s", metadata.kind, classes, data.num_images("train"), folder)
    trainer.fit(task, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    _report_fit(cfg, trainer, folder)
    return trainer


def build_single(cfg: DictConfig) -> tuple[Any, Any]:
    """The task of one head, ready to train, and its data."""
    data = build_data(cfg, "fit")
    teacher = build_teacher(cfg)
    begun = start_quantized(cfg, adjusted, overrides()) if cfg.get("quantize") else None
    if begun is not None:
        model, model_config, class_names = begun.model, begun.metadata.model, begun.metadata.class_names
    else:
        class_names = learned_classes(cfg, data, teacher)
        model, model_config = compose_model(plain(cfg.model), class_names, cfg.init_from, cfg.init_head)
        if not cfg.ckpt_path:
            measure_statistics(model, data)
    tuning = fine_tuning(cfg)
    if not data.labelled:
        cfg.monitor = {"metric": "val/distill", "mode": "min"}
    metadata = Metadata(
        kind=model.kind,
        model=model_config,
        class_names=class_names,
        category_ids=list(getattr(data, "category_ids", [])),
        preprocess=data.preprocess,
        run=plain(cfg),
        overrides=overrides(),
    )
    parts: dict[str, Any] = {"model": model, "metadata": metadata}
    if teacher is not None:
        parts["distillation"] = build_distillation(cfg, teacher, data, model, class_names)
        data.teacher_view = teacher_view(cfg, teacher, data)
    task = instantiate(cfg.task, _convert_="all", _partial_=True)(**parts)
    task.fine_tune(tuning)
    if begun is not None:
        begun.prepare(task, cfg, data)
    return task, data


def measure_statistics(model: torch.nn.Module, data: Any) -> None:
    """Give batch normalisation that came folded (from .tflite files) the statistics of the training pictures."""
    if folded_norms(model):
        pictures = measure_folded(model, data.train_dataloader())
        log.info("batch normalisation: its statistics, folded in the file, measured on %d pictures", pictures)


def fine_tuning(cfg: DictConfig) -> FineTuning:
    """How much of the backbone changes.

    Raises:
        UserError: A value is out of range, or random weights are to be frozen.
    """
    tuning = FineTuning(**plain(cfg.fine_tuning))
    if tuning.freeze is not None and not (cfg.init_from or cfg.backbone.pretrained or cfg.ckpt_path):
        raise UserError(
            f"fine_tuning.freeze={tuning.freeze} would keep random weights: give init_from=FILE or "
            "backbone.pretrained=SOURCE"
        )
    return tuning


def learned_classes(cfg: DictConfig, data: Any, teacher: Teacher | None) -> list[str]:
    """The classes to learn: those of the data, or the teacher's where these have no labels."""
    if data.labelled:
        return list(data.class_names)
    if teacher is None:
        raise UserError("the data have no labels and there is no teacher: nothing to learn from; give teacher=...")
    if "num_classes" not in cfg.model.head:  # an embedding has no classes
        return []
    names = teacher.spec.class_names
    if names is None:
        columns = teacher.spec.outputs.get("logits") or teacher.spec.outputs.get("attribute_logits") or (0,)
        names = tuple(f"class {number}" for number in range(columns[0]))
        log.warning("%s does not name its classes: they are called class 0, class 1, ...", teacher.spec.name)
    data.adopt(names)
    return list(data.class_names)


def _report_fit(cfg: DictConfig, trainer: pl.Trainer, folder: Path) -> None:
    if cfg.trainer.fast_dev_run:
        log.info("one batch of each loop ran; nothing was written")
        return
    if trainer.is_global_zero and (folder / "metrics.csv").is_file():
        from mnvision.figures import save_training_curves

        save_training_curves(folder / "metrics.csv", folder / "figures" / "curves.png")
    if not trainer.callback_metrics:
        log.info(
            "nothing was left to train: %d epochs are done; raise trainer.max_epochs or trainer.max_steps",
            trainer.current_epoch,
        )
    checkpoint = trainer.checkpoint_callback
    score = getattr(checkpoint, "best_model_score", None)
    if score is not None:
        log.info("best %s %.4f: %s", cfg.monitor.metric, float(score), checkpoint.best_model_path)  # type: ignore[union-attr]
        notes = getattr(trainer.datamodule, "notes", None)  # type: ignore[attr-defined]
        for note in notes("val") if notes else ():
            log.info("note: %s", note)
    log.info("run folder: %s", folder)


def adjusted(config: dict[str, Any], given: Sequence[str], cfg: DictConfig) -> dict[str, Any]:
    """A stored model config with what was asked for now: another resolution or another decoding."""
    config = deepcopy(config)
    for word in given:
        key = word.lstrip("+").split("=")[0]
        if key == "backbone.resolution":
            config["backbone"]["resolution"] = cfg.backbone.resolution
            if "resolution" in config["head"]:
                config["head"]["resolution"] = cfg.backbone.resolution
        elif key.startswith("decoder."):
            name = key.removeprefix("decoder.")
            config["decoder"][name] = cfg.decoder[name]
        elif key.split(".")[0] in ("backbone", "head", "model"):
            stored = OmegaConf.select(OmegaConf.create(config), key.removeprefix("model."))
            if stored is None or stored != OmegaConf.select(cfg, key):
                raise UserError(f"{key} cannot be changed for a trained checkpoint; leave it out")
    return config


def evaluated_model(cfg: DictConfig, words: Sequence[str]) -> tuple[Any, Metadata, str]:
    """What is to be measured: a checkpoint, a teacher, or a published classifier; and what to call it."""
    if cfg.checkpoint:
        model, metadata = open_model(cfg.checkpoint)
        given = [word for word in words if word not in metadata.overrides]
        changed = adjusted(metadata.model, given, cfg)
        if changed != metadata.model:
            if is_exported(cfg.checkpoint):
                raise UserError(f"{cfg.checkpoint} is finished: resolution and decoding are those it was exported with")
            model, metadata = load_model(cfg.checkpoint, changed)
        return model, metadata, str(cfg.checkpoint)
    teacher = build_teacher(cfg)
    if teacher is None:
        return *compose_published_classifier(plain(cfg.model)), str(cfg.backbone.pretrained)
    model = ScoredTeacher(teacher)
    return model, Metadata(model.kind, {}, list(teacher.spec.class_names or [])), teacher.spec.name


def evaluate(cfg: DictConfig, words: Sequence[str] | None = None) -> dict[str, float]:
    """Measure a checkpoint, a teacher or a published classifier on one split; returns the metrics.

    Args:
        cfg: The whole config.
        words: The overrides that made it; ``None`` for the command line's.
    """
    words = overrides() if words is None else words
    if is_joint(cfg):
        from tools.multitask import evaluate_joint

        return evaluate_joint(cfg, words)
    return score(cfg, *evaluated_model(cfg, words))


def score(cfg: DictConfig, model: Any, metadata: Metadata, name: str) -> dict[str, float]:
    """Measure a model on one split; returns the metrics.

    Args:
        cfg: The whole config of a single task; changed.
        model: Of that task.
        metadata: Of the model.
        name: What to call it.
    """
    wanted = locate(cfg.model._target_).kind  # type: ignore[attr-defined]
    if model.kind != wanted:
        advice = "leave out task=..., or give one" if cfg.checkpoint else "give a task"
        raise UserError(f"{name} is a {model.kind} model, but this task is {wanted}: {advice} of {model.kind}")
    cfg.backbone.resolution = model.backbone.resolution
    folder = Path(cfg.paths.output_dir)
    data = build_data(cfg, "validate" if cfg.split != "test" else "test")
    if not data.labelled:
        raise UserError(f"{data.root} has no labels to score against: give data=NAME and data.root=PATH of a set with")
    _show_at(data, getattr(model, "network", None), getattr(model, "resolution", None))
    if metadata.preprocess and metadata.preprocess != data.preprocess:
        log.warning(
            "%s was trained on pictures laid out by %s, these by %s", name, metadata.preprocess, data.preprocess
        )
    parts: dict[str, Any] = {"model": model, "metadata": metadata}
    if not getattr(model, "has_loss", True):
        parts["loss"] = NoLoss()
    task = instantiate(cfg.task, _convert_="all", _partial_=True)(**parts)
    task.prepare_evaluation(data, cfg.split)
    cfg.logger = None
    trainer = build_trainer(cfg, build_all(OmegaConf.masked_copy(cfg.callbacks, "progress")))
    trainer.validate(task, dataloaders=data.eval_dataloader(cfg.split), verbose=False)
    if trainer.is_global_zero:
        for line in task.write_report(folder):
            log.info(line)
        log.info("report: %s", folder)
    return {key: float(value) for key, value in trainer.callback_metrics.items()}


def _show_at(data: Any, network: tuple[int, int] | None, size: tuple[int, int] | None) -> None:
    """Have pictures drawn at the size of a file that stretches them inside; what is shown of them stays the same."""
    if network is None or network == size:
        return
    data.resolution = size
    if hasattr(data, "framing"):
        data.framing.network = network
