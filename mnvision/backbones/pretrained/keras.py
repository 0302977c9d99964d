"""The sixteen MobileNets of Keras Applications, and HDF5 files of that architecture.

Names, base address and the networks' arithmetic (BatchNormalization's default epsilon 1e-3, "SAME" padding,
ReLU6, pixels scaled to [-1, 1]) from ``keras/src/applications/mobilenet.py``. Keras pads the stride-2 layers
by hand with one row and column at the end, which equals "SAME" for the even sizes of its networks. Keras
publishes no checksums for these files (its own loader passes none), so a download is checked for its length,
for being HDF5, and in the end tensor by tensor for its shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnvision.backbones.mobilenet_v1 import BLOCKS
from mnvision.backbones.pretrained.classes import imagenet_names, labels_beside
from mnvision.backbones.pretrained.download import cache_folder, fetch
from mnvision.backbones.pretrained.weights import PretrainedWeights, make_weights
from mnvision.errors import UserError

BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
BN_EPS = 1e-3
ALPHA_TEXTS = {1.0: "1_0", 0.75: "7_5", 0.5: "5_0", 0.25: "2_5"}
RESOLUTIONS = (224, 192, 160, 128)
PUBLISHED_FILE = re.compile(r"mobilenet_(1_0|7_5|5_0|2_5)_(\d+)_tf(_no_top)?\.h5")
BN_NAMES = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
CLASSIFIER_LAYERS = ("conv_preds", "predictions")


def read_keras(source: str, cache_dir: Path | None = None) -> PretrainedWeights:
    """``keras/<alpha>_<resolution>`` with its classifier, or ``..._no_top`` without; downloaded once.

    Raises:
        UserError: Not one of the sixteen, no connection (the line says which file to put where), a damaged
            file.
    """
    match = re.fullmatch(r"keras/([\d.]+)_(\d+)(_no_top)?", source)
    alpha, resolution = (float(match[1]), int(match[2])) if match and match[1].count(".") < 2 else (0.0, 0)
    if match is None or alpha not in ALPHA_TEXTS or resolution not in RESOLUTIONS:
        raise UserError(
            f"{source}: no such weights; Keras has keras/ALPHA_RESOLUTION with ALPHA 1.0, 0.75, 0.5 or 0.25 "
            "and RESOLUTION 224, 192, 160 or 128, each also with _no_top behind"
        )
    name = f"mobilenet_{ALPHA_TEXTS[alpha]}_{resolution}_tf{match[3] or ''}.h5"
    path = cache_folder("keras", cache_dir) / name
    return read_h5(fetch(BASE_URL + name, path, SIGNATURE), source)


def read_h5(path: Path, source: str) -> PretrainedWeights:
    """A Keras ``.h5`` file, weights only or a whole model, with or without classifier.

    Kernels are turned from (H, W, in, out) to (out, in, H, W), depthwise ones from (H, W, C, M) to
    (C * M, 1, H, W). Class names: ImageNet's if the file has one of the published names, else a labels file.

    Args:
        path: The file.
        source: As the user named it.

    Raises:
        UserError: h5py is not installed, or the file is damaged or holds another architecture.
    """
    layers = _read_layers(path)
    state = _stem_and_blocks(layers)
    used = {f"conv{suffix}" for suffix in ("1", "1_bn")}
    used |= {name for name in layers if re.fullmatch(r"conv_(dw|pw)_\d+(_bn)?", name)}
    classifier = None
    for name in CLASSIFIER_LAYERS:
        if {"kernel", "bias"} <= layers.get(name, {}).keys():
            classifier = _classifier(layers[name])
            used.add(name)
    return make_weights(
        source,
        state,
        padding="tf_same",
        bn_eps=BN_EPS,
        activation="relu6",
        classifier=classifier,
        mean=(127.5, 127.5, 127.5),
        std=(127.5, 127.5, 127.5),
        left_out=tuple(f"{layer}.{name}" for layer in layers if layer not in used for name in layers[layer]),
        **_known_from_name(path, classifier),
    )


def _known_from_name(path: Path, classifier: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """Class names and resolution, so far as the file's name or a labels file beside it tells them."""
    published = PUBLISHED_FILE.fullmatch(path.name)
    names = None
    if classifier is not None:
        names = labels_beside(path)
        if names is None and published and classifier[1].shape[0] == 1000:
            names = imagenet_names()
    return {"class_names": names, "resolution": int(published[2]) if published else None}


def _read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Weights by layer and name, wherever in the tree the layers lie; an optimizer's state is skipped."""
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading Keras files needs h5py: pip install mnvision[keras]") from None
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise UserError(f"{path}: not an HDF5 file")
    layers: dict[str, dict[str, np.ndarray]] = {}

    def collect(name: str, item: Any) -> None:
        parts = name.split("/")
        if isinstance(item, h5py.Dataset) and len(parts) > 1 and parts[0] != "optimizer_weights":
            layers.setdefault(parts[-2], {})[parts[-1].removesuffix(":0")] = np.asarray(item)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged or truncated HDF5 file ({str(error).splitlines()[0]})") from error
    if "conv1" not in layers or "conv_dw_1" not in layers:
        raise UserError(f"{path}: no layers conv1 and conv_dw_1: not a Keras MobileNet (version 1)")
    return layers


def _stem_and_blocks(layers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    units = {"conv1": "stem"}
    for index in range(len(BLOCKS)):
        units |= {f"conv_dw_{index + 1}": f"blocks.{index}.depthwise"}
        units |= {f"conv_pw_{index + 1}": f"blocks.{index}.pointwise"}
    state: dict[str, Tensor] = {}
    for layer, unit in units.items():
        for name, value in layers.get(layer, {}).items():
            state[f"{unit}.conv.{'weight' if 'kernel' in name else name}"] = _kernel(value, name)
        for name, value in layers.get(f"{layer}_bn", {}).items():
            state[f"{unit}.bn.{BN_NAMES.get(name, name)}"] = torch.from_numpy(value.astype(np.float32))
    return state


def _kernel(value: np.ndarray, name: str) -> Tensor:
    if value.ndim == 4 and name == "depthwise_kernel":
        height, width, channels, multiplier = value.shape
        value = value.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, height, width)
    elif value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))


def _classifier(layer: Mapping[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """A 1x1 convolution on pooled features or a dense layer: kernel (1, 1, C, K) or (C, K) to ``(K, C)``."""
    kernel = layer["kernel"].reshape(layer["kernel"].shape[-2:]).T
    return (
        torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float32)),
        torch.from_numpy(layer["bias"].astype(np.float32)),
    )
