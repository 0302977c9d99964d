"""Weights in local files of every kind, and our own file of weights.

Our own file is a .safetensors file with names ``backbone.*`` and ``head.fc.*`` and one metadata entry,
``mnvision``: JSON with the settings of the backbone, the normalisation and the class names.
"""

from __future__ import annotations

import inspect
import json
import os
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mnvision.backbones.mobilenet_v1 import MobileNetV1
from mnvision.backbones.pretrained.classes import labels_beside
from mnvision.backbones.pretrained.keras import read_h5
from mnvision.backbones.pretrained.loading import backbone_settings
from mnvision.backbones.pretrained.tflite import read_tflite
from mnvision.backbones.pretrained.timm import weights_from_timm_state
from mnvision.backbones.pretrained.weights import PretrainedWeights, grouped, make_weights
from mnvision.checkpoints import EMA_KEY, KEY, read_checkpoint
from mnvision.errors import UserError
from mnvision.heads.classifier import ClassifierHead

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".h5", ".tflite")
# Where our backbone may lie in a state dict, and what then lies beside it.
PREFIXES = ("model.backbone.", "backbone.", "")
CLASSIFIER_NAMES = ("head.fc.weight", "head.fc.bias")
SETTINGS = ("padding", "bn_eps", "activation", "resolution")


def read_file(path: Path, source: str) -> PretrainedWeights:
    """Weights of a local file; its suffix tells the kind, its names the layout.

    Args:
        path: .safetensors, .pth, .pt or .ckpt with our names (bare, ``backbone.*`` or ``model.backbone.*``)
            or timm's; Keras' .h5; .tflite. Of a checkpoint of ours the averaged weights are taken if it has
            any.
        source: As the user named it.

    Raises:
        UserError: No such file, an unknown kind, a damaged file, or no MobileNetV1 in it.
    """
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise UserError(f"{source}: {what}; give a file ending in {', '.join(SUFFIXES)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{source}: weights files end in {', '.join(SUFFIXES)}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{source}: no permission to read it")
    if suffix == ".h5":
        return read_h5(path, source)
    if suffix == ".tflite":
        return read_tflite(path, source)
    state, known = _read_safetensors(path) if suffix == ".safetensors" else _read_pickle(path)
    _check_known(path, known)
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{source}: holds no state dict (a flat mapping of names to tensors)")
    if "conv_stem.weight" in state:
        count = state["classifier.weight"].shape[0] if "classifier.weight" in state else None
        return weights_from_timm_state(source, state, class_names=_names(path, known, count))
    return _ours(path, source, state, known)


