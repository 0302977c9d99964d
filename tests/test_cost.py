"""Costs against the integers recomputed from the paper's table 1 and against the paper's own tables.

The exact integers follow from table 1 by arithmetic; four of them are printed in the authors' code
(TF-slim nets/mobilenet_v1.py) and the trainable counts in other implementations' tables.
"""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import Tensor, nn

from mnvision.backbones.layers import ConvBNAct
from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.cost import Cost, measure
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

# alpha, resolution, multiply-adds with and without the classifier, learnable values, kernel values of the
# body, scales and shifts of batch normalisation
SIXTEEN_MODELS = [
    (1.0, 224, 568740352, 567716352, 4231976, 3185088, 21888),
    (1.0, 192, 418121728, 417097728, 4231976, 3185088, 21888),
    (1.0, 160, 290675200, 289651200, 4231976, 3185088, 21888),
    (1.0, 128, 186400768, 185376768, 4231976, 3185088, 21888),
    (0.75, 224, 325400448, 324632448, 2585560, 1800144, 16416),
    (0.75, 192, 239273472, 238505472, 2585560, 1800144, 16416),
    (0.75, 160, 166396800, 165628800, 2585560, 1800144, 16416),
    (0.75, 128, 106770432, 106002432, 2585560, 1800144, 16416),
    (0.5, 224, 149497088, 148985088, 1331592, 807648, 10944),
    (0.5, 192, 109970432, 109458432, 1331592, 807648, 10944),
    (0.5, 160, 76524800, 76012800, 1331592, 807648, 10944),
    (0.5, 128, 49160192, 48648192, 1331592, 807648, 10944),
    (0.25, 224, 41030272, 40774272, 470072, 207600, 5472),
    (0.25, 192, 30212608, 29956608, 470072, 207600, 5472),
    (0.25, 160, 21059200, 20803200, 470072, 207600, 5472),
    (0.25, 128, 13570048, 13314048, 470072, 207600, 5472),
]


def classifier(num_classes: int = 1000, **options) -> nn.Sequential:
    backbone = MobileNetV1(**options)
    return nn.Sequential(backbone, ClassifierHead(backbone.feature_channels, num_classes))


def type_row(cost: Cost, name: str):
    (row,) = (row for row in cost.types if row.type == name)
    return row


@pytest.mark.parametrize("row", SIXTEEN_MODELS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_sixteen_models(row):
    alpha, resolution, mult_adds, body_mult_adds, params, body_weights, bn_params = row
    cost = measure(classifier(alpha=alpha), resolution)
    fully_connected = type_row(cost, "fully connected")
    assert cost.mult_adds == mult_adds
    assert cost.mult_adds - fully_connected.mult_adds == body_mult_adds
    assert cost.params == params
    assert cost.weights - fully_connected.weights == body_weights
    assert type_row(cost, "batch norm").params == bn_params
    bare = measure(MobileNetV1(alpha), (resolution, resolution))
    assert (bare.mult_adds, bare.weights, bare.params) == (
        body_mult_adds,
        body_weights,
        body_weights + bn_params,
    )


@pytest.mark.parametrize(
    ("variant", "mult_adds", "params"),
    [("full_conv", 4867293184, 29294088), ("shallow", 307323392, 2887976)],  # tables 4 and 5
)
def test_variants(variant, mult_adds, params):
    cost = measure(classifier(variant=variant), 224)
    assert (cost.mult_adds, cost.params) == (mult_adds, params)


@pytest.mark.parametrize(
    ("num_classes", "alpha", "params"),
    [
        (120, 1.0, 3329976),  # table 10: Stanford Dogs
        (120, 0.75, 1908840),
        (40, 1.0, 3247976),  # table 12: attributes of faces
        (40, 0.5, 839112),
        (40, 0.25, 223352),
        (128, 1.0, 3338176),  # a 128-d embedding of the pooled features
        (128, 0.75, 1914992),
    ],
)
def test_heads(num_classes, alpha, params):
    assert measure(classifier(num_classes, alpha=alpha), 64).params == params


def test_table_2_shares():
    # The paper prints 1.19 for "conv 3x3"; its digits are swapped, as the sum of the column shows.
    cost = measure(classifier(), 224)
    want = {
        "conv 1x1": (94.86, 74.59),
        "depthwise 3x3": (3.06, 1.06),
        "conv 3x3": (1.91, 0.02),
        "fully connected": (0.18, 24.33),
        "batch norm": (0.0, 0.0),
    }
    assert cost.weights == 4209088
    got = {
        row.type: (round(100 * row.mult_adds / cost.mult_adds, 2), round(100 * row.weights / cost.weights, 2))
        for row in cost.types
    }
    assert got == want


def test_table_2_layer_counts():
    # 28 layers, depthwise and pointwise counted apart (section 3.2).
    counts = {row.type: row.layers for row in measure(classifier(), 64).types}
    assert counts == {
        "conv 3x3": 1,
        "depthwise 3x3": 13,
        "conv 1x1": 13,
        "fully connected": 1,
        "batch norm": 27,
    }


@pytest.mark.parametrize(
    ("channels", "side", "separable", "millions"),
    [
        (512, 14, False, (462, 2.36)),
        (512, 14, True, (52.3, 0.27)),
        (384, 14, True, (29.6, 0.15)),
        (384, 10, True, (15.1, 0.15)),
    ],
)
def test_table_3_rows(channels, side, separable, millions):
    layers = [ConvBNAct(channels, channels, 3)]
    if separable:
        layers = [ConvBNAct(channels, channels, 3, groups=channels), ConvBNAct(channels, channels, 1)]
    cost = measure(nn.Sequential(*layers), side, in_channels=channels)
    mult_adds, weights = cost.mult_adds / 1e6, cost.weights / 1e6
    assert (round(mult_adds, 1 if separable else 0), round(weights, 2)) == millions


def test_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), stride=2, padding=(1, 2)),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.ConvTranspose2d(8, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(2 * 6 * 14, 5),
        nn.LayerNorm(5),
    )
    cost = measure(model, (10, 18))  # 4x5x9, 8x3x7, 2x6x14, 5
    rows = [(r.name, r.type, r.output_shape, r.mult_adds, r.weights, r.params) for r in cost.layers]
    assert rows == [
        ("0", "conv 3x5", (4, 5, 9), 4 * 5 * 9 * 3 * 15, 180, 184),
        ("1", "grouped conv 3x3", (8, 3, 7), 8 * 3 * 7 * 2 * 9, 144, 144),
        ("2", "transposed conv 2x2", (2, 6, 14), 8 * 3 * 7 * 2 * 4, 64, 66),
        ("4", "fully connected", (5,), 168 * 5, 840, 845),
        ("5", "LayerNorm", (5,), 0, 0, 10),
    ]


