"""Several heads on one backbone: one pass through it answers for all of them.

A multi-task model is made of whole single-task models whose backbones are one. So every part, taken alone, is an
ordinary model of ``mnvision.models``: it is trained, decoded, scored, predicted with and exported by the same code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.build import build, build_model
from mnvision.errors import UserError

Norms = Literal["shared", "per_head"]
NORMS: tuple[Norms, ...] = ("shared", "per_head")

OWN_BACKBONE_KEYS = ("resolution", "out_strides", "tail")
"""What each head may choose for itself; all other settings of the backbone are the trunk's."""

ONLY_IN_TRAINING = ("bn_momentum",)
"""What changes no answer: heads that were trained apart may differ in it, and the trunk takes the first one's."""

HEAD_NAMES = {
    "detection": "ssd",
    "faster_rcnn": "faster_rcnn",
    "classification": "classifier",
    "face_attributes": "attributes",
    "face_embeddings": "embedding",
    "geolocation": "geolocation",
}
"""Kind of a single-task model -> what its head is called among others where nobody says otherwise."""


class MultiTaskModel(nn.Module):
    """Heads by name on one MobileNetV1, the trunk.

    The state dict holds ``backbone.*``, ``heads.<name>.*`` and, for ``norms="per_head"``, ``norms.<name>.*`` of all
    heads but the first, whose normalisations are the trunk's.

    Args:
        trunk: Gives every map that a head asks for.
        parts: Single-task models by name. Their backbones are replaced by the trunk, in place.
        norms: "shared": one set of batch normalisations. "per_head": each head has its own, statistics, scale and
            shift, for data sets that differ much; the trunk then runs once for every head.

    Attributes:
        kind: "multitask".
        backbone: The trunk.
        heads: By name, in the order given.
        mean: Per channel, in pixel units, common to all.
        std: Per channel, in pixel units, common to all.

    Raises:
        UserError: No heads, a name that cannot be one, an unknown ``norms``, or parts that ask for other maps, widths
            or pixels than the trunk's.
    """

    kind: ClassVar[str] = "multitask"

    mean: Tensor
    std: Tensor
    backbone: MobileNetV1

    def __init__(self, trunk: MobileNetV1, parts: Mapping[str, Any], norms: Norms = "shared") -> None:
        super().__init__()
        check_names(parts)
        if norms not in NORMS:
            raise UserError(f"model.norms={norms}: choose {' or '.join(NORMS)}")
        _check_pixels(parts)
        first = next(iter(parts.values()))
        self.register_buffer("mean", first.mean, persistent=False)
        self.register_buffer("std", first.std, persistent=False)
        self.backbone = trunk
        self.heads = nn.ModuleDict({name: part.head for name, part in parts.items()})
        self.decoders = nn.ModuleDict({name: part.decoder for name, part in parts.items()})
        self.norms = nn.ModuleDict()
        self.own_norms = norms == "per_head"
        for name, part in parts.items():
            _check_fit(name, part.backbone, trunk)
            if self.own_norms and part is not first:
                self.norms[name] = _share_convolutions(part.backbone, trunk)
            else:
                _share_layers(part.backbone, trunk)
        # In a dictionary, which is no module: all that the parts hold is registered above, once.
        self._parts = dict(parts)
        self._share_pixels()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build from a plain mapping: ``heads``, by name the whole config of a single-task model, and ``norms``.

        Raises:
            UserError: As the class, or the backbones of two heads differ: the first differing key is named.
        """
        heads: Mapping[str, Mapping[str, Any]] = config["heads"]
        check_names(heads)
        check_trunk(heads)
        parts = {name: build_model(head) for name, head in heads.items()}
        return cls(_trunk(heads, parts), parts, config.get("norms", "shared"))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        return tuple(self._parts)

    def part(self, name: str) -> Any:
        """One head as a model of its own, such as a :class:`~mnvision.models.Detector`.

        Its backbone is the trunk, and its head the one here: what is done to it is done to this.

        Raises:
            UserError: There is no such head.
        """
        if name not in self._parts:
            raise UserError(f"there is no head {name!r}; the heads are {', '.join(self._parts)}")
        return self._parts[name]

    def passes(self, names: Iterable[str] | None = None) -> list[tuple[tuple[int, int], list[str]]]:
        """Runs of the trunk that some heads need: of each, height and width in pixels, and the heads it answers for.

        Args:
            names: Of the heads; None is all.
        """
        found: dict[tuple[Any, ...], list[str]] = {}
        for name in self.names if names is None else names:
            key = (self.part(name).resolution, name if self.own_norms else "")
            found.setdefault(key, []).append(name)
        return [(key[0], group) for key, group in found.items()]

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width in pixels of all heads.

        Raises:
            UserError: They differ.
        """
        sizes = {part.resolution for part in self._parts.values()}
        if len(sizes) > 1:
            raise UserError(f"the heads take pictures of different sizes: {self.describe_sizes()}")
        return next(iter(sizes))

    def describe_sizes(self) -> str:
        """Such as "ssd 300 px, attributes 224 px"."""
        return ", ".join(f"{name} {part.resolution[0]} px" for name, part in self._parts.items())

    def maps(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, list[Tensor]]:
        """Feature maps for each head.

        Args:
            images: ``(B, 3, H, W)`` uint8 (or float 0-255), at a size that all of them take.
            names: Of the heads; None is all.

        Returns:
            By head what its ``answer`` takes. The trunk runs once, or once per head where norms are not shared.
        """
        names = self.names if names is None else names
        # One head alone may need fewer blocks than all of them.
        if self.own_norms or len(names) == 1:
            return {name: self.part(name).features(images) for name in names}
        found = self.features(images)
        return {name: [found[stride] for stride in self.part(name).backbone.feature_strides] for name in names}

    def features(self, images: Tensor) -> dict[int, Tensor]:
        """The trunk's maps by stride, of uint8 (or float 0-255) images ``(B, 3, H, W)``; for shared norms only."""
        maps = self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)
        return dict(zip(self.backbone.feature_strides, maps, strict=True))

    def forward(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Raw outputs by head, of uint8 images ``(B, 3, H, W)`` at a size that these heads take."""
        return {name: self.part(name).answer(maps) for name, maps in self.maps(images, names).items()}

    def predict(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Decoded answers by head, of uint8 images ``(B, 3, H, W)`` at a size that these heads take."""
        return {name: self.part(name).finish(raw) for name, raw in self(images, names).items()}

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, of the parts too."""
        super().train(mode)
        for part in self._parts.values():
            part.training = mode
            for module in part.backbone.modules():
                module.training = mode
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._share_pixels()
        return self

    def _share_pixels(self) -> None:
        for part in self._parts.values():
            part.mean, part.std = self.mean, self.std


def check_names(heads: Iterable[str]) -> None:
    """Refuse names that cannot be those of heads.

    Raises:
        UserError: None is given, or one is no plain word.
    """
    taken, names = nn.ModuleDict(), list(heads)
    if not names:
        raise UserError("a multi-task model needs at least one head")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or hasattr(taken, name):
            raise UserError(f"heads: {name!r} cannot be a head's name: use letters, digits and _, such as ssd")


def single_weights(model: MultiTaskModel, name: str) -> dict[str, Tensor]:
    """The weights of one head as a model of its own has them: ``backbone.*`` and ``head.*``."""
    return dict(model.part(name).state_dict())


def check_trunk(heads: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse heads whose backbones, or whose pixels, are not the same.

    Raises:
        UserError: Names the first differing key.
    """
    (first, reference), *others = heads.items()
    # Checkpoints of earlier versions leave out what they did not know.
    parameters = inspect.signature(MobileNetV1).parameters.items()
    usual = {key: parameter.default for key, parameter in parameters if parameter.default is not parameter.empty}
    for name, config in others:
        ours, theirs = usual | dict(reference["backbone"]), usual | dict(config["backbone"])
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in (*OWN_BACKBONE_KEYS, *ONLY_IN_TRAINING) and ours.get(key) != theirs.get(key):
                raise UserError(
                    f"heads {first} and {name} cannot share a trunk: backbone.{key} is {ours.get(key)} for {first} and "
                    f"{theirs.get(key)} for {name}"
                )


def _trunk(heads: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Any]) -> MobileNetV1:
    backbones = [part.backbone for part in parts.values()]
    config = dict(next(iter(heads.values()))["backbone"])
    config["out_strides"] = sorted({stride for backbone in backbones for stride in backbone.feature_strides})
    config["resolution"] = max(backbone.resolution for backbone in backbones)
    config["tail"] = any(head["backbone"].get("tail", False) for head in heads.values())
    trunk: MobileNetV1 = build(config)
    return trunk


