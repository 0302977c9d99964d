"""Tables 1 to 9 of MobileNets (arXiv:1704.04861) as printed, each row with the overrides that compose it here."""

from __future__ import annotations

from mnvision.paper.layout import Column, Layer, Row, Table

M = 1e6
TOP1 = Column("top-1 %", "score")
MILLIONS = (Column("cost", "mult_adds", M), Column("params", "params", M))
IMAGENET = "top-1 on ImageNet; marked figures are of other pictures"


def _imagenet(alpha: float, resolution: int, more: str = "") -> str:
    return f"task=imagenet backbone.alpha={alpha} backbone.resolution={resolution}{more}"


LAYERS = (
    Layer(("Conv / s2", "3x3x3x32", "224x224x3"), ("stem",)),
    Layer(("Conv dw / s1", "3x3x32 dw", "112x112x32"), ("blocks.0.depthwise",)),
    Layer(("Conv / s1", "1x1x32x64", "112x112x32"), ("blocks.0.pointwise",)),
    Layer(("Conv dw / s2", "3x3x64 dw", "112x112x64"), ("blocks.1.depthwise",)),
    Layer(("Conv / s1", "1x1x64x128", "56x56x64"), ("blocks.1.pointwise",)),
    Layer(("Conv dw / s1", "3x3x128 dw", "56x56x128"), ("blocks.2.depthwise",)),
    Layer(("Conv / s1", "1x1x128x128", "56x56x128"), ("blocks.2.pointwise",)),
    Layer(("Conv dw / s2", "3x3x128 dw", "56x56x128"), ("blocks.3.depthwise",)),
    Layer(("Conv / s1", "1x1x128x256", "28x28x128"), ("blocks.3.pointwise",)),
    Layer(("Conv dw / s1", "3x3x256 dw", "28x28x256"), ("blocks.4.depthwise",)),
    Layer(("Conv / s1", "1x1x256x256", "28x28x256"), ("blocks.4.pointwise",)),
    Layer(("Conv dw / s2", "3x3x256 dw", "28x28x256"), ("blocks.5.depthwise",)),
    Layer(("Conv / s1", "1x1x256x512", "14x14x256"), ("blocks.5.pointwise",)),
    Layer(("Conv dw / s1", "3x3x512 dw", "14x14x512"), tuple(f"blocks.{i}.depthwise" for i in range(6, 11))),
    Layer(("Conv / s1", "1x1x512x512", "14x14x512"), tuple(f"blocks.{i}.pointwise" for i in range(6, 11))),
    Layer(("Conv dw / s2", "3x3x512 dw", "14x14x512"), ("blocks.11.depthwise",)),
    Layer(("Conv / s1", "1x1x512x1024", "7x7x512"), ("blocks.11.pointwise",)),
    Layer(("Conv dw / s2", "3x3x1024 dw", "7x7x1024"), ("blocks.12.depthwise",), ("E1",)),
    Layer(("Conv / s1", "1x1x1024x1024", "7x7x1024"), ("blocks.12.pointwise",)),
    Layer(("Avg Pool / s1", "Pool 7x7", "7x7x1024"), ()),
    Layer(("FC / s1", "1024x1000", "1x1x1024"), ("head.fc",)),
    Layer(("Softmax / s1", "Classifier", "1x1x1000"), ()),
)
ARCHITECTURE = _imagenet(1.0, 224)

_SHARES = (Column("cost %", "mult_adds_share"), Column("params %", "weights_share"))
_LAYER = (Column("cost", "mult_adds", M), Column("params", "weights", M))
_BLOCK = "backbone.blocks.6."  # the first of the five of 14x14x512
_MOBILENET = ("70.6", "569", "4.2")

