"""Published SSD MobileNetV1 detectors in .tflite files as checkpoints of ours, exact but for float rounding.

Quantised weights are dequantised; folded batch normalisation becomes the identity plus a bias. What the TensorFlow
Object Detection API orders otherwise is put into our order: box codes are y, x, h, w there and x, y, w, h here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnvision.backbones.pretrained.tflite import labels_inside, unit_state, weights_from_graph
from mnvision.backbones.pretrained.tflite_graph import Graph
from mnvision.backbones.pretrained.weights import PretrainedWeights
from mnvision.boxes.default_boxes import BoxSizes, make_default_boxes, ssd_box_sizes
from mnvision.errors import UserError
from mnvision.heads.ssd import MIN_EXTRA_DEPTH
from mnvision.published.labels import detector_classes
from mnvision.published.ssd_graph import POST_PROCESS, SSDGraph, read_ssd_graph

SUFFIX = ".tflite"
MARKS = (POST_PROCESS.encode(), b"BoxPredictor_0")
EXTRA_CHANNELS = (512, 256, 256, 128)
OUT_STRIDES = (16, 32)
# The scales that our coder's variances 0.1 and 0.2 stand for.
CODER_SCALES = {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
XYWH = [1, 0, 3, 2]
ANCHOR_TOLERANCE = 1e-4
"""Of the input's side. TF's configs write the ratio 1/3 as 0.3333, which moves a side by a quarter of this."""
NMS_IOU = 0.6


def is_published_detector(path: str | Path) -> bool:
    """Whether a file is a .tflite detector as the TensorFlow Object Detection API exports it; reads nothing else.

    True for its detectors on other backbones too, which :func:`read_published_detector` refuses.
    """
    path = Path(path)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return False
    content = path.read_bytes()
    return any(mark in content for mark in MARKS)


def read_published_detector(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What our own checkpoint of this detector would hold.

    Outputs that have no class name in the file's labels are left out; see
    :func:`~mnvision.published.labels.detector_classes`.

    Args:
        path: The .tflite file.

    Returns:
        Fields of :class:`~mnvision.checkpoints.Metadata`, and the weights as ``backbone.*`` and ``head.*``.

    Raises:
        UserError: ai-edge-litert is not installed, the file is damaged, or it holds something other than an SSD on
            MobileNetV1.
    """
    graph = Graph(path)
    layers = graph.layers()
    ssd = read_ssd_graph(graph, layers)
    weights = weights_from_graph(graph, layers, ssd.units, str(path))
    columns = ssd.class_layers[0].weight.shape[0] * 4 // ssd.box_layers[0].weight.shape[0]
    _check(path, ssd, weights, columns)
    classes = detector_classes(path, labels_inside(path), columns - 1)
    model = _model_config(path, ssd, weights, len(classes))
    metadata = {
        "kind": "detection",
        "model": model,
        "class_names": list(classes.values()),
        "category_ids": list(classes),
        "preprocess": {"resize": "stretch"},
        "overrides": _overrides(model),
    }
    return metadata, _state(ssd, weights, [0, *classes], columns)


