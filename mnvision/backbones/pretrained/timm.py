"""MobileNetV1 weights of timm (pytorch-image-models), both directions.

timm groups the thirteen blocks into stages and trains with ``bn_eps`` 1e-5, symmetric padding, ReLU6 and
pixels scaled to [-1, 1]. Source: ``timm/models/efficientnet.py`` (``_gen_mobilenet_v1``) and the pretrained
configs of its ``mobilenetv1_*`` entries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mnvision.backbones.pretrained.classes import imagenet_names
from mnvision.backbones.pretrained.download import reachable
from mnvision.backbones.pretrained.weights import PretrainedWeights, make_weights
from mnvision.errors import UserError

BN_EPS = 1e-5
STAGE_DEPTHS = (1, 2, 2, 6, 2)
BLOCK_NAMES = tuple(f"blocks.{stage}.{index}" for stage, depth in enumerate(STAGE_DEPTHS) for index in range(depth))
# Layers within a block, and those before the blocks: timm's name, ours.
BLOCK_LAYERS = {
    "conv_dw": "depthwise.conv",
    "bn1": "depthwise.bn",
    "conv_pw": "pointwise.conv",
    "bn2": "pointwise.bn",
}
STEM_LAYERS = {"conv_stem": "stem.conv", "bn1": "stem.bn"}
WITH_CONV_HEAD = (
    "timm's mobilenetv1_100h has one more convolution (conv_head) than MobileNetV1: take mobilenetv1_100 or "
    "mobilenetv1_125"
)
CLASSIFIER_KEYS = ("classifier.weight", "classifier.bias")


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone weights under our names from the state dict of a timm ``mobilenetv1_*``.

    The classifier in it is passed over.

    Raises:
        UserError: A name that timm's plain MobileNetV1 does not have.
    """
    table = _ours_by_timm()
    kept = {name: tensor for name, tensor in state.items() if name not in CLASSIFIER_KEYS}
    if any(name.startswith("conv_head.") for name in kept):
        raise UserError(WITH_CONV_HEAD)
    foreign = [name for name in kept if name.rpartition(".")[0] not in table]
    if foreign:
        raise UserError(f"not the names of timm's MobileNetV1: {', '.join(foreign)}")
    return {_renamed(name, table): tensor for name, tensor in kept.items()}


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`from_timm`, for a backbone of all thirteen separable blocks."""
    table = {ours: theirs for theirs, ours in _ours_by_timm().items()}
    foreign = [name for name in state if name.rpartition(".")[0] not in table]
    if foreign:
        raise UserError(f"timm's MobileNetV1 has no place for {', '.join(foreign)}")
    return {_renamed(name, table): tensor for name, tensor in state.items()}


def weights_from_timm_state(source: str, state: Mapping[str, Tensor], **settings: Any) -> PretrainedWeights:
    """Wrap a timm state dict, classifier included if it has one.

    Args:
        source: Named in errors.
        state: Under timm's names.
        **settings: Further fields of :class:`PretrainedWeights`, e.g. ``class_names``.
    """
    try:
        ours = from_timm(state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    classifier = None
    if all(key in state for key in CLASSIFIER_KEYS):
        classifier = (state[CLASSIFIER_KEYS[0]].float(), state[CLASSIFIER_KEYS[1]].float())
    defaults = {
        "padding": "symmetric",
        "bn_eps": BN_EPS,
        "activation": "relu6",
        "mean": (127.5, 127.5, 127.5),
        "std": (127.5, 127.5, 127.5),
    }
    return make_weights(source, ours, classifier=classifier, **defaults | settings)


def read_timm(source: str, cache_dir: Path | None = None) -> PretrainedWeights:
    """``timm/<model>.<tag>`` through timm's own loading, from the Hugging Face cache or the hub.

    Args:
        source: e.g. ``timm/mobilenetv1_100.ra4_e3600_r224_in1k``.
        cache_dir: Folder for the download; by default Hugging Face's own cache.

    Raises:
        UserError: An unknown model, or no connection and no cached file; the line names the file to get.
    """
    # timm takes a second to import, which only those who load its weights should spend.
    import timm

    name = source.removeprefix("timm/")
    offered = timm.list_models("mobilenetv1_*", pretrained=True)
    if name not in offered:
        raise UserError(f"{source}: no such weights; timm has {', '.join(f'timm/{entry}' for entry in offered)}")
    if name.startswith("mobilenetv1_100h."):
        raise UserError(f"{source}: {WITH_CONV_HEAD}")
    config = timm.get_pretrained_cfg(name)
    if config is None or config.hf_hub_id is None:
        raise UserError(f"{source}: this timm does not say where its weights lie; update timm")
    file = hub_file(source, config.hf_hub_id, cache_dir)
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file})
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{source}: {file} is damaged ({reason}): delete it and run again") from error
    state = model.state_dict()
    count = state[CLASSIFIER_KEYS[1]].shape[0]
    return weights_from_timm_state(
        source,
        state,
        class_names=imagenet_names() if count == 1000 else None,
        mean=tuple(255 * value for value in config.mean),
        std=tuple(255 * value for value in config.std),
        resolution=config.input_size[-1],
    )


def hub_file(source: str, repository: str, cache_dir: Path | None = None, option: str = "backbone.pretrained") -> str:
    """Local path of the model file, downloaded by Hugging Face's client if it is not in its cache.

    The hub is tried once before the client is, for that one retries for most of a minute, printing as it
    goes.

    Args:
        source: Named in errors.
        repository: ``owner/name`` on the hub.
        cache_dir: Folder for the download; by default Hugging Face's own cache.
        option: Which option takes a local file instead, for errors.

    Raises:
        UserError: No connection and no cached file; the line names the file to get.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    cached = try_to_load_from_cache(repository, "model.safetensors", cache_dir=cache_dir)
    if isinstance(cached, str):
        return cached
    reason = f"{constants.ENDPOINT} does not answer"
    if not constants.HF_HUB_OFFLINE and reachable(constants.ENDPOINT):
        # The bases name the error class of whichever HTTP library this version of the hub's client uses.
        failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
        try:
            return hf_hub_download(repository, "model.safetensors", cache_dir=cache_dir)
        except failures as error:
            reason = str(error).strip().splitlines()[0]
    raise UserError(
        f"{source}: cannot be downloaded ({reason}): on a connected machine get model.safetensors from "
        f"https://huggingface.co/{repository}, put it into a folder DIR here and give "
        f"{option}=DIR/model.safetensors"
    )


def _ours_by_timm() -> dict[str, str]:
    """Layer names, timm's to ours."""
    table = dict(STEM_LAYERS)
    for index, block in enumerate(BLOCK_NAMES):
        table |= {f"{block}.{theirs}": f"blocks.{index}.{ours}" for theirs, ours in BLOCK_LAYERS.items()}
    return table


def _renamed(name: str, table: Mapping[str, str]) -> str:
    return re.sub(r"^(.*)\.([^.]+)$", lambda match: f"{table[match[1]]}.{match[2]}", name)
