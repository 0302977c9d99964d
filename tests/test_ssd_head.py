from __future__ import annotations

import pytest
import torch
from torch import nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.heads.ssd import SSDHead


class Network(nn.Module):
    def __init__(self, resolution: int, num_classes: int, alpha: float = 1.0, **head_options) -> None:
        super().__init__()
        self.backbone = MobileNetV1(alpha=alpha, resolution=resolution, out_strides=(16, 32))
        self.head = SSDHead(
            self.backbone.feature_channels,
            self.backbone.feature_strides,
            num_classes,
            resolution,
            alpha=alpha,
            **head_options,
        )

    def forward(self, images: torch.Tensor) -> dict:
        return self.head(self.backbone(images))


def small_head(resolution: int | tuple[int, int] = 96, **options) -> tuple[SSDHead, list[torch.Tensor]]:
    head = SSDHead([8, 12], [16, 32], 3, resolution, alpha=0.125, **options)
    rng = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, c, *size, generator=rng) for c, size in zip((8, 12), head.map_sizes)]
    return head, maps


# Integers recomputed from the published configurations; Table 13 of the MobileNet paper prints 1.2B and 6.8M,
# section 6.2 of the MobileNetV2 paper 1.3B and 5.1M.
@pytest.mark.parametrize(
    ("resolution", "classes", "alpha", "lite", "mult_adds", "params"),
    [
        (300, 90, 1.0, False, 1_237_129_408, 6_819_839),
        (300, 80, 1.0, False, 1_224_465_088, 6_673_589),
        (300, 90, 0.75, False, 728_036_496, 4_110_735),
        (320, 90, 1.0, True, 1_322_426_304, 5_246_911),
    ],
)
def test_costs_of_the_published_models(resolution, classes, alpha, lite, mult_adds, params):
    model = Network(resolution, classes, alpha, lite=lite)
    cost = measure(model, resolution)
    assert (cost.mult_adds, cost.params) == (mult_adds, params)


@pytest.mark.parametrize("padding", ["symmetric", "tf_same"])
@pytest.mark.parametrize("resolution", [32, 96, 160, 192, 224, 300, 320, (97, 201)])
def test_one_output_per_default_box(resolution, padding):
    backbone = MobileNetV1(alpha=0.05, out_strides=(16, 32), padding=padding)
    head = SSDHead(backbone.feature_channels, backbone.feature_strides, 3, resolution, alpha=0.1, padding=padding)
    head.eval()
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    outputs = head(backbone.eval()(torch.zeros(1, 3, height, width)))
    assert outputs["cls_logits"].shape == (1, len(head.default_boxes), 4)
    assert outputs["box_offsets"].shape == (1, len(head.default_boxes), 4)


def test_outputs_stand_in_the_order_of_the_default_boxes():
    head, maps = small_head((96, 128), extra_channels=())
    with torch.no_grad():
        for predictor in head.predictors:
            predictor.box.weight.zero_()
            predictor.box.bias.copy_(torch.arange(len(predictor.box.bias)))
            predictor.box.weight[:, 0] = 100.0
    # Channel 0 of each map holds the cell's own centre, so an output tells the cell that it comes from.
    for index in (0, 1):
        rows, columns = head.map_sizes[index]
        centers = (torch.arange(rows)[:, None] + 0.5) * 96 / rows + (torch.arange(columns) + 0.5) * 128 / columns
        maps[index][:, 0] = centers
    boxes = head.default_boxes
    offsets = head(maps)["box_offsets"][0]
    got = (offsets - offsets % 100) / 100
    counts = [3] * (6 * 8) + [6] * (3 * 4)
    assert len(counts) == 60
    expected = (boxes[:, :2] + boxes[:, 2:]).sum(dim=1) / 2
    torch.testing.assert_close(got[:, 0], expected.floor(), atol=1.01, rtol=0)
    slot = (offsets - 100 * expected[:, None]).round()
    first_of_map = torch.cat([torch.arange(3).repeat(48), torch.arange(6).repeat(12)])
    torch.testing.assert_close(slot, (4 * first_of_map[:, None] + torch.arange(4)).float())


