"""Train one task: ``python tools/train.py task=ssd_coco backbone.alpha=0.75``."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import command, quoted, take
from tools.heads import OWN_BACKBONE, TASK, fold, renewed
from tools.quantizing import expand_quantize


def expand_resume(words: list[str]) -> list[str]:
    """Replace ``resume=DIR`` by the overrides of that run, its folder and its last checkpoint."""
    folder, rest = take(words, "resume")
    if folder is None or folder in ("", "null"):
        return words
    run = Path(folder)
    if (run / "multirun.yaml").is_file():
        raise UserError(f"resume={folder} is a sweep of runs: give the folder of one of them")
    stored_file, checkpoint = run / ".hydra" / "overrides.yaml", run / "checkpoints" / "last.ckpt"
    for path, what in ((stored_file, "is no run folder"), (checkpoint, "has no checkpoint yet")):
        if not path.is_file():
            raise UserError(f"resume={folder} {what}: {path} is missing")
    stored = [str(word) for word in OmegaConf.load(stored_file)]
    # One run of a sweep goes on alone, where its task would start the whole sweep.
    alone = ["hydra.mode=RUN", f"hydra.run.dir={quoted(run)}"]
    ours = [f"resume={quoted(run)}", f"ckpt_path={quoted(checkpoint)}", *alone]
    return [*renewed(stored, rest, ["resume", "ckpt_path", "hydra"]), *ours, *rest]


def expand_start(words: list[str]) -> list[str]:
    """Take the width of a published detector that ``init_from=FILE`` names, unless another is given.

    Several heads take the whole trunk of any checkpoint.
    """
    words = expand_quantize(expand_resume(words))
    path, _ = take(words, "init_from")
    if TASK in words:
        return fold([*(trunk_words(path, words) if path not in (None, "", "null") else []), *words])
    if path is None or any(word.startswith("backbone.alpha=") for word in words):
        return words
    from mnvision.published.ssd_tflite import is_published_detector

    if not is_published_detector(path):
        return words
    from mnvision.checkpoints import read_metadata

    return [f"backbone.alpha={read_metadata(path).model['backbone']['alpha']}", *words]


def trunk_words(path: str, words: list[str]) -> list[str]:
    """Overrides for the trunk of a checkpoint, but for what the words say otherwise."""
    from mnvision.checkpoints import read_metadata

    model = read_metadata(path).model
    alone = next(iter(model["heads"].values())) if "heads" in model else model
    kept = {key: value for key, value in alone["backbone"].items() if key not in ("_target_", *OWN_BACKBONE[1:])}
    found = {f"backbone.{key}": value for key, value in kept.items()}
    found |= {f"model.{key}": f"[{','.join(map(str, alone[key]))}]" for key in ("mean", "std")}
    given = {word.split("=")[0] for word in words}
    return [f"{key}={value}" for key, value in found.items() if key not in given]


@command("config", expand_start)
def main(cfg: DictConfig) -> None:
    """Command line."""
    from tools.run import train  # after the process's settings are made, and not for --help

    train(cfg)


if __name__ == "__main__":
    main()