TABLES = (
    Table(
        *(2, "Resource per layer type, % of the whole; params without biases and batch normalisation", _SHARES),
        (
            Row("Conv 1x1", ("94.86", "74.59"), ARCHITECTURE, "conv 1x1"),
            Row("Conv DW 3x3", ("3.06", "1.06"), ARCHITECTURE, "depthwise 3x3"),
            Row("Conv 3x3", ("1.19", "0.02"), ARCHITECTURE, "conv 3x3", ("E2",)),
            Row("Fully Connected", ("0.18", "24.33"), ARCHITECTURE, "fully connected"),
        ),
        of="type",
    ),
    Table(
        *(3, "One layer of 14x14x512 (10x10 at rho 0.714), million multiply-adds and kernel values", _LAYER),
        (
            Row("Convolution", ("462", "2.36"), _imagenet(1.0, 224, " backbone.variant=full_conv"), _BLOCK),
            Row("Depthwise Separable Conv", ("52.3", "0.27"), _imagenet(1.0, 224), _BLOCK),
            Row("alpha = 0.75", ("29.6", "0.15"), _imagenet(0.75, 224), _BLOCK),
            Row("rho = 0.714", ("15.1", "0.15"), _imagenet(0.75, 160), _BLOCK),
        ),
        of="layer",
    ),
    Table(
        *(4, "Depthwise separable vs full convolution MobileNet, millions", (TOP1, *MILLIONS)),
        (
            Row("Conv MobileNet", ("71.7", "4866", "29.3"), _imagenet(1.0, 224, " backbone.variant=full_conv")),
            Row("MobileNet", _MOBILENET, _imagenet(1.0, 224)),
            Row("Conv MobileNet, body alone", ("", "", ""), f"{ARCHITECTURE} backbone.variant=full_conv", "backbone."),
        ),
        measured_by=IMAGENET,
    ),
    Table(
        *(5, "Narrow vs shallow MobileNet, millions", (TOP1, *MILLIONS)),
        (
            Row("0.75 MobileNet", ("68.4", "325", "2.6"), _imagenet(0.75, 224)),
            Row("Shallow MobileNet", ("65.3", "307", "2.9"), _imagenet(1.0, 224, " backbone.variant=shallow")),
        ),
        measured_by=IMAGENET,
    ),
    Table(
        *(6, "MobileNet width multiplier, millions", (TOP1, *MILLIONS)),
        (
            Row("1.0 MobileNet-224", _MOBILENET, _imagenet(1.0, 224)),
            Row("0.75 MobileNet-224", ("68.4", "325", "2.6"), _imagenet(0.75, 224)),
            Row("0.5 MobileNet-224", ("63.7", "149", "1.3"), _imagenet(0.5, 224)),
            Row("0.25 MobileNet-224", ("50.6", "41", "0.5"), _imagenet(0.25, 224)),
        ),
        measured_by=IMAGENET,
    ),
    Table(
        *(7, "MobileNet resolution, millions", (TOP1, *MILLIONS)),
        (
            Row("1.0 MobileNet-224", _MOBILENET, _imagenet(1.0, 224)),
            Row("1.0 MobileNet-192", ("69.1", "418", "4.2"), _imagenet(1.0, 192)),
            Row("1.0 MobileNet-160", ("67.2", "290", "4.2"), _imagenet(1.0, 160)),
            Row("1.0 MobileNet-128", ("64.4", "186", "4.2"), _imagenet(1.0, 128)),
        ),
        measured_by=IMAGENET,
    ),
    Table(
        *(8, "MobileNet comparison to popular models, millions", (TOP1, *MILLIONS)),
        (
            Row("1.0 MobileNet-224", _MOBILENET, _imagenet(1.0, 224)),
            Row("GoogleNet", ("69.8", "1550", "6.8")),
            Row("VGG 16", ("71.5", "15300", "138")),
        ),
        measured_by=IMAGENET,
    ),
    Table(
        *(9, "Smaller MobileNet comparison to popular models, millions", (TOP1, *MILLIONS)),
        (
            Row("0.50 MobileNet-160", ("60.2", "76", "1.32"), _imagenet(0.5, 160)),
            Row("SqueezeNet", ("57.5", "1700", "1.25")),
            Row("AlexNet", ("57.2", "720", "60")),
        ),
        measured_by=IMAGENET,
    ),
)

# What stands in Figures 4 and 5 and in no table: TF-slim's list of the released models (mobilenet_v1.md, checkpoints
# of 2017-06-14), (alpha, resolution, top-1 %). Its multiply-adds are not used, see erratum E8.
SLIM_2017 = (
    *((0.75, 192, 67.4), (0.75, 160, 65.2), (0.75, 128, 61.8)),
    *((0.5, 192, 62.1), (0.5, 160, 59.9), (0.5, 128, 56.2)),
    *((0.25, 192, 49.0), (0.25, 160, 46.0), (0.25, 128, 41.3)),
)