class Shared(nn.Module):
    """One convolution used on two maps, one never used, one with a matrix tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Conv2d(3, 3, 1, bias=False)
        self.unused = nn.Conv2d(3, 7, 1)
        self.tied = nn.Conv2d(3, 3, 1, bias=False)
        self.tied.weight = self.used.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.used(self.used(x)))


def test_shared_layers_count_each_call_and_their_weights_once():
    cost = measure(Shared(), 4)
    rows = {r.name: (r.mult_adds, r.weights, r.params, r.output_shape) for r in cost.layers}
    assert rows == {
        "used": (2 * 16 * 9, 9, 9, (3, 4, 4)),
        "unused": (0, 21, 28, ()),
        "tied": (16 * 9, 0, 0, (3, 4, 4)),
    }
    assert cost.params == sum(p.numel() for p in Shared().parameters())


class PixelModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = MobileNetV1(0.25)

    def forward(self, images: Tensor) -> list[Tensor]:
        assert images.dtype == torch.uint8
        return self.backbone(images.float() / 255)


def test_models_that_take_pixels():
    cost = measure(PixelModel(), 128, dtype=torch.uint8)
    assert cost.mult_adds == 13314048
    assert cost.layers[0].name == "backbone.stem.conv"


def test_model_is_left_as_it_was():
    model = classifier(alpha=0.25)
    model[0].stem.eval().requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure(model, 64)
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert cost.params == 470072


def test_model_is_left_as_it_was_when_its_forward_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(5, 5)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(model, 8)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_compiled_models_are_counted_too():
    model = classifier(alpha=0.25).eval()
    model.compile(backend="eager")
    with torch.no_grad():
        model(torch.zeros(1, 3, 128, 128))
    assert measure(model, 128).mult_adds == 13570048


def test_csv_reads_back():
    cost = measure(classifier(alpha=0.25), 128)
    rows = list(csv.DictReader(io.StringIO(cost.to_csv())))
    assert len(rows) == len(cost.layers) == 55
    assert rows[0] == {
        "name": "0.stem.conv",
        "type": "conv 3x3",
        "output_shape": "8x64x64",
        "mult_adds": "884736",
        "weights": "216",
        "params": "216",
    }
    assert sum(int(row["mult_adds"]) for row in rows) == 13570048


def test_dict_survives_json():
    cost = measure(classifier(alpha=0.25), 128)
    data = json.loads(json.dumps(cost.to_dict()))
    assert data == cost.to_dict()
    assert (data["resolution"], data["mult_adds"], data["params"]) == ([128, 128], 13570048, 470072)
    assert sum(row["params"] for row in data["types"]) == sum(row["params"] for row in data["layers"]) == 470072


def test_tables_are_aligned_and_end_with_the_total():
    cost = measure(classifier(), 224)
    by_layer, by_type = cost.table().splitlines(), cost.table(by="type").splitlines()
    assert len(by_layer) == 55 + 4
    assert by_layer[-1].split() == ["total", "568,740,352", "4,209,088", "4,231,976"]
    assert " ".join(by_type[2].split()) == "conv 1x1 13 539,492,352 94.86 3,139,584 74.59 3,139,584 74.19"
    assert by_type[-1].split()[:3] == ["total", "55", "568,740,352"]
    for lines in (by_layer, by_type):
        assert len({len(line) for line in lines}) == 1


def test_model_without_layers_costs_nothing():
    cost = measure(nn.ReLU(), 8)
    assert (cost.mult_adds, cost.params, cost.layers) == (0, 0, ())
    assert "total" in cost.table(by="layer")
    assert "total" in cost.table(by="type")


@pytest.mark.parametrize("resolution", [0, -3, (224,), (0, 5), 1.5, "224", True, None])
def test_wrong_resolution(resolution):
    with pytest.raises(UserError, match="resolution is"):
        measure(nn.Conv2d(3, 3, 1), resolution)


def test_wrong_grouping_of_the_table():
    with pytest.raises(UserError, match="choose layer, type or part"):
        measure(nn.Conv2d(3, 3, 1), 8).table(by="depth")
