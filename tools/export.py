"""Export: ``python tools/export.py checkpoint=best.ckpt format=onnx [precision=fp16] [output=FILE]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import command
from tools.predict import literal_paths

if TYPE_CHECKING:
    from mnvision.export.base import Format, Wish
    from mnvision.export.calibration import Calibration

PATHS = ("checkpoint", "output", "pictures", "converter")


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
        UserError: A value of the wrong type.
    """
    from mnvision.export.base import Wish

    for name in ("nms", "resize"):
        if cfg[name] is not None and not isinstance(cfg[name], bool):
            raise UserError(f"{name}={cfg[name]}: give true or false")
    nms = form.keep is not None if cfg.nms is None else cfg.nms
    return Wish(precision=str(cfg.precision), batch=batch_of(cfg.batch, form), nms=nms, resize=bool(cfg.resize))


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

    return Calibration(cfg.calibration.limit, cfg.calibration.held_out, cfg.report, cfg.max_drop)


@command("export", lambda words: literal_paths(words, PATHS))
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.export.exporter import export

    if not cfg.checkpoint:
        raise UserError("no checkpoint given; tools/export.py needs checkpoint=FILE format=NAME")
    form = build_format(cfg)
    wish, calibration = wish_of(cfg, form), calibration_of(cfg)
    done = export(cfg.checkpoint, form, wish, cfg.output, cfg.pictures, cfg.score_threshold, calibration)
    for line in done.lines:
        print(line)
    print(f"exported: {done.path}")


if __name__ == "__main__":
    main()
