"""Any model of timm (pytorch-image-models) as teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.backbones.pretrained.classes import imagenet_names
from mnvision.backbones.pretrained.timm import hub_file
from mnvision.checkpoints import load_weights
from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, PixelInput, Resolution, Teacher, one_line
from mnvision.teachers.weights import read_names, read_state
from mnvision.transforms.resize import as_resolution

OUTPUTS = {"classification": "logits", "face_attributes": "attribute_logits", "face_embeddings": "embedding"}


class TimmTeacher(Teacher):
    """A timm model; what its last layer gives is named by ``output``.

    Args:
        name: As timm lists it, with or without a tag of pretrained weights: ``resnet50.a1_in1k``.
        pretrained: True for timm's own weights (Hugging Face's cache, else the hub), False for random ones (to
            measure time and cost), or a local file of weights.
        output: "classification", "face_attributes" (logits before the sigmoid) or "face_embeddings" (made length 1).
        num_classes: Columns of the last layer; None takes what the weights have. 0 leaves that layer out, so that the
            pooled features are the embedding.
        class_names: Text file with one name per column; None looks beside a local file of weights, and knows
            ImageNet's thousand.
        resolution: Side, or height and width, of the input; None as the weights were trained.
        mean: Per channel, in pixel units 0-255; None as the weights were trained.
        std: Per channel, in pixel units; None as the weights were trained.
        features: Strides of the maps to give as well, as "features_<stride>"; of several the last.

    Raises:
        UserError: An unknown name or option, weights that are missing or do not fit (the line says which file to
            get), or a resolution or stride that the model does not have.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = True,
        output: str = "classification",
        num_classes: int | None = None,
        class_names: str | None = None,
        resolution: Resolution | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        features: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise UserError(f"teacher.output={output!r}: choose one of {', '.join(OUTPUTS)}")
        called = f"teacher timm/{name}"
        config = _config(name, called)
        size = as_resolution(resolution, "teacher.resolution") if resolution is not None else config["input_size"][1:]
        # Only models that need to know their input size take it as an argument.
        extra = {"img_size": size} if config["fixed_input_size"] else {}
        self.output = OUTPUTS[output]
        self.model: Any = _model(name, pretrained, num_classes, config, extra, called)
        columns = int(getattr(self.model, "num_classes", 0))
        if columns == 0 and output != "face_embeddings":
            raise UserError(f"{called}: teacher.num_classes=0 leaves no columns for output={output}: give their number")
        self._taken = _feature_indices(self.model, features, called)
        mean = [255 * value for value in config["mean"]] if mean is None else list(mean)
        std = [255 * value for value in config["std"]] if std is None else list(std)
        self.pixels = PixelInput(mean, std)
        names: tuple[str, ...] | None = None
        if output != "face_embeddings":
            names = read_names(class_names, columns, Path(pretrained) if isinstance(pretrained, str) else None)
            if names is None and output == "classification" and columns == 1000:
                names = imagenet_names()
        self.options = {
            "name": name.partition(".")[0],
            "output": output,
            "columns": columns,
            "resolution": list(size),
            "mean": mean,
            "std": std,
            "features": sorted(self._taken),
        }
        self._settle(called, output, (size[0], size[1]), class_names=names)

    def answer(self, images: Tensor) -> Outputs:
        """See :meth:`Teacher.answer`."""
        pixels = self.pixels(images)
        if self._taken:
            indices = list(self._taken.values())
            last, maps = self.model.forward_intermediates(pixels, indices=indices)
            answer = self.model.forward_head(last)
        else:
            answer, maps = self.model(pixels), []
        outputs = {self.output: F.normalize(answer.float()) if self.output == "embedding" else answer}
        return outputs | {f"features_{stride}": taken for stride, taken in zip(self._taken, maps)}


def _config(name: str, called: str) -> dict[str, Any]:
    """What timm records of a model: input size, normalisation, where its weights lie."""
    import timm  # takes a second

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() lists them"
        raise UserError(f"{called}: timm {timm.__version__} has no such model{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(f"{called}: timm has no weights {tag!r} of {architecture}; it has {', '.join(tags) or 'none'}")
    config: Any = timm.get_pretrained_cfg(name)
    return config.to_dict(remove_null=False)


def _model(
    name: str,
    pretrained: bool | str,
    num_classes: int | None,
    config: Mapping[str, Any],
    extra: Mapping[str, Any],
    called: str,
) -> nn.Module:
    if isinstance(pretrained, str):
        state = read_state(pretrained)
        classifier = config["classifier"]
        kernel = state.get(f"{classifier}.weight")
        if num_classes is None:
            num_classes = 0 if kernel is None else len(kernel)
        if num_classes == 0:
            state = {key: value for key, value in state.items() if not key.startswith(f"{classifier}.")}
        model = _create(name, called, pretrained=False, num_classes=num_classes, **extra)
        load_weights(model, state, Path(pretrained))
        return model
    if not pretrained:
        columns = config["num_classes"] if num_classes is None else num_classes
        return _create(name, called, pretrained=False, num_classes=columns, **extra)
    if num_classes not in (None, 0, config["num_classes"]):
        raise UserError(
            f"{called}: its pretrained weights have {config['num_classes']} columns, not {num_classes}: leave "
            "teacher.num_classes out, or give your own weights with teacher.pretrained=FILE"
        )
    repository = config["hf_hub_id"]
    if repository is None:
        raise UserError(f"{called}: timm does not publish weights of it on the hub: give teacher.pretrained=FILE")
    overlay = {"file": hub_file(called, repository, option="teacher.pretrained")}
    columns = config["num_classes"] if num_classes is None else num_classes
    return _create(name, called, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=columns, **extra)


def _create(name: str, called: str, **arguments: Any) -> nn.Module:
    import timm
    from safetensors import SafetensorError

    try:
        return timm.create_model(name, **arguments)
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError, SafetensorError) as error:
        raise UserError(f"{called}: timm cannot build it ({one_line(error)})") from error


def _feature_indices(model: nn.Module, features: Sequence[int], called: str) -> dict[int, int]:
    """Stride -> index of the last of timm's feature maps that has it, finest first."""
    if not features:
        return {}
    info: Any = getattr(model, "feature_info", None)
    records = info if isinstance(info, list) else info.get_dicts() if info is not None else []
    index = {int(record["reduction"]): position for position, record in enumerate(records)}
    missing = sorted(set(features) - index.keys())
    if missing or not hasattr(model, "forward_intermediates"):
        has = ", ".join(map(str, sorted(index))) if hasattr(model, "forward_intermediates") else "none"
        raise UserError(f"{called}: teacher.features={list(features)}: its maps have the strides {has}")
    return {stride: index[stride] for stride in sorted(set(features))}
