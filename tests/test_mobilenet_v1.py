"""MobileNetV1's shapes, padding, dilation and numbers, against timm, the paper and the authors' code."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct, TFSameConv2d
from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.errors import UserError

TIMM_SIZES = [(224, 224), (97, 97), (65, 81)]


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights and batch statistics under which activations neither die nor saturate."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", generator=generator)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.weight, 0.7, 1.4, generator=generator)
            nn.init.uniform_(layer.bias, -0.2, 0.5, generator=generator)


def picture(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def by_position(source: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of ``source`` under the names of ``target``; both list the same layers in the same order."""
    assert [v.shape for v in source.values()] == [v.shape for v in target.values()]
    return dict(zip(target, source.values()))


def timm_body() -> nn.Module:
    return timm.create_model("mobilenetv1_100", pretrained=False, num_classes=0, global_pool="")


@pytest.mark.parametrize("to_timm", [False, True])
def test_equals_timm_with_copied_weights(to_timm):
    theirs, ours = timm_body().eval(), MobileNetV1(bn_eps=1e-5).eval()
    source, target = (ours, theirs) if to_timm else (theirs, ours)
    randomise(source)
    target.load_state_dict(by_position(source.state_dict(), target.state_dict()))
    for size in TIMM_SIZES:
        with torch.no_grad():
            got, want = ours(picture(*size))[-1], theirs(picture(*size))
        assert want.std() > 0.1
        torch.testing.assert_close(got, want)


def test_equals_timms_intermediate_maps():
    theirs = timm.create_model("mobilenetv1_100", pretrained=False, features_only=True).eval()
    ours = MobileNetV1(bn_eps=1e-5, out_strides=(2, 4, 8, 16, 32)).eval()
    randomise(theirs)
    ours.load_state_dict(by_position(theirs.state_dict(), ours.state_dict()))
    with torch.no_grad():
        got, want = ours(picture(65, 81)), theirs(picture(65, 81))
    assert len(got) == len(want) == 5
    for ours_map, theirs_map in zip(got, want):
        assert theirs_map.std() > 0.1
        torch.testing.assert_close(ours_map, theirs_map)


def test_table_1_shapes():
    # (output channels, output side at 224) of the 27 convolutions; the last depthwise has stride 1 (its own
    # printed sizes), not the printed 2.
    blocks = [(64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7)]
    want, channels = [(32, 112)], 32
    for out_channels, side in blocks:
        want += [(channels, side), (out_channels, side)]
        channels = out_channels
    model, got = MobileNetV1().eval(), []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: got.append((out.shape[1], out.shape[2])))
    with torch.no_grad():
        (last,) = model(torch.zeros(1, 3, 224, 224))
    assert got == want
    assert last.shape == (1, 1024, 7, 7)


@pytest.mark.parametrize("alpha", [1.3, 0.75, 0.5, 0.33, 0.05])
@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
def test_maps_are_as_announced(alpha, padding):
    model = MobileNetV1(alpha, out_strides=(32, 2, 16, 4, 8), padding=padding).eval()
    assert model.feature_strides == [2, 4, 8, 16, 32]
    assert model.feature_channels == [max(int(c * alpha), 8) for c in (64, 128, 256, 512, 1024)]
    for height, width in [(64, 64), (65, 81), (31, 97), (1, 1)]:
        with torch.no_grad():
            maps = model(picture(height, width))
        for feature_map, channels, stride in zip(maps, model.feature_channels, model.feature_strides):
            assert feature_map.shape == (2, channels, math.ceil(height / stride), math.ceil(width / stride))


def test_every_layer_is_rounded_down_with_a_floor_of_8():
    def channels(model: MobileNetV1) -> list[int]:
        return [model.stem.conv.out_channels, *(block.pointwise.conv.out_channels for block in model.blocks)]

    assert channels(MobileNetV1(0.3)) == [9, 19, 38, 38, 76, 76, *[153] * 6, 307, 307]
    assert channels(MobileNetV1(0.05)) == [8, 8, 8, 8, 12, 12, *[25] * 6, 51, 51]


def test_fewer_maps_are_the_same_maps_without_the_unused_blocks():
    whole, part = (
        MobileNetV1(0.25, out_strides=(4, 8, 32)).eval(),
        MobileNetV1(0.25, out_strides=(4, 8)).eval(),
    )
    randomise(whole)
    assert len(part.blocks) == 5
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    with torch.no_grad():
        for got, want in zip(part(picture(65, 81)), whole(picture(65, 81))[:2], strict=True):
            torch.testing.assert_close(got, want)


def test_state_dict_names():
    names = set(MobileNetV1(0.25).state_dict())
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = ["stem", *(f"blocks.{i}.{part}" for i in range(13) for part in ("depthwise", "pointwise"))]
    assert names == {f"{layer}.{part}" for layer in layers for part in ("conv.weight", *(f"bn.{n}" for n in bn))}
    full = {name for name in MobileNetV1(0.25, variant="full_conv").state_dict() if name.endswith("conv.weight")}
    assert full == {"stem.conv.weight", *(f"blocks.{i}.full.conv.weight" for i in range(13))}
    assert len(MobileNetV1(0.25, variant="shallow").blocks) == 8


def test_shallow_lacks_the_five_equal_blocks():
    model = MobileNetV1(variant="shallow", out_strides=(16, 32)).eval()
    shapes = [(b.pointwise.conv.out_channels, b.depthwise.conv.stride[0]) for b in model.blocks]
    assert shapes == [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (1024, 2), (1024, 1)]
    assert [tuple(m.shape[1:]) for m in model(torch.zeros(1, 3, 64, 64))] == [(512, 4, 4), (1024, 2, 2)]


