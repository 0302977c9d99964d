"""Compute a teacher's outputs ahead: ``python tools/cache_teacher.py task=... teacher=checkpoint teacher.path=...``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import command, one_task


def fill_cache(cfg: DictConfig) -> list[Path]:
    """Fill the cache that ``tools/train.py`` with ``teacher.cache=true`` finds.

    Returns:
        Its folders: for training, and for validation where the data have no labels.

    Raises:
        UserError: There is no teacher, or none that runs; it does not fit the student; or the cache cannot be filled.
    """
    import pytorch_lightning as pl

    from mnvision.teachers.cache_store import ChunkReader
    from tasks.composition import compose_model
    from tools.run import build_data, learned_classes, plain
    from tools.teaching import build_distillation, build_teacher, teacher_view

    # The steps of a training run, in its order: a teacher of random weights is the same one, too.
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg, "fit")
    teacher = build_teacher(cfg)
    if teacher is None:
        raise UserError("no teacher given: tools/cache_teacher.py needs teacher=NAME, such as teacher=checkpoint")
    class_names = learned_classes(cfg, data, teacher)
    student, _ = compose_model(plain(cfg.model), class_names)
    build_distillation(cfg, teacher, data, student, class_names)  # hours are not spent on what does not fit
    cfg.teacher.cache = True
    view = teacher_view(cfg, teacher, data)
    folders = [reader.folder for reader in (view.outputs, view.eval_outputs) if isinstance(reader, ChunkReader)]
    if not folders:
        raise UserError(f"{teacher.spec.name} is not run, its outputs are stored already: nothing to cache")
    return folders


@command("cache_teacher", one_task)
def main(cfg: DictConfig) -> None:
    """Command line."""
    for folder in fill_cache(cfg):
        print(folder)


if __name__ == "__main__":
    main()
