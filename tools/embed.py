"""Embeddings of pictures: ``python tools/embed.py checkpoint=best.ckpt input=<image|folder|glob> output=DIR``."""

from __future__ import annotations

from omegaconf import DictConfig

from tools.cli import command
from tools.predict import literal_paths
from tools.verify import plain_points

PATHS = ("checkpoint", "input", "output", "landmarks")


@command("embed", lambda words: literal_paths(words, PATHS))
def main(cfg: DictConfig) -> None:
    """Command line."""
    from pathlib import Path

    from rich.console import Console

    from mnvision.errors import UserError
    from mnvision.prediction.embed_folder import EmbedOptions, embed_folder

    for key in ("checkpoint", "input", "output"):
        if not cfg[key]:
            raise UserError(f"no {key} given; tools/embed.py needs checkpoint=FILE input=PATH output=FOLDER")
    options = EmbedOptions(
        output=Path(cfg.output).expanduser(),
        file_format=cfg.format,
        landmarks=Path(cfg.landmarks).expanduser() if cfg.landmarks else None,
        points=plain_points(cfg.points),
        mirror=cfg.mirror,
        figures=cfg.figures,
        batch_size=cfg.batch_size,
        recursive=cfg.recursive,
    )
    for line in embed_folder(cfg.checkpoint, cfg.input, options, cfg.device, Console()):
        print(line)


if __name__ == "__main__":
    main()
