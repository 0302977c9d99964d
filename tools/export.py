"""Export: ``python tools/export.py checkpoint=best.ckpt format=onnx [precision=int8 data.root=...] [output=FILE]``."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from mnvision.errors import UserError
from tools.cli import command, quoted
from tools.evaluate import data_config
from tools.predict import heads_of, literal_paths, names_of

if TYPE_CHECKING:
    from mnvision.export.base import Format, Wish
    from mnvision.export.calibration import Calibration, Samples
    from mnvision.prediction.predictor import Predictor

PATHS = ("checkpoint", "output", "pictures", "converter")
MAX_SIDE = 8192
"""Of pictures that are stretched inside, in pixels: one of 8192 x 8192 takes 0.8 GB as float32."""


def gather_data(words: list[str]) -> list[str]:
    """Put what says which data, ``data.root=PATH`` or ``HEAD.data=NAME``, into ``overrides=``; quote single paths."""
    given = [word for word in words if re.match(r"[+~]*(\w+\.)?data(\.|=)", word)]
    rest = literal_paths([word for word in words if word not in given], PATHS)
    return [*rest, f"overrides=[{','.join(map(quoted, given))}]"] if given else rest


def build_format(cfg: DictConfig) -> Format:
    """The format that ``cfg`` names.

    Raises:
        UserError: None is named, there is no such format, or an option of it is out of range.
    """
    from hydra.utils import instantiate

    known = ", ".join(cfg.formats)
    if cfg.format is None or cfg.format not in cfg.formats:
        raise UserError(f"format={cfg.format}: choose one of {known}")
    form: Format = instantiate(cfg.formats[cfg.format], _convert_="all")
    return form


def wish_of(cfg: DictConfig, form: Format) -> Wish:
    """What ``cfg`` asks of a file of this format.

    Raises:
        UserError: A value of the wrong type, or out of range.
    """
    from mnvision.export.base import Wish

    if cfg.nms is not None and not isinstance(cfg.nms, bool):
        raise UserError(f"nms={cfg.nms}: give true or false")
    nms = form.keep is not None if cfg.nms is None else cfg.nms
    return Wish(precision=str(cfg.precision), batch=batch_of(cfg.batch, form), nms=nms, resize=resize_of(cfg.resize))


def resize_of(value: Any) -> bool | tuple[int, int]:
    """Whether pictures of any size are stretched inside, or those of which height and width.

    Raises:
        UserError: Neither true, false nor two whole numbers of 1 to :data:`MAX_SIDE`.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    sides = list(value) if isinstance(value, ListConfig) else []
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MAX_SIDE for side in sides)
    if len(sides) != 2 or not whole:
        raise UserError(
            f"resize={value}: give true, false, or height and width of the pictures that go in, 1 to {MAX_SIDE} each, "
            "such as resize=[480,640]"
        )
    return sides[0], sides[1]


def batch_of(value: Any, form: Format) -> int | None:
    """Images at once; None is any number.

    Raises:
        UserError: Neither a number of at least 1 nor "dynamic".
    """
    if value is None:
        return None if form.any_batch else 1
    if value == "dynamic":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"batch={value}: give dynamic, or a whole number of at least 1")
    return value


def calibration_of(cfg: DictConfig) -> Calibration:
    """What ``cfg`` asks of int8.

    Raises:
        UserError: A value is out of range.
    """
    from mnvision.export.calibration import Calibration

    return Calibration(cfg.calibration.limit, cfg.calibration.held_out, cfg.report, cfg.max_drop, cfg.latency)


def samples_of_data(cfg: DictConfig, predictor: Predictor[Any], calibration: Calibration, head: str = "") -> Samples:
    """Pictures of the data set of the checkpoint's own run, or of another one that ``cfg`` names.

    Args:
        cfg: The command's config.
        predictor: Of the checkpoint, or of one head of it.
        calibration: How many.
        head: The head's name, where there are several; else that of ``heads=``, which took one of them.

    Raises:
        UserError: It is not there.
    """
    from mnvision.export.calibration_data import data_samples
    from tools.run import build_data

    head = head or next(iter(names_of(cfg.heads)), "")
    try:
        if not predictor.metadata.overrides:
            raise UserError("it does not say what it was trained on")
        composed = data_config(cfg.checkpoint, cfg.overrides, predictor, head)
        return data_samples(build_data(composed, "fit"), predictor, calibration)
    except UserError as error:
        whose = "the data named here" if cfg.overrides else "those of the checkpoint's own run"
        of = f"{head}." * bool(head)
        raise UserError(
            f"precision=int8 is calibrated on real pictures, and {whose} cannot be used ({error}); give "
            f"pictures=FOLDER, {of}data.root=PATH or {of}data=NAME"
        ) from error


def wanted_heads(cfg: DictConfig) -> tuple[list[str] | None, list[str] | None]:
    """The heads that go in, None for all, and the overrides that measure a file with one of several.

    Raises:
        UserError: An empty list, or a file that is no checkpoint.
    """
    from mnvision.merging import read_heads
    from tools.merge import single_words

    if cfg.heads is None:
        return None, None
    heads = heads_of(cfg.heads)
    parts = [part for part in read_heads(cfg.checkpoint) if part.of_several and part.name == heads[0]]
    return heads, single_words(parts[0]) if parts and len(heads) == 1 else None


@command("export", gather_data)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.export.base import INT8
    from mnvision.export.exporter import export

    if not cfg.checkpoint:
        raise UserError("no checkpoint given; tools/export.py needs checkpoint=FILE format=NAME")
    form = build_format(cfg)
    wish, calibration = wish_of(cfg, form), calibration_of(cfg)
    if cfg.overrides and (cfg.pictures or wish.precision != INT8):
        raise UserError(f"{cfg.overrides[0]}: data are for precision=int8 without pictures=; leave one of them out")
    source = None if cfg.pictures else partial(samples_of_data, cfg)
    heads, words = wanted_heads(cfg)
    done = export(
        *(cfg.checkpoint, form, wish, cfg.output, cfg.pictures, cfg.score_threshold, calibration, source),
        *(heads, words),
    )
    for line in done.lines:
        print(line)
    print(f"exported: {done.path}")


if __name__ == "__main__":
    main()
