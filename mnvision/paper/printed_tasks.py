"""Tables 10 to 14 of MobileNets (arXiv:1704.04861) as printed, each row with the overrides that compose it here."""

from __future__ import annotations

from mnvision.paper.layout import Column, Row, Table
from mnvision.paper.printed import MILLIONS, M

_DOGS = (Column("top-1 %", "score"), *MILLIONS)
_FACES = (Column("mean AP %", "score"), *MILLIONS)
_EMBEDDED = (Column("1e-4 %", "score"), *MILLIONS)
_COCO = (Column("mAP %", "score"), Column("cost", "mult_adds", 1e9), Column("params", "params", M))
_PLACES = (Column("Im2GPS %", "quoted"), Column("PlaNet %", "quoted"), Column("MobileNet %", "score"))


def _words(task: str, alpha: float, resolution: int, more: str = "") -> str:
    return f"task={task} backbone.alpha={alpha} backbone.resolution={resolution}{more}"


def _face(alpha: float, resolution: int) -> str:
    return _words("face_attributes", alpha, resolution)


def _detector(task: str, resolution: int, classes: int = 90) -> str:
    return _words(task, 1.0, resolution, f" head.num_classes={classes}")


def _places(cells: int) -> str:
    return _words("geolocation", 1.0, 224, f" head.num_classes={cells}")


def _embedder(alpha: float, resolution: int) -> str:
    return _words("face_embeddings", alpha, resolution, " backbone.stem_stride=2")


TABLES = (
    Table(
        *(10, "MobileNet for Stanford Dogs, millions", _DOGS),
        (
            Row("Inception V3", ("84", "5000", "23.2")),
            Row("1.0 MobileNet-224", ("83.3", "569", "3.3"), _words("fine_grained", 1.0, 224)),
            Row("0.75 MobileNet-224", ("81.9", "325", "1.9"), _words("fine_grained", 0.75, 224)),
            Row("1.0 MobileNet-192", ("81.9", "418", "3.3"), _words("fine_grained", 1.0, 192)),
            Row("0.75 MobileNet-192", ("80.5", "239", "1.9"), _words("fine_grained", 0.75, 192)),
        ),
        ("E16",),
        measured_by="top-1 on Stanford Dogs; the paper trained on a private web set first",
        notes=("The printed costs are those of 1,000 classes, the parameters those of 120.",),
    ),
    Table(
        *(11, "PlaNet: photos of the Im2GPS test set within a radius", _PLACES),
        (
            Row("Continent (2500 km)", ("51.9", "77.6", "79.3")),
            Row("Country (750 km)", ("35.4", "64.0", "60.3")),
            Row("Region (200 km)", ("32.1", "51.1", "45.2")),
            Row("City (25 km)", ("21.9", "31.7", "31.7")),
            Row("Street (1 km)", ("2.5", "11.0", "11.4")),
        ),
        ("E4",),
        measured_by="share of photos within the radius",
        of="scale",
    ),
    Table(
        *(11, "PlaNet, section 4.4: its cost in millions", MILLIONS),
        (
            Row("PlaNet (Inception V3)", ("5740", "52")),
            Row("PlaNet MobileNet, 9,760 cells", ("0.58", "13"), _places(9760), errata=("E3", "E4")),
            Row("the same, 26,263 cells", ("", ""), _places(26263), errata=("E4",)),
        ),
    ),
    Table(
        *(12, "Face attribute classification, millions; 40 attributes here, the paper's number is not given", _FACES),
        (
            Row("1.0 MobileNet-224", ("88.7", "568", "3.2"), _face(1.0, 224)),
            Row("0.5 MobileNet-224", ("88.1", "149", "0.8"), _face(0.5, 224)),
            Row("0.25 MobileNet-224", ("87.2", "45", "0.2"), _face(0.25, 224), "", ("E7",)),
            Row("1.0 MobileNet-128", ("88.1", "185", "3.2"), _face(1.0, 128)),
            Row("0.5 MobileNet-128", ("87.7", "48", "0.8"), _face(0.5, 128)),
            Row("0.25 MobileNet-128", ("86.4", "15", "0.2"), _face(0.25, 128), "", ("E7",)),
            Row("Baseline (teacher)", ("86.9", "1600", "7.5"), errata=("E5",)),
            Row("0.25-224, stem of 16 channels", ("", "", ""), _face(0.25, 224), "", ("E7",), 16),
            Row("0.25-128, stem of 16 channels", ("", "", ""), _face(0.25, 128), "", ("E7",), 16),
        ),
        measured_by="mean AP over attributes, on CelebA; the paper's pictures are private",
    ),
    Table(
        *(13, "COCO object detection, billion multiply-adds, million params", _COCO),
        (
            Row("SSD 300, deeplab-VGG", ("21.1", "34.9", "33.1")),
            Row("SSD 300, Inception V2", ("22.0", "3.8", "13.7")),
            Row("SSD 300, MobileNet", ("19.3", "1.2", "6.8"), _detector("ssd_coco", 300), "", ("E12",)),
            Row("Faster-RCNN 300, VGG", ("22.9", "64.3", "138.5")),
            Row("Faster-RCNN 300, Inception V2", ("15.4", "118.2", "13.3")),
            Row("Faster-RCNN 300, MobileNet", ("16.4", "25.2", "6.1"), _detector("faster_rcnn_coco", 300)),
            Row("Faster-RCNN 600, VGG", ("25.7", "149.6", "138.5")),
            Row("Faster-RCNN 600, Inception V2", ("21.9", "129.6", "13.3")),
            Row("Faster-RCNN 600, MobileNet", ("19.8", "30.5", "6.1"), _detector("faster_rcnn_coco_600", 600)),
            Row("SSD 300, 80 classes", ("", "", ""), _detector("ssd_coco", 300, 80)),
            Row("Faster-RCNN 300, 80 classes", ("", "", ""), _detector("faster_rcnn_coco", 300, 80)),
        ),
        measured_by="AP at IoU 0.50:0.05:0.95",
        notes=("The paper's library gives COCO's 80 classes 90 label ids, which the printed sizes include.",),
    ),
    Table(
        *(14, "MobileNet distilled from FaceNet, millions; 128 numbers on pooled features here", _EMBEDDED),
        (
            Row("FaceNet", ("83", "1600", "7.5")),
            Row("1.0 MobileNet-160", ("79.4", "286", "4.9"), _embedder(1.0, 160)),
            Row("1.0 MobileNet-128", ("78.3", "185", "5.5"), _embedder(1.0, 128)),
            Row("0.75 MobileNet-128", ("75.2", "166", "3.4"), _embedder(0.75, 160), "", ("E6",)),
            Row("0.75 MobileNet-128", ("72.5", "108", "3.8"), _embedder(0.75, 128)),
        ),
        ("E14",),
        measured_by="LFW's accuracy over ten folds: another data set and another figure",
        notes=("The paper does not describe its head, which is larger than ours.",),
    ),
)
