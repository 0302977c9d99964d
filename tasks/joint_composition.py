"""From the composed configs of several heads to one model whose every number is known, and its weights' start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.unfold import folded_norms, measure_folded
from mnvision.build import build_model
from mnvision.checkpoints import Metadata, load_model
from mnvision.data.index import first_few
from mnvision.data.joint import named
from mnvision.errors import UserError
from mnvision.multitask import HEAD_NAMES, OWN_BACKBONE_KEYS, MultiTaskModel, single_weights
from tasks.composition import fitted_weights, pixels_for, settle

log = logging.getLogger("mnvision")

TARGET = "mnvision.multitask.MultiTaskModel"


@dataclass(frozen=True)
class Start:
    """A checkpoint whose trunk and heads a model starts from.

    Attributes:
        path: The file.
        metadata: Of a multi-task model, also where the file holds a single one.
        weights: By head, ``backbone.*`` and ``head.*``.
    """

    path: Path
    metadata: Metadata
    weights: dict[str, dict[str, Tensor]]

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """Model configs by head."""
        found: dict[str, dict[str, Any]] = self.metadata.model["heads"]
        return found

    @property
    def trunk(self) -> dict[str, Any]:
        """Settings that all heads share."""
        backbone = next(iter(self.heads.values()))["backbone"]
        return {key: value for key, value in backbone.items() if key not in (*OWN_BACKBONE_KEYS, "_target_")}


def read_start(path: str) -> Start:
    """A checkpoint of one head or of several, or a published detector.

    Raises:
        UserError: It cannot be read.
    """
    model, metadata = load_model(path)
    if isinstance(model, MultiTaskModel):
        return Start(Path(path), metadata, {name: single_weights(model, name) for name in model.names})
    name = HEAD_NAMES[metadata.kind]
    config = {"_target_": TARGET, "heads": {name: metadata.model}, "norms": "shared"}
    heads = {name: metadata.as_head()}
    joint = Metadata("multitask", config, [], heads=heads, run=metadata.run, overrides=metadata.overrides)
    return Start(Path(path), joint, {name: dict(model.state_dict())})


def compose_joint(
    configs: Mapping[str, Mapping[str, Any]],
    class_names: Mapping[str, Sequence[str]],
    norms: str = "shared",
    start: Start | None = None,
) -> tuple[MultiTaskModel, dict[str, Any]]:
    """A model of several heads, its trunk filled from ``backbone.pretrained`` or a checkpoint where one is given.

    The trunk begins as that of the first head alone would under the same seed.

    Args:
        configs: Composed ``model`` node by head, with one trunk in all of them.
        class_names: From the data, by head.
        norms: See :class:`~mnvision.multitask.MultiTaskModel`.
        start: Heads of it that ``configs`` lacks are carried along; those in both begin with its weights.

    Returns:
        The model and its settled config, from which it can be built again.

    Raises:
        UserError: Heads that do not fit on one trunk, weights that do not fit, or a head whose classes or layers are
            others than the checkpoint's.
    """
    first = next(iter(configs.values()))
    source = first["backbone"].get("pretrained")
    if source and start is not None:
        raise UserError(f"init_from={start.path} and backbone.pretrained={source}: two starts; keep one of them")
    weights = fitted_weights(source, first["backbone"]) if source else None
    settled: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        with named(name):
            settled[name] = settle(config, weights, len(class_names[name]))
        if weights is not None:
            settled[name] |= pixels_for(settled[name], weights)
    if start is None:
        with named(next(iter(settled))):
            alone = build_model(next(iter(settled.values())))
        config = {"_target_": TARGET, "heads": settled, "norms": norms}
        model: MultiTaskModel = build_model(config)
        model.part(model.names[0]).load_state_dict(alone.state_dict())
    else:
        _check_start(start, settled, class_names, norms)
        config = {"_target_": TARGET, "heads": {**start.heads, **settled}, "norms": norms}
        model = build_model(config)
        _load_start(model, start)
    if weights is not None:
        for name in model.names:
            report = load_into(model.part(name).backbone, weights, model.part(name).head, class_names=class_names[name])
            for line in str(report).splitlines() if name == model.names[0] else ():
                log.info(line)
    return model, config


def _check_start(
    start: Start, settled: Mapping[str, Mapping[str, Any]], class_names: Mapping[str, Sequence[str]], norms: str
) -> None:
    if start.metadata.model.get("norms", "shared") == "per_head" != norms:
        raise UserError(f"{start.path} has batch normalisations per head: give multitask.norms=per_head")
    for name, config in settled.items():
        for key, value in start.trunk.items():
            if config["backbone"].get(key, value) != value:
                raise UserError(
                    f"the trunk of {start.path} has backbone.{key}={value}, and backbone.{key}="
                    f"{config['backbone'][key]} is asked for: leave it out"
                )
        if name not in start.heads:
            continue
        stored = start.metadata.heads[name]["class_names"]
        if list(stored) != list(class_names[name]):
            raise UserError(
                f"head {name} of {start.path} answers {len(stored)} classes ({first_few(stored)}), its data have "
                f"{len(class_names[name])} ({first_few(class_names[name])}): give a new head another name, and "
                "NAME.task=TASK"
            )
        for key, value in start.heads[name]["head"].items():
            asked = config["head"].get(key, value)
            if asked != value and key != "resolution":
                raise UserError(
                    f"head {name} of {start.path} was built with head.{key}={value}, and {asked} is asked for: repeat "
                    f"{name}.head.{key}, or give a new head another name and NAME.task=TASK"
                )


def _load_start(model: MultiTaskModel, start: Start) -> None:
    blocks = {key for weights in start.weights.values() for key in weights if key.startswith("backbone.")}
    for name in model.names:
        part = model.part(name)
        lacking = [key for key in part.backbone.state_dict() if f"backbone.{key}" not in blocks]
        if lacking:
            raise UserError(
                f"head {name} asks for maps of strides {part.backbone.feature_strides}, which the trunk of {start.path}"
                f" does not give: it ends before {lacking[0].rsplit('.', 2)[0]}"
            )
    # Of norms per head the first head's are the trunk's.
    kept = reversed(start.weights.values())
    trunk = {key: value for weights in kept for key, value in weights.items() if key in blocks}
    for name in model.names:  # for a new head with norms of its own, those of the trunk
        own = start.weights.get(name, {})
        part, state = model.part(name), {**trunk, **own}
        known = {key: state[key] for key in part.state_dict() if key in state}
        part.load_state_dict(known, strict=False)
    again = [name for name in model.names if name in start.weights]
    log.info("trunk and %s start from %s", ", ".join(again), start.path)


def measure_joint(model: MultiTaskModel, batches: Any, data: Mapping[str, Any], frozen: bool) -> None:
    """Give batch normalisation that came folded (from .tflite files) the statistics of the training pictures.

    Args:
        model: Changed in place.
        batches: Called for joint batches.
        data: Data modules of the trained heads.
        frozen: Whether the trunk has to stay as it is.
    """
    pictures = 0
    if not frozen and folded_norms(model.backbone):
        seen = _Seen(model.backbone, model.features)
        groups = ({"images": group["images"]} for batch in batches() for group in batch["groups"])
        pictures += measure_folded(seen, groups)
    for name, module in data.items():
        part = model.part(name)
        own = [part.head, *([model.norms[name]] if name in model.norms else [])]
        if any(folded_norms(layer) for layer in own):
            pictures += measure_folded(_Seen(nn.ModuleList(own), part), module.train_dataloader())
    if pictures:
        log.info("batch normalisation: its statistics, folded in the file, measured on %d pictures", pictures)


class _Seen(nn.Module):
    """Some layers, and what to call for them to see pictures."""

    def __init__(self, layers: nn.Module, call: Any) -> None:
        super().__init__()
        self.layers = layers
        self._call = (call,)

    def forward(self, images: Tensor) -> Any:
        """Whatever the pictures give."""
        with torch.no_grad():
            return self._call[0](images)
