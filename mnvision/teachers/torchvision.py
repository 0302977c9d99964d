"""Any classifier or detector of torchvision as teacher."""

from __future__ import annotations

import urllib.error
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mnvision.checkpoints import load_weights
from mnvision.errors import UserError
from mnvision.teachers.base import Outputs, PixelInput, Resolution, Teacher, one_line
from mnvision.teachers.detections import label_table, padded, stacked
from mnvision.teachers.weights import read_names, read_state
from mnvision.transforms.resize import as_resolution

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


class TorchvisionTeacher(Teacher):
    """A torchvision model: classifiers give "logits", detectors "boxes", "scores" and "labels".

    A detector's own resizing is switched off: it sees pictures of ``resolution``. Its labels are renumbered without
    background and the gaps of COCO's ids.

    Args:
        name: As torchvision lists it: ``resnet50``, ``fasterrcnn_resnet50_fpn_v2``, ``ssd300_vgg16``, ...
        weights: "DEFAULT" or the name of published weights (``IMAGENET1K_V2``; torch's cache, else a download), a
            local file, or None for random ones (to measure time and cost). A file under its published name is loaded
            exactly as the published weights are.
        resolution: Side, or height and width, of the input; None as the weights were evaluated, for detectors the
            square of their shorter side.
        num_classes: Columns of a local file that differ in number from the published weights'; detectors count the
            background among them.
        class_names: Text file with one name per column, for detectors with the background first; None looks beside a
            local file, then takes the names of published weights with as many columns.
        max_detections: Detections kept per picture, D, best first.

    Raises:
        UserError: An unknown name, weights that are missing or do not fit (the line says which file to get), or a
            resolution that the model does not take.
    """

    table: Tensor | None

    def __init__(
        self,
        name: str,
        weights: str | None = "DEFAULT",
        resolution: Resolution | None = None,
        num_classes: int | None = None,
        class_names: str | None = None,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        called = f"teacher torchvision/{name}"
        is_detector = _is_detector(name, called)
        if max_detections < 1:
            raise UserError(f"teacher.max_detections={max_detections}: give at least 1")
        published = _published(name, weights, called)
        file = Path(weights).expanduser() if weights is not None and _is_file(weights) else None
        own_names = published.meta.get("categories")
        columns = len(own_names) if num_classes is None else num_classes
        if weights is not None and file is None and columns != len(own_names):
            raise UserError(
                f"{called}: its published weights have {len(own_names)} columns, not {columns}: leave "
                "teacher.num_classes out, or give your own weights with teacher.weights=FILE"
            )
        self.model = _model(name, None if weights is None else published, file, columns, called)
        names = read_names(class_names, columns, file)
        if names is None and columns == len(own_names):
            names = tuple(own_names)
        self.max_detections = max_detections
        table: Tensor | None = None
        options: dict[str, Any] = {"name": name, "columns": columns}
        if is_detector:
            size = _set_size(self.model, resolution, called)
            if names is None:
                raise UserError(f"{called}: give teacher.class_names, {columns} lines, the background in the first")
            table, names = label_table(names)
            options |= {"max_detections": max_detections, "labels": table.tolist()}
        else:
            recipe: Any = published.transforms()
            crop = recipe.crop_size[0]
            size = as_resolution(crop if resolution is None else resolution, "teacher.resolution")
            mean, std = [255 * value for value in recipe.mean], [255 * value for value in recipe.std]
            self.pixels = PixelInput(mean, std)
            options |= {"mean": mean, "std": std}
        self.register_buffer("table", table, persistent=False)
        self.options = options | {"resolution": list(size)}
        self._settle(called, "detection" if is_detector else "classification", size, class_names=names)

    def answer(self, images: Tensor) -> Outputs:
        """See :meth:`Teacher.answer`."""
        if self.table is None:
            return {"logits": self.model(self.pixels(images))}
        size = (float(images.shape[2]), float(images.shape[3]))
        found = self.model(list(images.float() / 255))
        return stacked(
            [padded(one["boxes"], one["scores"], self.table[one["labels"]], size, self.max_detections) for one in found]
        )


def _is_detector(name: str, called: str) -> bool:
    from torchvision import models

    detectors = models.list_models(module=models.detection)
    classifiers = models.list_models(module=models)
    if name not in detectors and name not in classifiers:
        near = get_close_matches(name, detectors + classifiers, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; torchvision.models.list_models() lists them"
        raise UserError(f"{called}: torchvision has no such classifier or detector{hint}")
    return name in detectors


def _is_file(weights: str) -> bool:
    return weights.lower().endswith(FILE_SUFFIXES) or Path(weights).expanduser().is_file()


def _published(name: str, weights: str | None, called: str) -> Any:
    """The record of published weights: those named, those that a file's name says, else the default ones."""
    from torchvision.models import get_model_weights

    offered: Any = get_model_weights(name)
    if weights is None:
        return offered.DEFAULT
    if _is_file(weights):
        by_file = {Path(entry.url).name: entry for entry in offered}
        return by_file.get(Path(weights).name, offered.DEFAULT)
    if weights not in offered.__members__:
        raise UserError(
            f"{called}: teacher.weights={weights!r} is neither a file nor published weights; it has "
            f"{', '.join(offered.__members__)}"
        )
    return offered[weights]


def _model(name: str, published: Any, file: Path | None, columns: int, called: str) -> nn.Module:
    from torchvision.models import get_model

    if file is not None and not file.is_file():
        raise UserError(f"{file} does not exist; give a local file of weights ({', '.join(FILE_SUFFIXES)})")
    if published is not None and (file is None or file.name == Path(published.url).name):
        # torchvision itself sets what belongs to its weights, such as the epsilon of frozen batch normalisation.
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
        try:
            with nullcontext() if file is None else _hub_with(file):
                return get_model(name, weights=published, progress=False)
        except (urllib.error.URLError, RuntimeError, OSError, EOFError) as error:
            if file is not None or place.is_file():
                raise UserError(f"{file or place}: cannot be loaded into {name} ({one_line(error)})") from error
            raise UserError(
                f"{called}: cannot be downloaded ({one_line(error)}): on a connected machine get {published.url} and "
                f"put it at {place}, or give teacher.weights=FILE"
            ) from error
    arguments: dict[str, Any] = {"weights": None, "num_classes": columns}
    if _is_detector(name, called):
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    model = get_model(name, **arguments)
    if file is not None:
        state = read_state(file)
        # Frozen batch normalisation, as in detectors trained from a pretrained backbone, does not count batches.
        counters = {key: value for key, value in model.state_dict().items() if key.endswith(".num_batches_tracked")}
        load_weights(model, counters | state, file)
    return model


@contextmanager
def _hub_with(file: Path) -> Iterator[None]:
    """Have torch's cache of downloads hold nothing but ``file``."""
    usual = torch.hub.get_dir()
    with TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoints" / file.name
        place.parent.mkdir()
        place.symlink_to(file.resolve())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(usual)


def _set_size(model: nn.Module, resolution: Resolution | None, called: str) -> tuple[int, int]:
    """Height and width of a detector's input; its own resizing is set to leave such pictures as they are."""
    transform: Any = model.transform
    fixed = transform.fixed_size
    if fixed is not None:
        width, height = fixed
        if resolution is not None and as_resolution(resolution, "teacher.resolution") != (height, width):
            raise UserError(f"{called}: teacher.resolution={resolution}: it works at {height} x {width} px only")
        return height, width
    height, width = as_resolution(transform.min_size[-1] if resolution is None else resolution, "teacher.resolution")
    transform.min_size, transform.max_size = (min(height, width),), max(height, width)
    return height, width