def _check_pixels(parts: Mapping[str, Any]) -> None:
    (first, reference), *others = parts.items()
    for name, part in others:
        for key in ("mean", "std"):
            if not torch.equal(getattr(reference, key), getattr(part, key)):
                raise UserError(f"heads {first} and {name} cannot share a trunk: their model.{key} differ")


def _check_fit(name: str, backbone: MobileNetV1, trunk: MobileNetV1) -> None:
    """Refuse a head whose maps or layers the trunk does not have.

    Raises:
        UserError: The trunk has fewer blocks, gives fewer maps, or has layers of another shape.
    """
    if len(backbone.blocks) > len(trunk.blocks) or not set(backbone.feature_strides) <= set(trunk.feature_strides):
        raise UserError(
            f"head {name} asks for maps of strides {backbone.feature_strides}, the trunk gives "
            f"{trunk.feature_strides}: give the trunk more out_strides"
        )
    shapes = {key: tuple(value.shape) for key, value in trunk.state_dict().items()}
    for key, value in backbone.state_dict().items():
        if shapes.get(key) != tuple(value.shape):
            raise UserError(
                f"head {name} cannot sit on this trunk: backbone.{key} is {shapes.get(key, 'absent')} there and "
                f"{tuple(value.shape)} for the head"
            )


def _share_layers(backbone: MobileNetV1, trunk: MobileNetV1) -> None:
    """Put the trunk's layers into a head's backbone."""
    backbone.stem = trunk.stem
    backbone.blocks = nn.ModuleList(list(trunk.blocks)[: len(backbone.blocks)])


def _share_convolutions(backbone: MobileNetV1, trunk: MobileNetV1) -> nn.ModuleDict:
    """Put the trunk's convolutions into a head's backbone.

    Returns:
        The batch normalisations, which remain the head's own, by their layer's name with ``-`` for ``.``.
    """
    layers = dict(trunk.named_modules())
    own = nn.ModuleDict()
    for path, layer in backbone.named_modules():
        if isinstance(layer, ConvBNAct):
            twin: Any = layers[path]
            layer.conv = twin.conv
            own[path.replace(".", "-")] = layer.bn
    return own
