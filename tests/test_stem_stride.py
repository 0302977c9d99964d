"""The variant whose first convolution does not step: half of every stride, the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.loading import load_into
from mnvision.backbones.pretrained.sources import read_weights
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.heads.ssd import SSDHead
from tests.builders_models import save_classifier
from tests.test_mobilenet_v1 import picture, randomise


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_maps_are_as_announced(padding):
    model = MobileNetV1(0.25, stem_stride=1, out_strides=(16, 1, 4, 2, 8), padding=padding).eval()
    assert model.feature_strides == [1, 2, 4, 8, 16]
    assert model.feature_channels == [16, 32, 64, 128, 256]
    for height, width in [(32, 32), (33, 47), (1, 1)]:
        with torch.no_grad():
            maps = model(picture(height, width))
        for feature_map, channels, stride in zip(maps, model.feature_channels, model.feature_strides, strict=True):
            assert feature_map.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize(
    ("options", "stride"),
    [
        ({}, 32),
        ({"output_stride": 16}, 16),
        ({"stem_stride": 1}, 16),
        ({"stem_stride": 1, "output_stride": 16}, 16),
        ({"stem_stride": 1, "output_stride": 8}, 8),
    ],
)
def test_without_out_strides_the_coarsest_map_is_given(options, stride):
    model = MobileNetV1(0.25, **options).eval()
    assert model.feature_strides == [stride]
    (last,) = model(torch.zeros(1, 3, 64, 64))
    assert last.shape == (1, 256, 64 // stride, 64 // stride)


def test_output_stride_counts_real_strides():
    # With the stem's step gone, one step fewer turns into dilation.
    def dilations(model: MobileNetV1) -> list[int]:
        return [block.depthwise.conv.dilation[0] for block in model.blocks]

    assert dilations(MobileNetV1(0.25, stem_stride=1, output_stride=16)) == [1] * 13
    assert dilations(MobileNetV1(0.25, stem_stride=1, output_stride=8)) == [1] * 12 + [2]
    assert dilations(MobileNetV1(0.25, stem_stride=2, output_stride=8)) == [1] * 6 + [2] * 6 + [4]


@pytest.mark.parametrize("variant", ["separable", "full_conv", "shallow"])
def test_a_picture_costs_what_one_of_twice_its_side_costs_otherwise(variant):
    small = measure(MobileNetV1(0.25, stem_stride=1, variant=variant), 48)
    large = measure(MobileNetV1(0.25, variant=variant), 96)
    assert small.layers == large.layers


def test_the_body_at_112_pixels_is_the_papers_at_224():
    # 567,716,352: the exact body of table 1 at 224 px, see test_cost.py.
    assert measure(MobileNetV1(stem_stride=1), 112).mult_adds == 567716352


def test_state_dict_and_values_follow_from_the_ordinary_network():
    ordinary, unstepped = MobileNetV1(0.25).eval(), MobileNetV1(0.25, stem_stride=1).eval()
    randomise(ordinary)
    unstepped.load_state_dict(ordinary.state_dict())
    images = picture(64, 64)
    with torch.no_grad():
        # Every second place of the unstepped stem's output is the stepped stem's.
        torch.testing.assert_close(unstepped.stem(images)[:, :, ::2, ::2], ordinary.stem(images))
        # Behind the stem both are the same network.
        maps = unstepped.stem(images)
        for block in ordinary.blocks:
            maps = block(maps)
        torch.testing.assert_close(unstepped(images)[-1], maps)
        assert maps.std() > 0.01


def test_pretrained_weights_load(tmp_path):
    whole = save_classifier(tmp_path / "best.ckpt")
    model = MobileNetV1(0.25, stem_stride=1)
    load_into(model, read_weights(str(tmp_path / "best.ckpt")), None)
    assert torch.equal(model.stem.conv.weight, whole.backbone.stem.conv.weight)


def test_an_ssd_head_takes_its_strides():
    backbone = MobileNetV1(0.25, stem_stride=1, resolution=64, out_strides=(8, 16))
    head = SSDHead(backbone.feature_channels, backbone.feature_strides, 3, 64, alpha=0.25)
    outputs = nn.Sequential(backbone, head).eval()(torch.zeros(1, 3, 64, 64))
    assert outputs["box_offsets"].shape[1] == len(head.default_boxes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stem_stride": 4}, "stem_stride is 4"),
        ({"stem_stride": 0}, "stem_stride is 0"),
        ({"stem_stride": 1, "out_strides": (32,)}, "1, 2, 4, 8, 16 .stem_stride is 1."),
        ({"stem_stride": 2, "out_strides": (1,)}, "2, 4, 8, 16, 32 .stem_stride is 2."),
        ({"stem_stride": 1, "out_strides": (16,), "output_stride": 8}, "leaves no map of stride 16"),
    ],
)
def test_impossible_strides_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        MobileNetV1(**options)