def _check(path: Path, ssd: SSDGraph, weights: PretrainedWeights, columns: int) -> None:
    """Refuse what our model would compute otherwise."""
    scales = {name: ssd.options.get(name, scale) for name, scale in CODER_SCALES.items()}
    boxes = [layer.weight.shape[0] // 4 for layer in ssd.box_layers]
    rows = [layer.weight.shape[0] for layer in ssd.class_layers]
    stated = ssd.options.get("num_classes", columns - 1)
    for wrong, what in (
        (scales != CODER_SCALES, f"its box coder scales by {scales}, not {CODER_SCALES}"),
        (rows != [count * columns for count in boxes], f"class rows {rows} do not go with {boxes} boxes a cell"),
        (stated != columns - 1, f"it states {stated} classes and has rows for {columns - 1}"),
        (weights.resolution is None, "its input is not square"),
        (weights.mean is None, "how it scales its pixels cannot be read"),
    ):
        if wrong:
            raise UserError(f"{path}: an SSD that this reader does not know: {what}")


def _model_config(path: Path, ssd: SSDGraph, weights: PretrainedWeights, num_classes: int) -> dict[str, Any]:
    assert weights.resolution is not None
    backbone = {**weights.backbone_arguments(), "resolution": weights.resolution, "out_strides": list(OUT_STRIDES)}
    depths = [expand.weight.shape[0] for _, expand in ssd.extras]
    scaled = [max(int(depth * weights.alpha), MIN_EXTRA_DEPTH) for depth in EXTRA_CHANNELS]
    head = {
        "num_classes": num_classes,
        "resolution": weights.resolution,
        "alpha": weights.alpha if depths == scaled else 1.0,
        "extra_channels": list(EXTRA_CHANNELS if depths == scaled else depths),
        "kernel_size": int(ssd.box_layers[0].weight.shape[2]),
        "box_sizes": _box_sizes(path, ssd, weights.resolution),
        "padding": "tf_same",
        "activation": weights.activation,
        "bn_eps": weights.bn_eps,
    }
    decoder = {"classification": ssd.classification, "nms_iou": _rounded(ssd.options.get("nms_iou_threshold", NMS_IOU))}
    return {
        "_target_": "mnvision.models.Detector",
        "mean": list(weights.mean or ()),
        "std": list(weights.std or ()),
        "backbone": {"_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1", **backbone},
        "head": {"_target_": "mnvision.heads.ssd.SSDHead", **head},
        "decoder": {"_target_": "mnvision.boxes.postprocess.SSDDecoder", **decoder},
    }


def _rounded(value: float) -> float:
    """0.6 of the float32 number 0.6000000238."""
    return float(f"{value:.6g}")


def _box_sizes(path: Path, ssd: SSDGraph, resolution: int) -> BoxSizes | None:
    """None where the file's anchors are those of the SSD rule, else the sizes per map.

    Raises:
        UserError: Anchors that do not lie on the cells' centres, or another number of them than of outputs.
    """
    counts = [layer.weight.shape[0] // 4 for layer in ssd.box_layers]
    standard = ssd_box_sizes(len(counts))
    as_standard = counts == [len(sizes) for sizes in standard]
    if ssd.anchors is None:
        if not as_standard:
            raise UserError(f"{path}: it holds no anchors, and its {counts} boxes a cell are not those of the SSD rule")
        return None
    if len(ssd.anchors) != sum(count * height * width for count, (height, width) in zip(counts, ssd.map_sizes)):
        raise UserError(f"{path}: {len(ssd.anchors)} anchors do not go with its outputs")
    tolerance = ssd.anchor_step / 2 + ANCHOR_TOLERANCE
    if as_standard and _anchor_error(ssd, standard, resolution) <= tolerance:
        return None
    sizes, first = [], 0
    for count, (height, width) in zip(counts, ssd.map_sizes):
        cells = ssd.anchors[first : first + count * height * width].reshape(-1, count, 4)
        sizes.append([(float(w), float(h)) for h, w in np.median(cells[..., 2:], axis=0)])
        first += count * height * width
    if _anchor_error(ssd, sizes, resolution) > 2 * tolerance:
        raise UserError(f"{path}: its anchors are not the same boxes around the centre of every cell")
    return sizes


def _anchor_error(ssd: SSDGraph, sizes: BoxSizes, resolution: int) -> float:
    """Greatest difference between the file's anchors and our default boxes, as a fraction of the input's side."""
    boxes = make_default_boxes(sizes, ssd.map_sizes, (resolution, resolution)).double().numpy() / resolution
    low, high = boxes[:, 1::-1], boxes[:, :1:-1]
    ours = np.concatenate([(low + high) / 2, high - low], axis=1)
    return float(np.abs(ours - ssd.anchors).max())


def _overrides(model: dict[str, Any]) -> list[str]:
    """Words from which the tools compose this model's config again."""
    backbone, head, decoder = model["backbone"], model["head"], model["decoder"]
    words = ["task=ssd_coco", f"loss={'multibox_focal' if decoder['classification'] == 'sigmoid' else 'multibox'}"]
    words += [f"backbone.{name}={backbone[name]}" for name in ("alpha", "resolution", "padding", "activation")]
    words += [f"decoder.nms_iou={decoder['nms_iou']}"]
    words += [f"model.{name}={model[name]}".replace(" ", "") for name in ("mean", "std")]
    if head["box_sizes"] is not None:
        rounded = [[[round(side, 6) for side in size] for size in sizes] for sizes in head["box_sizes"]]
        words.append(f"head.box_sizes={rounded}".replace(" ", ""))
    return words


def _state(ssd: SSDGraph, weights: PretrainedWeights, rows: Sequence[int], columns: int) -> dict[str, Tensor]:
    """All tensors of our model; of the class predictors the ``rows`` of each default box."""
    state = {f"backbone.{name}": tensor for name, tensor in weights.state.items()}
    for index, layers in enumerate(ssd.extras):
        for part, layer in zip(("reduce", "expand"), layers):
            state |= unit_state(f"head.extras.{index}.{part}", layer)
            state[f"head.extras.{index}.{part}.bn.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    for index, (box, cls) in enumerate(zip(ssd.box_layers, ssd.class_layers)):
        for name, layer, kept, per_box in (("box", box, XYWH, 4), ("cls", cls, rows, columns)):
            prefix = f"head.predictors.{index}.{name}"
            state[f"{prefix}.weight"] = _chosen(layer.weight, kept, per_box)
            state[f"{prefix}.bias"] = _chosen(layer.bias, kept, per_box)
    return state


def _chosen(values: np.ndarray, rows: Sequence[int], per_box: int) -> Tensor:
    by_box = values.reshape(-1, per_box, *values.shape[1:])[:, list(rows)]
    return torch.from_numpy(np.ascontiguousarray(by_box.reshape(-1, *values.shape[1:])))
