"""Are old heads untouched?: ``python tools/same.py checkpoints=[old.ckpt,new.ckpt] heads=[ssd] input=FOLDER``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import command
from tools.predict import heads_of, literal_paths, names_of


@command("same", lambda words: literal_paths(words, ("input",)))
def main(cfg: DictConfig) -> None:
    """Command line."""
    from mnvision.latency.contest import progress_line
    from mnvision.latency.report import aligned
    from mnvision.prediction.inputs import find_pictures
    from mnvision.prediction.predictor import check_positive
    from mnvision.sameness import TABLE_HEAD, compare_heads

    files = names_of(cfg.checkpoints)
    if len(files) != 2 or not cfg.input:
        raise UserError("give two checkpoints and pictures: tools/same.py checkpoints=[old.ckpt,new.ckpt] input=FOLDER")
    first, second = (Path(file).expanduser() for file in files)
    pictures = find_pictures(cfg.input, cfg.recursive)
    if cfg.limit is not None:
        count = min(check_positive("limit", cfg.limit), len(pictures.names))
        chosen = (pictures.names[i * len(pictures.names) // count] for i in range(count))
        pictures = replace(pictures, names=tuple(chosen))
    with progress_line() as report:
        found = compare_heads(
            first, second, heads_of(cfg.heads), pictures, check_positive("batch_size", cfg.batch_size), report
        )
    print(aligned([TABLE_HEAD, *(head.cells() for head in found)]))
    for head in found:
        for problem in head.problems:
            print(f"{head.name}: {problem}")
    if not all(head.same for head in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