def test_state_dict_does_not_depend_on_the_resolution():
    small, large = small_head(96)[0], small_head(224)[0]
    large.load_state_dict(small.state_dict())
    names = set(small.state_dict())
    assert "predictors.0.cls.weight" in names
    assert "predictors.5.box.bias" in names
    assert "extras.3.expand.conv.weight" in names
    assert not any("default_boxes" in name for name in names)


def test_class_prior_sets_the_first_scores():
    head, maps = small_head(class_prior=0.05)
    with torch.no_grad():
        for predictor in head.predictors:
            predictor.cls.weight.zero_()
    logits = head(maps)["cls_logits"]
    torch.testing.assert_close(logits[..., 1:].sigmoid(), torch.full_like(logits[..., 1:], 0.05))
    assert (logits[..., 0] == 0).all()


def test_fitted_box_sizes_replace_the_rule():
    sizes = [[(0.1, 0.2), (0.3, 0.3)]] + [[(0.5, 0.5)]] * 5
    head, maps = small_head(box_sizes=sizes)
    assert len(head.default_boxes) == 2 * 36 + 9 + 4 + 1 + 1 + 1
    assert head(maps)["cls_logits"].shape[1] == len(head.default_boxes)
    torch.testing.assert_close(head.default_boxes[0], torch.tensor([3.2, -1.6, 12.8, 17.6]))


@pytest.mark.parametrize("lite", [False, True])
def test_every_parameter_gets_a_gradient(lite):
    head, maps = small_head(lite=lite)
    outputs = head(maps)
    (outputs["cls_logits"].square().sum() + outputs["box_offsets"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 0},
        {"resolution": (96, 96, 96)},
        {"resolution": 96.5},
        {"num_classes": 0},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"kernel_size": 2},
        {"class_prior": 1.0},
        {"in_strides": [16]},
        {"in_channels": []},
        {"extra_channels": (0,)},
        {"box_sizes": [[(0.1, 0.1)]]},
        {"padding": "valid"},
    ],
)
def test_refuses_bad_arguments(options):
    arguments = {"in_channels": [8, 8], "in_strides": [16, 32], "num_classes": 3, "resolution": 96}
    with pytest.raises(UserError):
        SSDHead(**{**arguments, **options})


def test_refuses_images_of_another_resolution():
    head = small_head(96)[0]
    with pytest.raises(UserError, match="96 x 96 px"):
        head([torch.zeros(2, 8, 8, 8), torch.zeros(2, 12, 4, 4)])


def test_refuses_to_train_on_a_single_image():
    head, maps = small_head()
    with pytest.raises(UserError, match="at least 2 images"):
        head([m[:1] for m in maps])
    head.eval()
    assert len(head([m[:1] for m in maps])["cls_logits"]) == 1


def test_bfloat16_gradients_of_weights_that_only_see_padding_are_zero():
    torch.manual_seed(0)
    head = SSDHead([64, 64], [16, 32], num_classes=3, resolution=64, alpha=0.5)
    assert head.map_sizes[-2:] == [(1, 1), (1, 1)]
    maps = [torch.randn(8, 64, 4, 4), torch.randn(8, 64, 2, 2)]
    for _ in range(10):  # memory that is handed out again holds infinities
        junk = [torch.full((1 << 16,), float("inf"), dtype=torch.bfloat16) for _ in range(8)]
        del junk
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            head(maps)["cls_logits"].float().square().mean().backward()
        gradient = head.extras[-1].expand.conv.weight.grad.flatten(2)
        assert gradient[..., 4].abs().max() > 0
        assert torch.equal(gradient[..., [0, 1, 2, 3, 5, 6, 7, 8]], torch.zeros(*gradient.shape[:2], 8))