def save_weights(
    path: Path,
    backbone: MobileNetV1,
    head: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] = (127.5, 127.5, 127.5),
    std: Sequence[float] = (127.5, 127.5, 127.5),
) -> None:
    """Write a .safetensors file that :func:`read_file` gives back; whole or not at all.

    Args:
        path: Must end in ``.safetensors``; its folder is made.
        backbone: Its weights and settings are written.
        head: A :class:`ClassifierHead` is written as classifier; any other head is not.
        class_names: One per class of the head.
        mean: Per channel, in pixel units 0-255, that the backbone was trained with.
        std: Per channel, in pixel units.

    Raises:
        UserError: Another suffix, a wrong number of names, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors")
    tensors = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    if isinstance(head, ClassifierHead):
        tensors |= dict(zip(CLASSIFIER_NAMES, (head.fc.weight, head.fc.bias)))
        if class_names is not None and len(class_names) != head.fc.out_features:
            raise UserError(f"{path}: {len(class_names)} class names for {head.fc.out_features} classes")
    known = {
        **backbone_settings(backbone),
        "mean": list(mean),
        "std": list(std),
        "class_names": list(class_names) if class_names is not None else None,
    }
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, partial, metadata={KEY: json.dumps(known)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {str(error).splitlines()[0]}") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or truncated safetensors file ({str(error).splitlines()[0]})") from error
    try:
        known = json.loads(metadata.get(KEY, "{}"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: its {KEY!r} metadata is not JSON ({error})") from error
    return state, known if isinstance(known, dict) else {}


def _check_known(path: Path, known: Mapping[str, Any]) -> None:
    """Refuse metadata of the wrong kind; what is absent is None."""
    texts = {"padding": str, "activation": str, "bn_eps": float, "resolution": int}
    wrong = [name for name, kind in texts.items() if not isinstance(known.get(name), kind | None)]
    for name, kind in (("class_names", str), ("mean", int | float), ("std", int | float)):
        values = known.get(name)
        if values is not None and not (
            isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)
        ):
            wrong.append(name)
    if wrong:
        given = ", ".join(f"{name} {known[name]!r}" for name in wrong)
        raise UserError(f"{path}: its metadata gives {given}: not written by mnvision")


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a .pth, .pt or .ckpt file, and what a checkpoint of ours says about it."""
    try:
        with warnings.catch_warnings():
            # Of damaged files torch warns that their pickle protocol is unusual; the error says all there is
            # to say.
            warnings.simplefilter("ignore", UserWarning)
            content = read_checkpoint(path)
    except (IndexError, AttributeError, TypeError, AssertionError, struct.error) as error:
        raise UserError(f"{path}: not a readable weights file, truncated or corrupt ({error})") from error
    entry = content.get(KEY)
    known: dict[str, Any] = {}
    if isinstance(entry, Mapping):
        model = entry.get("model")
        model = model if isinstance(model, Mapping) else {}
        heads = model.get("heads")
        if isinstance(heads, Mapping) and heads:  # of several heads, which have the backbone's settings in common
            model = next(iter(heads.values()))
        backbone = model.get("backbone")
        known = _constructor_defaults() | dict(backbone) if isinstance(backbone, Mapping) else {}
        known |= {name: model.get(name) for name in ("mean", "std")}
        known["class_names"] = entry.get("class_names")
    for name in (EMA_KEY, "state_dict"):
        if isinstance(content.get(name), Mapping) and content[name]:
            return dict(content[name]), known
    return content, known


def _constructor_defaults() -> dict[str, Any]:
    """What a backbone's config means where it leaves a setting out."""
    parameters = inspect.signature(MobileNetV1).parameters
    return {name: parameters[name].default for name in SETTINGS}


def _ours(path: Path, source: str, state: Mapping[str, Tensor], known: Mapping[str, Any]) -> PretrainedWeights:
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}stem.conv.weight" in state), None)
    if prefix is None:
        raise UserError(
            f"{source}: no MobileNetV1 in it: neither our names (stem.conv.weight, also below backbone. or "
            "model.backbone.) nor timm's (conv_stem.weight) among its tensors"
        )
    outer = prefix.removesuffix("backbone.")
    classifier_names = [f"{outer}{name}" for name in CLASSIFIER_NAMES]
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    classifier = None
    if all(name in state for name in classifier_names):
        classifier = (state[classifier_names[0]].float(), state[classifier_names[1]].float())
        inside = {name: tensor for name, tensor in inside.items() if name not in classifier_names}
    names = _names(path, known, classifier[1].shape[0] if classifier is not None else None)
    settings = {name: known.get(name) for name in SETTINGS}
    settings |= {name: tuple(known[name]) if known.get(name) else None for name in ("mean", "std")}
    left_out = [name for name in state if not name.startswith(prefix) and name not in classifier_names]
    if classifier is None:
        left_out += [name for name in classifier_names if name in state]
    return make_weights(
        source,
        inside,
        classifier=classifier,
        class_names=names,
        left_out=grouped(left_out, state),
        **settings,
    )


def _names(path: Path, known: Mapping[str, Any], count: int | None) -> tuple[str, ...] | None:
    """Class names from within the file, else from a labels file beside it; none without a classifier."""
    if count is None:
        return None
    return tuple(known["class_names"]) if known.get("class_names") else labels_beside(path)
