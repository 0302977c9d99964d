"""Fine-tuning for int8: what a run with ``quantize=qat`` takes from its checkpoint, and how its task is prepared."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mnvision.build import locate
from mnvision.checkpoints import Metadata, load_model, read_metadata
from mnvision.errors import UserError
from mnvision.quantization.ranges import OUTPUT, Show
from tools.cli import flag_words, merge_overrides, quoted, take
from tools.heads import TASK, renewed

log = logging.getLogger("mnvision")

TAUGHT = ("classification", "face_attributes", "face_embeddings", "geolocation", "detection")
"""What a float model can teach; a Faster R-CNN learns from labels alone."""
KINDS = (*TAUGHT, "faster_rcnn")
# What belongs to the float training of the checkpoint and not to the short one behind it.
TRAINING = [
    *("hydra", "trainer", "callbacks", "logger", "debug", "ckpt_path", "resume", "quantize", "paths.output_dir"),
    *("optimizer", "scheduler", "teacher", "distill", "init_from", "init_head", "fine_tuning"),
    *("backbone.pretrained", "backbone.fit_width"),
]
TEACHER = "teacher=checkpoint"
# Of these a checkpoint with other classes than the data's can learn from its own answers.
MAPPED = ("classification", "detection")

Adjust = Callable[[dict[str, Any], list[str], DictConfig], dict[str, Any]]


def expand_quantize(words: list[str]) -> list[str]:
    """Put the overrides of the checkpoint's own run before those given now, and make the checkpoint the teacher.

    Raises:
        UserError: ``quantize`` without a checkpoint that could be quantised.
    """
    asked, _ = take(words, "quantize")
    if asked is None or take(words, "resume")[0]:
        return words
    path, rest = take(words, "init_from")
    metadata = _checkpoint(path, asked)
    if metadata.heads:
        return _expand_joint(str(path), rest, metadata)
    if TASK in rest:
        raise UserError(f"init_from={path} is a model of one head: leave task=multitask out")
    stored = merge_overrides(metadata.overrides, rest, TRAINING)
    task, own = take(rest, "task")[0], take(metadata.overrides, "task")[0]
    if task is not None and task != own:
        stored = [word for word in stored if word.startswith("backbone.")]
    elif task is None and own is None:
        raise UserError(f"{path} does not say which task it was trained for: add task=NAME")
    sigmoid = metadata.model.get("decoder", {}).get("classification") == "sigmoid"
    if sigmoid and not any(word.startswith("loss=") for word in [*stored, *rest]):
        stored.append("loss=multibox_focal")  # of a published detector, whose answers the default would misread
    if metadata.kind in TAUGHT and not any(word.startswith("teacher=") for word in rest):
        stored += [TEACHER, f"teacher.path={quoted(str(path))}"]
    if not {"-m", "--multirun"} & set(flag_words(words)):
        stored.append("hydra.mode=RUN")  # where the checkpoint's task is a sweep by itself
    return [*stored, f"init_from={quoted(str(path))}", *rest]


def _expand_joint(path: str, rest: list[str], metadata: Metadata) -> list[str]:
    """The same of several heads: each is taught by its own float answers."""
    task = take(rest, "task")[0]
    if task not in (None, "multitask"):
        raise UserError(
            f"init_from={path} is a model of several heads: leave task={task} out; tools/merge.py {path} out=one.ckpt "
            "heads=[NAME] cuts one head out"
        )
    heads = take(rest, "heads")[0]
    if heads is not None:
        require_all(path, heads.strip("[]").replace(" ", "").split(","), metadata)
    stored = renewed(metadata.overrides, rest, [*TRAINING, "trunk"])
    if TASK not in [*stored, *rest]:
        stored.insert(0, TASK)
    if not any(word.startswith("heads=") for word in [*stored, *rest]):
        stored.append(f"heads=[{','.join(metadata.heads)}]")
    given = {word.split("=")[0] for word in rest}
    for name, head in metadata.heads.items():
        if head["kind"] in TAUGHT:
            own = [TEACHER, f"teacher.path={quoted(path)}", f"teacher.head={name}"]
            own = ["distill.labels=0.0", *([] if f"{name}.teacher" in given else own)]
            stored += [f"{name}.{word}" for word in own if f"{name}.{word.split('=')[0]}" not in given]
    return [*stored, f"init_from={quoted(path)}", *rest]


def require_all(path: str, names: Iterable[str], metadata: Metadata) -> None:
    """Refuse to train some heads of a checkpoint only, or others.

    Raises:
        UserError: The names are not those of its heads.
    """
    given = list(names)
    if set(given) != set(metadata.heads):
        raise UserError(
            f"heads=[{','.join(given)}]: {path} has {', '.join(metadata.heads)}, and quantize=qat is for all of them, "
            "since it changes their trunk: leave heads=... out, or cut out those that you want with "
            f"tools/merge.py {path} out=some.ckpt heads=[...]"
        )


def _checkpoint(path: str | None, asked: str) -> Metadata:
    """What a checkpoint says of itself, once it is known to be one that can be quantised.

    Raises:
        UserError: It cannot.
    """
    from mnvision.export.runtime import is_exported

    if path in (None, "", "null"):
        raise UserError(f"quantize={asked} fine-tunes a trained checkpoint: give init_from=best.ckpt")
    if is_exported(path):
        raise UserError(f"init_from={path} is an exported file, which learns no more: give the .ckpt it was made of")
    metadata = read_metadata(path)
    if metadata.kind not in (*KINDS, "multitask"):
        raise UserError(f"init_from={path} is a {metadata.kind} model; quantize={asked} is for {', '.join(KINDS)}")
    return metadata


@dataclass(frozen=True)
class Start:
    """A checkpoint's model that computes as its int8 file will.

    Attributes:
        model: In training mode, with the checkpoint's weights.
        ranges: Of its activations, not yet measured.
        metadata: Of the checkpoint; its ``model`` is the config of the model.
    """

    model: Any
    ranges: Any
    metadata: Metadata

    def prepare(self, task: Any, cfg: DictConfig, data: Any) -> None:
        """Measure the ranges and give the task what it needs to go on where the checkpoint ended.

        Raises:
            UserError: The data do not fit the checkpoint.
        """
        task.quantization = self.ranges  # a submodule: saved, restored and synchronised with the task
        take_over(task, self.metadata, data)
        measure(self.ranges, self.model, cfg, data)


def take_over(task: Any, stored: Metadata, data: Any) -> None:
    """Have a task of one head go on where its checkpoint ended.

    Raises:
        UserError: The data do not fit the checkpoint, or there is nothing to learn from.
    """
    taught = task.distillation is not None
    if not taught and not data.labelled:
        raise UserError("the data have no labels and there is no teacher: nothing to learn from; give labelled data")
    if stored.kind not in TAUGHT:
        log.info("a %s learns from labels alone: no loss towards a float model is defined for it", stored.kind)
    task.metadata.category_ids = list(stored.category_ids)
    task.metadata.calibration = deepcopy(stored.calibration)
    if data.labelled:
        task.prepare_evaluation(data, "val")
    elif stored.class_names:
        data.adopt(stored.class_names)
    own, given = stored.class_names, list(data.class_names)
    mapped = stored.kind in MAPPED and taught
    if not own or given == own or (mapped and task.label_share == 0):
        return
    raise UserError(
        f"the checkpoint has {len(own)} classes and the data {len(given)}, or in another order: give the data it was "
        "trained on" + (", or distill.labels=0 to learn from the float model alone" if mapped else "")
    )


def measure(ranges: Any, model: Any, cfg: DictConfig, data: Any, show: Show | None = None) -> None:
    """Measure ranges on training pictures; those of a run that is resumed come from its checkpoint.

    Args:
        ranges: Of the model.
        model: From :func:`~mnvision.quantization.layers.quantize`.
        cfg: The whole config.
        data: The data module.
        show: See :meth:`~mnvision.quantization.ranges.Ranges.measure`.

    Raises:
        UserError: ``quantize.batches`` is out of range, or there are no pictures.
    """
    count = cfg.quantize.batches
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"quantize.batches={count}: give a whole number of at least 1")
    if cfg.ckpt_path:
        return
    pictures = ranges.measure(model, data.train_dataloader(), count, show)
    layers = sum(not name.endswith(OUTPUT) for name in (*ranges.names, *ranges.shared))
    log.info("int8: %d layers are rounded as in the file; ranges measured on %d training pictures", layers, pictures)


def require_backbone(cfg: DictConfig, model: Mapping[str, Any]) -> None:
    """Refuse another backbone than the checkpoint's.

    Args:
        cfg: The whole config.
        model: Config of the checkpoint's model, or of one head of it.

    Raises:
        UserError: Another width, or other weights.
    """
    path, alpha = cfg.init_from, model["backbone"]["alpha"]
    if cfg.backbone.alpha != alpha:
        raise UserError(f"backbone.alpha={cfg.backbone.alpha}, but {path} has {alpha}: leave it out")
    if cfg.backbone.get("pretrained"):
        raise UserError(f"init_from={path} and backbone.pretrained={cfg.backbone.pretrained}: keep the first alone")


def start(cfg: DictConfig, adjust: Adjust, words: Sequence[str]) -> Start:
    """The model that ``init_from`` names, to be fine-tuned for int8.

    Args:
        cfg: The whole config.
        adjust: Applies what the words change of a stored model config, or refuses them.
        words: The command line's overrides.

    Raises:
        UserError: There is no such checkpoint, or it is not one for this config.
    """
    from mnvision.quantization.layers import quantize

    path = cfg.init_from
    metadata = _checkpoint(path, "qat")
    if metadata.heads:
        raise UserError(f"init_from={path} is a model of several heads: leave task=... out")
    wanted = locate(cfg.model._target_).kind  # type: ignore[attr-defined]
    if metadata.kind != wanted:
        raise UserError(f"init_from={path} is a {metadata.kind} model, but this task is {wanted}: leave out task=...")
    require_backbone(cfg, metadata.model)
    given = [word for word in words if word not in metadata.overrides]
    model, metadata = load_model(Path(path), adjust(metadata.model, given, cfg))
    model, ranges = quantize(model.train(), cfg.quantize.momentum, cfg.quantize.weights)
    return Start(model, ranges, metadata)
