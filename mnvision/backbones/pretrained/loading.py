"""Weights into a backbone and a classifier: first all is compared, then all is loaded or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnvision.backbones.layers import TFSameConv2d
from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.classes import match_classes
from mnvision.backbones.pretrained.weights import PretrainedWeights, grouped, infer_geometry
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

SHOWN_NAMES = 5


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_into` did, in words; ``str()`` gives one line per item.

    Attributes:
        source: Where the weights came from.
        backbone_tensors: Number of tensors of the backbone that were loaded: all of them.
        classifier_loaded: Whether the head's fully connected layer was loaded.
        classifier: How the classifier was loaded, or why it was left out.
        left_out: Parts of the source that have no place here, grouped, e.g. ``model.head.extras.0.*``.
        notes: Anything else worth knowing, e.g. settings that the source does not state.
    """

    source: str
    backbone_tensors: int
    classifier_loaded: bool
    classifier: str
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"weights of {self.source}: {self.backbone_tensors} tensors of the backbone",
            self.classifier,
        ]
        if self.left_out:
            lines.append(f"not used from it: {', '.join(self.left_out)}")
        return "\n".join((*lines, *self.notes))


def load_into(
    backbone: MobileNetV1,
    weights: PretrainedWeights,
    head: nn.Module | None = None,
    *,
    class_names: Sequence[str] | None = None,
    require_classifier: bool = False,
    require_settings: bool = True,
) -> LoadReport:
    """Load ``weights`` into ``backbone`` and, where the classes agree, into ``head``.

    A different ``bn_eps`` is no obstacle: it is absorbed into the scales of batch normalisation, exactly for
    the trained network. Blocks behind the backbone's coarsest map are left out and reported.

    Args:
        backbone: Its every tensor must be in ``weights`` with the same shape.
        weights: From :func:`mnvision.backbones.pretrained.sources.read_weights`.
        head: A :class:`ClassifierHead` takes the classifier; any other head leaves it out.
        class_names: Names of the head's classes. With names on both sides rows are matched by name, so a head
            of ten ImageNet classes takes their ten rows; otherwise the counts must be equal (TF-slim's
            background row not counted).
        require_classifier: Refuse if the classifier cannot be loaded.
        require_settings: Refuse if padding or activation of the backbone differ from what the weights were
            trained with; if false, the difference only stands in the report.

    Raises:
        UserError: Anything differs; the line says what, and which overrides mend it. Nothing was changed
            then.
    """
    state, unused = _within_reach(backbone, weights.state)
    _check_state(backbone, weights, state)
    notes = _compare_settings(backbone, weights, require_settings)
    rows, how = _classifier_rows(weights, head, class_names)
    if require_classifier and rows is None:
        raise UserError(f"{how}; a classifier was asked for")
    note = _absorb_eps(backbone, weights, state)
    backbone.load_state_dict(state, strict=True)
    if rows is not None and weights.classifier is not None and isinstance(head, ClassifierHead):
        with torch.no_grad():
            head.fc.weight.copy_(weights.classifier[0][rows])
            head.fc.bias.copy_(weights.classifier[1][rows])
    left_out = (*grouped(unused, weights.state), *weights.left_out)
    return LoadReport(weights.source, len(state), rows is not None, how, left_out, (*notes, *note))


def backbone_settings(backbone: MobileNetV1) -> dict[str, object]:
    """Arguments that ``backbone`` was built with, so far as they concern its weights; plain data."""
    return {
        **_geometry(backbone),
        **_settings(backbone),
        "bn_eps": backbone.stem.bn.eps,
        "resolution": backbone.resolution,
    }