def test_full_conv_starts_each_block_with_its_step():
    model = MobileNetV1(0.25, variant="full_conv", out_strides=(2, 4, 8, 16, 32)).eval()
    assert [m.shape[2] for m in model(torch.zeros(1, 3, 65, 65))] == [33, 17, 9, 5, 3]
    assert all(b.full.conv.groups == 1 and b.full.conv.kernel_size == (3, 3) for b in model.blocks)


def test_depth_multiplier_gives_so_many_depthwise_channels_per_input_channel():
    model = MobileNetV1(0.25, depth_multiplier=2)
    depthwise, pointwise = model.blocks[3].depthwise.conv, model.blocks[3].pointwise.conv
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (32, 64, 32)
    assert (pointwise.in_channels, pointwise.out_channels) == (64, 64)
    assert model(picture(32, 32))[0].shape == (2, 256, 1, 1)


@pytest.mark.parametrize(
    ("output_stride", "stride_and_dilation"),
    [
        (32, [(2, 1), *[(1, 1)] * 5, (2, 1), (1, 1)]),
        (16, [(2, 1), *[(1, 1)] * 5, (1, 1), (1, 2)]),
        (8, [(1, 1), *[(1, 2)] * 5, (1, 2), (1, 4)]),
    ],
)
def test_steps_behind_the_output_stride_become_dilation(output_stride, stride_and_dilation):
    model = MobileNetV1(0.25, output_stride=output_stride, out_strides=(output_stride,)).eval()
    layers = [block.depthwise.conv for block in model.blocks[5:]]
    assert [(layer.stride[0], layer.dilation[0]) for layer in layers] == stride_and_dilation
    side = math.ceil(97 / output_stride)
    assert model(picture(97, 97))[0].shape == (2, 256, side, side)


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_network_computes_the_same_values_on_a_finer_grid(output_stride, padding):
    """Every 2nd (4th) value of the dilated map is a value of the ordinary map, away from the border."""
    ordinary = MobileNetV1(0.25, padding=padding).eval()
    dilated = MobileNetV1(0.25, padding=padding, output_stride=output_stride, out_strides=(output_stride,)).eval()
    randomise(ordinary)
    dilated.load_state_dict(ordinary.state_dict())
    # At this size every map has an odd side, so TensorFlow's zeros stand evenly and the grids coincide.
    with torch.no_grad():
        want, fine = ordinary(picture(449, 449))[0], dilated(picture(449, 449))[0]
    step = 32 // output_stride
    got = fine[:, :, ::step, ::step]
    assert want.std() > 0.1
    torch.testing.assert_close(got[:, :, 4:-4, 4:-4], want[:, :, 4:-4, 4:-4])


@pytest.mark.parametrize("variant", ["separable", "full_conv", "shallow"])
def test_every_parameter_gets_a_gradient(variant):
    model = MobileNetV1(0.25, out_strides=(16, 32), variant=variant)
    sum(feature_map.square().mean() for feature_map in model(picture(64, 64))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("size", [(64, 64), (65, 81)])
def test_exports(padding, size):
    model = MobileNetV1(0.25, padding=padding, out_strides=(16, 32)).eval()
    randomise(model)
    exported = torch.export.export(model, (picture(*size),)).module()
    with torch.no_grad():
        for got, want in zip(exported(picture(*size, seed=2)), model(picture(*size, seed=2)), strict=True):
            assert want.std() > 0.1
            torch.testing.assert_close(got, want)


def test_tf_same_network_pads_even_inputs_at_right_and_bottom():
    ours, symmetric = (MobileNetV1(0.25, padding=p).eval() for p in ("tf_same", "symmetric"))
    randomise(ours)
    symmetric.load_state_dict(ours.state_dict())
    strided = [layer for layer in ours.modules() if isinstance(layer, TFSameConv2d)]
    assert len(strided) == 5
    x = picture(64, 96)
    for layer in (symmetric.stem, *symmetric.blocks):
        conv = layer.conv if isinstance(layer, ConvBNAct) else layer.depthwise.conv
        if conv.stride == (2, 2):
            conv.padding = (0, 0)
            x = F.pad(x, (0, 1, 0, 1))
        x = layer(x)
    torch.testing.assert_close(ours(picture(64, 96))[0], x)
    assert x.std() > 0.1


def test_both_paddings_agree_where_every_side_is_odd():
    ours, symmetric = (MobileNetV1(0.25, padding=p).eval() for p in ("tf_same", "symmetric"))
    randomise(ours)
    symmetric.load_state_dict(ours.state_dict())
    odd, even = picture(65, 97), picture(64, 96)
    torch.testing.assert_close(ours(odd)[0], symmetric(odd)[0])
    assert (ours(even)[0] - symmetric(even)[0]).abs().max() > 0.1


def test_input_is_not_modified():
    x = picture(32, 32)
    before = x.clone()
    MobileNetV1(0.25, padding="tf_same")(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0},
        {"alpha": -1.0},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"alpha": "abc"},
        {"resolution": 0},
        {"resolution": 224.5},
        {"depth_multiplier": 0},
        {"depth_multiplier": 0.5},
        {"depth_multiplier": 2, "variant": "full_conv"},
        {"output_stride": 4},
        {"out_strides": (3,)},
        {"out_strides": ()},
        {"out_strides": (16, 16)},
        {"out_strides": (16, 32), "output_stride": 16},
        {"padding": "valid"},
        {"activation": "gelu"},
        {"variant": "deep"},
        {"bn_eps": 0.0},
        {"bn_momentum": 1.5},
        {"in_channels": 0},
    ],
    ids=str,
)
def test_wrong_arguments_are_named_in_one_line(wrong):
    with pytest.raises(UserError, match=rf"^{next(iter(wrong))} is ") as error:
        MobileNetV1(**wrong)
    assert "\n" not in str(error.value)
