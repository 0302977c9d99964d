"""Merge checkpoints of one frozen trunk: ``python tools/merge.py a.ckpt b.ckpt out=all.ckpt``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mnvision.errors import UserError
from tools.cli import command, quoted
from tools.predict import heads_of, literal_paths, names_of

if TYPE_CHECKING:
    from mnvision.merging import HeadPart


def gather_files(words: list[str]) -> list[str]:
    """Put the words without ``=``, which are files, into ``checkpoints=``."""
    files = [word for word in words if "=" not in word and not word.startswith(("-", "~"))]
    others = literal_paths([word for word in words if word not in files], ("out",))
    return [*others, f"checkpoints=[{','.join(map(quoted, files))}]"] if files else others


def chosen_parts(cfg: DictConfig) -> tuple[list[HeadPart], list[str]]:
    """The heads to write, under the names that they will have, and the overrides that measure them.

    Raises:
        UserError: Files that cannot be read, or names that do not fit.
    """
    from mnvision.merging import read_heads

    found = [part for file in cfg.checkpoints for part in read_heads(Path(file).expanduser())]
    names, heads = names_of(cfg.names), heads_of(cfg.heads)
    if names and len(names) != len(found):
        listed = ", ".join(f"{part.name} of {part.path.name}" for part in found)
        raise UserError(f"names={names}: {len(names)} names for {len(found)} heads: {listed}")
    known = names or [part.name for part in found]
    unknown = [name for name in heads if name not in known]
    if unknown:
        raise UserError(f"heads={heads}: there is no head {unknown[0]!r}; the heads are {', '.join(known)}")
    kept = [(part, name) for part, name in zip(found, known, strict=True) if not heads or name in heads]
    words = measuring_words(kept) if len(kept) > 1 else single_words(kept[0][0])
    return [replace(part, name=name) for part, name in kept], words


def measuring_words(parts: list[tuple[HeadPart, str]]) -> list[str]:
    """Overrides with which tools/evaluate.py measures heads on the data of the runs that trained them.

    Args:
        parts: Heads as in their checkpoints, and the names that they will have.

    Returns:
        No words where a checkpoint does not say how it was trained.
    """
    from tools.heads import TASK, carried_words, fold, head_task
    from tools.train import trunk_words

    if not all(part.metadata.overrides for part, _ in parts):
        return []
    own = {}
    try:
        for part, name in parts:
            words = carried_words(part.metadata.overrides, part.name if part.of_several else None)
            if part.of_several:  # its name told the task, and may be another one now
                task, words = head_task(part.name, words)
                words = [f"task={task}", *words]
            own[name] = [*_without_resolution(words), _resolution(part)]
        text = ",".join(f"{name}:[{','.join(map(quoted, words))}]" for name, words in own.items())
        return fold([TASK, *trunk_words(str(parts[0][0].path), []), f"heads={{{text}}}"])
    except UserError:  # e.g. of an experiment's file that is gone: the model is usable all the same
        return []


def single_words(part: HeadPart) -> list[str]:
    """Overrides with which one head is measured as a model of its own; none where its checkpoint has none."""
    from tools.heads import carried_words, head_task
    from tools.train import trunk_words

    if not part.of_several or not part.metadata.overrides:
        return part.metadata.overrides
    try:
        task, words = head_task(part.name, carried_words(part.metadata.overrides, part.name))
    except UserError:
        return []
    trunk = trunk_words(str(part.path), [])
    return [f"task={task}", *_without_resolution([*trunk, *words]), _resolution(part)]


def _without_resolution(words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith("backbone.resolution=")]


def _resolution(part: HeadPart) -> str:
    return f"backbone.resolution={part.metadata.model['backbone']['resolution']}"


def written(path: Path, parts: list[HeadPart], overrides: list[str]) -> list[str]:
    """Write the checkpoint; gives lines about it."""
    from mnvision.latency.subjects import file_megabytes
    from mnvision.merging import merge, save_merged, save_single

    lines = [f"{part.name}: {part.metadata.kind}, {_classes(part)}, from {part.path}" for part in parts]
    if len(parts) == 1:
        save_single(path, replace(parts[0], metadata=replace(parts[0].metadata, overrides=overrides)))
        return [*lines, f"single-task checkpoint: {path} ({file_megabytes(path):.1f} MB)"]
    model, metadata = merge(parts)
    metadata.overrides = overrides
    save_merged(path, model, metadata)
    passes = model.passes()
    trunk = "one pass of the trunk answers for all" if len(passes) == 1 else f"{len(passes)} passes of the trunk"
    trained = [part.name for part in parts if part.metadata.quantization]
    if trained and not metadata.quantization:
        lines.append(f"left out: the int8 ranges of {', '.join(trained)}, which the others lack or have otherwise")
    return [*lines, f"merged: {path} ({file_megabytes(path):.1f} MB), {len(parts)} heads, {trunk}"]


def _classes(part: Any) -> str:
    count = len(part.metadata.class_names)
    return f"{count} class{'es' * (count != 1)}" if count else "no classes"


@command("merge", gather_files)
def main(cfg: DictConfig) -> None:
    """Command line."""
    if not cfg.checkpoints or not cfg.out:
        raise UserError("give checkpoints and where to write: tools/merge.py a.ckpt b.ckpt out=all.ckpt")
    path = Path(cfg.out).expanduser()
    if path.suffix != ".ckpt":
        raise UserError(f"out={cfg.out}: a checkpoint's name ends in .ckpt")
    if path.resolve() in [Path(file).expanduser().resolve() for file in cfg.checkpoints]:
        raise UserError(f"out={cfg.out}: would replace a checkpoint that is merged; choose another name")
    for line in written(path, *chosen_parts(cfg)):
        print(line)


if __name__ == "__main__":
    main()