def _within_reach(backbone: MobileNetV1, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state without the blocks that the backbone does not build because no map of theirs is asked for."""
    indices = {name: int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    beyond = tuple(name for name, index in indices.items() if index >= len(backbone.blocks))
    return {name: tensor for name, tensor in state.items() if name not in beyond}, beyond


def _check_state(backbone: MobileNetV1, weights: PretrainedWeights, state: Mapping[str, Tensor]) -> None:
    own = backbone.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
    if not (missing or unexpected or shapes):
        return
    overrides = _geometry_overrides(backbone, weights)
    if overrides:
        settings = _setting_overrides(backbone, weights)
        only_width = [word.split("=")[0] for word in overrides] == ["backbone.alpha"]
        raise UserError(
            f"weights of {weights.source} do not fit the backbone "
            f"({', '.join(_differences(backbone, weights))}): add {' '.join((*overrides, *settings))}"
            f"{', or backbone.fit_width=true to start from their most important channels' if only_width else ''}"
        )
    parts = [f"missing {', '.join(grouped(missing, own))}"] if missing else []
    parts += [f"unexpected {', '.join(grouped(unexpected, state))}"] if unexpected else []
    parts += [
        f"{name} is {tuple(state[name].shape)} where the backbone has {tuple(own[name].shape)}" for name in shapes
    ]
    raise UserError(f"weights of {weights.source} do not fit the backbone: {'; '.join(parts)}")


def _geometry(backbone: MobileNetV1) -> dict[str, object]:
    alpha, depth_multiplier, variant = infer_geometry(backbone.state_dict(), "the backbone")
    return {"alpha": alpha, "depth_multiplier": depth_multiplier, "variant": variant}


def _settings(backbone: MobileNetV1) -> dict[str, str]:
    """Padding and activation as built; the stem steps by 2, so its convolution tells the padding."""
    activation = {nn.ReLU6: "relu6", nn.ReLU: "relu"}.get(type(backbone.stem.act), "none")
    padding = "tf_same" if isinstance(backbone.stem.conv, TFSameConv2d) else "symmetric"
    return {"padding": padding, "activation": activation}


def _geometry_overrides(backbone: MobileNetV1, weights: PretrainedWeights) -> list[str]:
    own = _geometry(backbone)
    return [f"backbone.{name}={getattr(weights, name)}" for name in own if getattr(weights, name) != own[name]]


def _setting_overrides(backbone: MobileNetV1, weights: PretrainedWeights) -> list[str]:
    own = _settings(backbone)
    return [
        f"backbone.{name}={getattr(weights, name)}" for name in own if getattr(weights, name) not in (None, own[name])
    ]


def _differences(backbone: MobileNetV1, weights: PretrainedWeights) -> list[str]:
    own = {**_geometry(backbone), **_settings(backbone)}
    return [
        f"{name} {getattr(weights, name)} into {name} {value}"
        for name, value in own.items()
        if getattr(weights, name) not in (None, value)
    ]


def _compare_settings(backbone: MobileNetV1, weights: PretrainedWeights, required: bool) -> tuple[str, ...]:
    overrides = _setting_overrides(backbone, weights)
    if overrides and required:
        raise UserError(
            f"weights of {weights.source} were trained otherwise "
            f"({', '.join(_differences(backbone, weights))}): add {' '.join(overrides)}"
        )
    unknown = [name for name in ("padding", "activation", "bn_eps") if getattr(weights, name) is None]
    notes = [f"trained otherwise: {', '.join(_differences(backbone, weights))}"] if overrides else []
    notes += [f"the file does not state {', '.join(unknown)}: taken to be the backbone's"] if unknown else []
    return tuple(notes)


def _absorb_eps(backbone: MobileNetV1, weights: PretrainedWeights, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Rescale gamma so that ``gamma / sqrt(var + eps)`` stays the same under the backbone's ``eps``."""
    own = backbone.stem.bn.eps
    if weights.bn_eps is None or weights.bn_eps == own:
        return ()
    for name in [name for name in state if name.endswith(".bn.weight")]:
        variance = state[name.replace(".bn.weight", ".bn.running_var")].double()
        factor = ((variance + own) / (variance + weights.bn_eps)).sqrt()
        state[name] = (state[name].double() * factor).float()
    return (f"bn_eps {weights.bn_eps:g} of the weights absorbed into the scales (the backbone has {own:g})",)


def _classifier_rows(
    weights: PretrainedWeights, head: nn.Module | None, class_names: Sequence[str] | None
) -> tuple[list[int] | None, str]:
    """Which row of the classifier each class of the head takes, or why none, in words."""
    left_out = f"classifier of {weights.source} left out"
    if weights.classifier is None:
        return None, f"{weights.source} has no classifier"
    if not isinstance(head, ClassifierHead):
        return None, f"{left_out}: {'no head' if head is None else type(head).__name__} to put it in"
    rows, features = weights.classifier[0].shape
    if features != head.fc.in_features:
        return None, f"{left_out}: it takes {features} features, the head gets {head.fc.in_features}"
    if class_names is not None and weights.class_names is not None:
        return _rows_by_name(weights.class_names, class_names, head.fc.out_features, left_out)
    first = 1 if weights.background_first and rows == head.fc.out_features + 1 else 0
    if rows - first != head.fc.out_features:
        return None, f"{left_out}: it has {rows} classes, the head has {head.fc.out_features}"
    dropped = ", without its background row" if first else ""
    return list(range(first, rows)), f"classifier loaded: {rows - first} classes by position{dropped}"


def _rows_by_name(
    offered: Sequence[str], wanted: Sequence[str], num_classes: int, left_out: str
) -> tuple[list[int] | None, str]:
    if len(wanted) != num_classes:
        raise UserError(f"{len(wanted)} class names for a head of {num_classes} classes: give one for each")
    rows, missing = match_classes(wanted, offered)
    if not missing:
        return rows, f"classifier loaded: {len(rows)} of its {len(offered)} classes, matched by name"
    shown = ", ".join(repr(name) for name in missing[:SHOWN_NAMES])
    more = f" and {len(missing) - SHOWN_NAMES} more" if len(missing) > SHOWN_NAMES else ""
    return None, f"{left_out}: it has no class named {shown}{more}"
