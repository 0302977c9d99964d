"""SSD head: extra feature layers and the predictors on all maps.

Source: SSD, https://arxiv.org/abs/1512.02325, as the TensorFlow Object Detection API builds it for
MobileNetV1 (``ssd_mobilenet_v1_feature_extractor.py``, ``feature_map_generators.py``,
``ssd_mobilenet_v1_coco.config``); SSDLite, https://arxiv.org/abs/1801.04381, section 6.2.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.boxes.default_boxes import (
    checked_box_sizes,
    feature_map_sizes,
    make_default_boxes,
    ssd_box_sizes,
)
from mnvision.errors import UserError
from mnvision.types import SSDOutputs

MIN_EXTRA_DEPTH = 16
INIT_STD = 0.03


class _LayerOptions(TypedDict):
    padding: str
    activation: str
    bn_eps: float
    bn_momentum: float


class SSDHead(nn.Module):
    """Class logits and box offsets for every default box.

    The backbone's maps come first; each extra layer then halves the map before it, rounding up (at 300 px
    with strides 16 and 32: 19, 10, 5, 3, 2, 1 and 1917 default boxes). A 1 x 1 map stays 1 x 1, so every
    input size has all its maps; below about 160 px several of them are 1 x 1.

    An extra layer is a 1 x 1 convolution to half its depth, then a 3 x 3 one of stride 2. SSDLite
    (``lite``) makes that 3 x 3 convolution depthwise-separable, and puts a depthwise 3 x 3 convolution
    before each predictor.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        in_strides: Their strides in pixels.
        num_classes: Classes without background, K.
        resolution: Side, or (height, width), of the network's input in pixels.
        alpha: Width multiplier of the extra layers; their depth is at least 16, as in TF's configs.
        extra_channels: Depths of the extra layers at alpha 1; may be empty.
        lite: SSDLite.
        kernel_size: Odd kernel of the predictors; TF's MobileNetV1 configs use 1. SSDLite's depthwise
            kernel is always 3 and its predictors 1, whatever is given here.
        min_scale: Scale of the finest map's default boxes, see :func:`ssd_box_sizes`.
        max_scale: Scale of the coarsest map's default boxes.
        aspect_ratios: Width / height of the default boxes.
        reduce_lowest: Three default boxes per cell on the finest map instead of six.
        box_sizes: Replaces the four arguments above: per map, a list of (width, height) of its default
            boxes as fractions of the input's shorter side, for example fitted to a data set by
            ``boxes/fit.py``.
        class_prior: Probability in (0, 1) that each class starts with: class logits start at
            log(p / (1 - p)), background at 0, so a sigmoid gives p and a softmax over K + 1 about
            p / (1 + K p). TF's coco14_sync configs start at -4.6, that is 0.01.
        bn_eps: Epsilon of batch normalisation.
        bn_momentum: Momentum of batch normalisation, PyTorch's convention (1 - TF's decay).
        padding: "symmetric" or "tf_same", as in the backbone.
        activation: "relu6" or "relu".

    Attributes:
        default_boxes: ``(A, 4)`` float32 buffer, xyxy in pixels of the network's input; not in the state
            dict, so weights load at any resolution.
        num_classes: K.
        resolution: Height and width.
        map_sizes: Height and width of every feature map.

    Raises:
        UserError: An argument outside its range.
    """

    default_boxes: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        resolution: int | Sequence[int],
        alpha: float = 1.0,
        extra_channels: Sequence[int] = (512, 256, 256, 128),
        lite: bool = False,
        kernel_size: int = 1,
        min_scale: float = 0.2,
        max_scale: float = 0.95,
        aspect_ratios: Sequence[float] = (1.0, 2.0, 1 / 2, 3.0, 1 / 3),
        reduce_lowest: bool = True,
        box_sizes: Sequence[Sequence[Sequence[float]]] | None = None,
        class_prior: float = 0.01,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.03,
        padding: str = "symmetric",
        activation: str = "relu6",
    ) -> None:
        super().__init__()
        self.resolution = _height_width(resolution)
        _check_arguments(in_channels, in_strides, num_classes, alpha, extra_channels, kernel_size, class_prior)
        self.num_classes = num_classes
        num_maps = len(in_channels) + len(extra_channels)
        if box_sizes is None:
            sizes = ssd_box_sizes(num_maps, min_scale, max_scale, aspect_ratios, reduce_lowest)
        else:
            sizes = checked_box_sizes(box_sizes, num_maps)
        self.map_sizes = feature_map_sizes(self.resolution, in_strides, len(extra_channels))
        boxes = make_default_boxes(sizes, self.map_sizes, self.resolution)
        self.register_buffer("default_boxes", boxes, persistent=False)

        layer_options: _LayerOptions = {
            "padding": padding,
            "activation": activation,
            "bn_eps": bn_eps,
            "bn_momentum": bn_momentum,
        }
        channels = list(in_channels)
        self.extras = nn.ModuleList()
        for depth, size in zip(extra_channels, self.map_sizes[len(in_channels) - 1 :]):
            depth = max(int(depth * alpha), MIN_EXTRA_DEPTH)
            # One cell leaves nothing to step over: stride 1 gives the same. With 2, torch's bfloat16 gradient of the
            # weights that only see padding is memory never written (2.15 on the CPU), and training ends in NaN.
            stride = 1 if size == (1, 1) else 2
            self.extras.append(_extra_layer(channels[-1], depth, stride, lite, layer_options))
            channels.append(depth)
        kernel_size = 1 if lite else kernel_size
        self.predictors = nn.ModuleList(
            _Predictor(c, len(s), num_classes, lite, kernel_size, class_prior, layer_options)
            for c, s in zip(channels, sizes)
        )
        self._init_weights()

    def forward(self, feature_maps: Sequence[Tensor]) -> SSDOutputs:
        """Predict for every default box.

        Args:
            feature_maps: The backbone's maps ``(B, C_i, H_i, W_i)``, finest first.

        Returns:
            ``cls_logits`` ``(B, A, K + 1)`` with background in column 0, and ``box_offsets`` ``(B, A, 4)``,
            in the order of ``default_boxes``, in the dtype of the features.

        Raises:
            UserError: The maps are not those of an input of ``resolution``, or there is one image only in
                training mode while a map is 1 x 1 (batch normalisation needs more than one value).
        """
        maps = list(feature_maps)
        self._check_maps(maps)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        predictions = [predictor(feature_map) for feature_map, predictor in zip(maps, self.predictors)]
        logits, offsets = zip(*predictions)
        return {"cls_logits": torch.cat(logits, dim=1), "box_offsets": torch.cat(offsets, dim=1)}

    def _check_maps(self, maps: list[Tensor]) -> None:
        expected = self.map_sizes[: len(self.map_sizes) - len(self.extras)]
        found = [(m.shape[2], m.shape[3]) for m in maps]
        if found != expected:
            height, width = self.resolution
            raise UserError(
                f"the SSD head for {height} x {width} px needs feature maps of {expected}, got {found}: "
                "resize the images or build the model for their size"
            )
        if self.training and maps[0].shape[0] == 1 and (1, 1) in self.map_sizes:
            raise UserError(
                "training the SSD head needs at least 2 images per batch (for batch norm on 1 x 1 maps): "
                "raise the batch size, or drop a last batch of one image"
            )

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)


def _height_width(resolution: int | Sequence[int]) -> tuple[int, int]:
    sides = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise UserError(f"resolution must be a positive whole number or (height, width), got {resolution}")
    return sides[0], sides[1]


def _check_arguments(
    in_channels: Sequence[int],
    in_strides: Sequence[int],
    num_classes: int,
    alpha: float,
    extra_channels: Sequence[int],
    kernel_size: int,
    class_prior: float,
) -> None:
    if not in_channels or len(in_channels) != len(in_strides):
        raise UserError(
            "the SSD head needs one stride per feature map, "
            f"got channels {list(in_channels)} and strides {list(in_strides)}"
        )
    if any(number < 1 for number in [*in_channels, *in_strides, *extra_channels, num_classes]):
        raise UserError("in_channels, in_strides, extra_channels and num_classes of the SSD head must be 1 or more")
    if not (math.isfinite(alpha) and alpha > 0):
        raise UserError(f"alpha of the SSD head must be above 0, got {alpha}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size of the SSD head must be odd and positive, got {kernel_size}")
    if not 0 < class_prior < 1:
        raise UserError(f"class_prior must lie between 0 and 1, got {class_prior}")


def _extra_layer(in_channels: int, depth: int, stride: int, lite: bool, options: _LayerOptions) -> nn.Sequential:
    middle = depth // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["reduce"] = ConvBNAct(in_channels, middle, 1, **options)
    if lite:
        layers["depthwise"] = ConvBNAct(middle, middle, 3, stride=stride, groups=middle, **options)
        layers["pointwise"] = ConvBNAct(middle, depth, 1, **options)
    else:
        layers["expand"] = ConvBNAct(middle, depth, 3, stride=stride, **options)
    return nn.Sequential(layers)


def _per_default_box(predictions: Tensor, columns: int) -> Tensor:
    """``(B, boxes * columns, H, W)`` to ``(B, H * W * boxes, columns)``."""
    return predictions.permute(0, 2, 3, 1).reshape(predictions.shape[0], -1, columns)


class _Predictor(nn.Module):
    """Class logits and box offsets of one feature map, in the order of its default boxes.

    Biases start at zero, except those of the classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_boxes: int,
        num_classes: int,
        lite: bool,
        kernel_size: int,
        class_prior: float,
        options: _LayerOptions,
    ) -> None:
        super().__init__()
        self.num_columns = num_classes + 1
        cls = nn.Conv2d(in_channels, num_boxes * self.num_columns, kernel_size, padding=kernel_size // 2)
        box = nn.Conv2d(in_channels, num_boxes * 4, kernel_size, padding=kernel_size // 2)
        class_bias = torch.zeros(num_boxes, self.num_columns)
        class_bias[:, 1:] = math.log(class_prior / (1 - class_prior))
        cls.bias = nn.Parameter(class_bias.flatten())
        box.bias = nn.Parameter(torch.zeros(num_boxes * 4))
        self.cls = _behind_depthwise(cls, options) if lite else cls
        self.box = _behind_depthwise(box, options) if lite else box

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, C, H, W)`` to ``(B, H * W * boxes, K + 1)`` and ``(B, H * W * boxes, 4)``."""
        logits, offsets = self.cls(feature_map), self.box(feature_map)
        return _per_default_box(logits, self.num_columns), _per_default_box(offsets, 4)


def _behind_depthwise(predictor: nn.Conv2d, options: _LayerOptions) -> nn.Sequential:
    channels = predictor.in_channels
    depthwise = ConvBNAct(channels, channels, 3, groups=channels, **options)
    return nn.Sequential(OrderedDict(depthwise=depthwise, conv=predictor))
