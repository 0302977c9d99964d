"""The heads of ``task=multitask`` on the command line, and the config of each: that of the task that trains it alone.

``heads=[ssd,attributes] ssd.data=shapes`` is for people; Hydra is given ``heads={ssd:['data=shapes'],attributes:[]}``,
which is also what an experiment's file, a checkpoint and a run folder hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf

from mnvision.errors import UserError
from tools.cli import CONF, check_overrides, compose_config, merge_overrides, quoted

TASK = "task=multitask"
OF_HEADS = ("data", "head", "loss", "decoder", "distill", "teacher", "backbone.out_strides", "backbone.tail")
"""What each head has for itself."""
OF_RUN = (
    *("optimizer", "scheduler", "callbacks", "logger", "trainer", "paths", "seed", "debug", "hydra", "ckpt_path"),
    *("resume", "init_from", "init_head", "fine_tuning", "trunk", "multitask", "model.mean", "model.std"),
    *("task.optimizer", "task.scheduler", "task.compile", "task.channels_last"),
)
"""What a run has once."""
OWN_BACKBONE = ("resolution", "out_strides", "tail")
Heads = dict[str, list[str]]


def fold(words: Sequence[str]) -> list[str]:
    """Put the overrides of heads (``ssd.data=shapes``) into ``heads=``; words of other tasks stay as they are.

    Raises:
        UserError: No head, an unknown one or one named twice; a word that belongs to a head and names none, or that
            belongs to the run and names a head; or a wrong key or choice, with the nearest valid ones.
    """
    if TASK not in words:
        return list(words)
    choices = _chosen_heads(words)
    names = list(dict.fromkeys(name for choice in choices for name in choice))
    own = {name: [word for word in map(_without(name), words) if word] for name in names}
    rest = [word for word in words if _head_of(word, names) is None and not word.startswith("heads=")]
    for word in rest:
        _refuse_unnamed(word, names)
    variants = []
    for choice in choices:
        kept = [name for name in choice if choice[name] is not None]
        merged = {name: [*merge_overrides(choice[name] or [], own[name], []), *own[name]] for name in kept}
        check_heads({name: [_first(word) for word in merged[name]] for name in kept})
        variants += [heads_word({**dict.fromkeys(choice), **heads}) for heads in _combinations(merged)]
    values = dict.fromkeys(variant.removeprefix("heads=") for variant in variants)
    return [*rest, f"heads={','.join(values)}"]


def heads_word(heads: Mapping[str, Sequence[str] | None]) -> str:
    """``heads=`` with the overrides of each head, for Hydra; None leaves one of an experiment's out."""
    items = (f"{n}:{'null' if own is None else '[' + ','.join(map(quoted, own)) + ']'}" for n, own in heads.items())
    return "heads={" + ",".join(items) + "}"


def unfold(words: Sequence[str]) -> list[str]:
    """The opposite of :func:`fold`."""
    found: list[str] = []
    for word in words:
        value = _parsed(word) if word.startswith("heads=") else None
        if not isinstance(value, dict):
            found.append(word)
            continue
        heads = {str(name): own for name, own in value.items() if own is not None}
        found += [f"heads=[{','.join(heads)}]", *(_with(name, str(one)) for name in heads for one in heads[name])]
    return found


def renewed(stored: Sequence[str], given: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """As :func:`~tools.cli.merge_overrides`, for words of any task; what is dropped is dropped of every head, too."""
    if TASK not in stored:
        return merge_overrides(stored, given, dropped)
    plain, given = unfold(stored), unfold(given)
    heads = [word for word in plain if word.startswith("heads=")]
    names = [str(name) for name in _parsed(heads[-1])] if heads else []
    chosen = next((_parsed(word) for word in given if word.startswith("heads=")), names)
    gone = {name for name in names if isinstance(chosen, list) and name not in map(str, chosen)}
    each = [f"{name}.{key}" for name in names for key in dropped]
    return merge_overrides(plain, given, [*dropped, *each, *gone])


def check_heads(heads: Mapping[str, Sequence[str]]) -> None:
    """Compose the config of every head once.

    Raises:
        UserError: A head cannot be composed; its name stands before what is wrong.
    """
    for name, words in heads.items():
        _check_name(name)
        for word in words:
            _refuse_common(name, word)
        task, others = head_task(name, words)
        try:
            check_overrides("config", [f"task={task}", *others])
        except UserError as error:
            raise UserError(f"head {name}: {error}") from None


def head_task(name: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """The task that trains a head alone, and its other overrides.

    Raises:
        UserError: An unknown head without a task.
    """
    given = [word.removeprefix("task=") for word in words if word.startswith("task=")]
    others = [word for word in words if not word.startswith("task=")]
    file = CONF / "head_tasks" / f"{name}.yaml"
    if not given and not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.yaml"))
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"heads: {name} is none of {', '.join(known)}; {hint}give {name}.task=TASK for a name of your own"
        )
    task = given[-1] if given else str(OmegaConf.load(file).task)
    if task == "multitask":
        raise UserError(f"{name}.task=multitask: a head is a single task")
    return task, others


def words_by_head(cfg: DictConfig) -> Heads:
    """The heads of a composed config, and the overrides of each.

    Raises:
        UserError: There is none.
    """
    node = None if OmegaConf.is_missing(cfg, "heads") else cfg.heads
    if isinstance(node, ListConfig):
        return {str(name): [] for name in node}
    found = {str(name): [str(word) for word in words] for name, words in (node or {}).items() if words is not None}
    if not found:
        raise UserError(_no_heads())
    return found


def compose_head(name: str, words: Sequence[str], cfg: DictConfig) -> DictConfig:
    """The config of one head: its task's own, on the trunk and in the run of another config."""
    task, others = head_task(name, words)
    head = compose_config("config", [f"task={task}", *others, "paths.output_dir=."])
    own = set(OWN_BACKBONE)
    if not any(word.lstrip("+").startswith("backbone.resolution=") for word in others):
        own.discard("resolution")
    for key in cfg.backbone.keys() - own:
        head.backbone[key] = cfg.backbone[key]
    for key in ("mean", "std"):
        head.model[key] = cfg.model[key]
    head.paths, head.seed = cfg.paths, cfg.seed
    head.trainer.accelerator = cfg.trainer.accelerator
    return head


def carried_words(kind_words: Sequence[str], name: str | None = None) -> list[str]:
    """Overrides of a head, from those of the run of a checkpoint that has it.

    Args:
        kind_words: Of that run.
        name: Of the head there; None where it was trained alone.
    """
    if name is not None:
        return [word for word in map(_without(name), unfold(kind_words)) if word]
    keys = (*OF_RUN, "backbone", "model", "monitor")
    keep = merge_overrides(kind_words, [], [key for key in keys if not key.startswith("task.")])
    return [*keep, *(word for word in kind_words if word.startswith("backbone.out_strides="))]


def _chosen_heads(words: Sequence[str]) -> list[dict[str, list[str] | None]]:
    """Of every value of ``heads=``, and of the experiment's file, the overrides by head; None leaves a head out."""
    given = [word for word in words if word.startswith("heads=")]
    composed = [word for word in words if word == TASK or word.startswith("experiment=")]
    check_overrides("config", composed)
    node = compose_config("config", [_first(word) for word in composed])
    of_file: Heads = {}
    if not OmegaConf.is_missing(node, "heads"):
        of_file = words_by_head(node)
    if not given and not of_file:
        raise UserError(_no_heads())
    if not given:
        return [dict(of_file)]
    override = OverridesParser.create().parse_override(given[-1])
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    return [_checked(value, of_file) for value in values]


def _checked(value: Any, of_file: Heads) -> dict[str, list[str] | None]:
    if isinstance(value, dict):
        found = {str(name): None if own is None else [str(word) for word in own] for name, own in value.items()}
        return {**of_file, **found}
    names = [str(name) for name in value] if isinstance(value, list) else [str(value)]
    if not names:
        raise UserError(_no_heads())
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"heads=[{','.join(names)}]: {name} is named twice; give a second one another name, and NAME.task=TASK"
            )
    return {**dict.fromkeys(of_file), **{name: of_file.get(name, []) for name in names}}


def _check_name(name: str) -> None:
    reserved = {"seed", "monitor", "model", "trunk", "multitask", "fine_tuning", "checkpoint", "split"}
    if not name.isidentifier() or name in reserved or (CONF / name).is_dir():
        raise UserError(
            f"heads: {name!r} cannot be a head's name: use letters, digits and _, and no config group's name"
        )


def _refuse_unnamed(word: str, names: Sequence[str]) -> None:
    key = _key(word)
    if any(key == own or key.startswith(f"{own}.") for own in OF_HEADS):
        ways = " or ".join(f"{name}.{key}=..." for name in names)
        raise UserError(f"{word}: belongs to one head: write {ways}")
    if key == "init_head":
        raise UserError("init_head: heads of the checkpoint that are trained again start from it anyway; leave it out")
    near = get_close_matches(key.split(".")[0], names, n=1, cutoff=0.75)
    if near and "." in key and not (CONF / key.split(".")[0]).is_dir():
        raise UserError(f"{word}: there is no head {key.split('.')[0]!r}; did you mean {near[0]}?")


def _refuse_common(name: str, word: str) -> None:
    key = _key(word)
    trunk = key.startswith("backbone.") and key.removeprefix("backbone.") not in OWN_BACKBONE
    if trunk or key == "backbone":
        raise UserError(f"{name}.{key}: the trunk is common to all heads: write {key}=...")
    if any(key == common or key.startswith(f"{common}.") for common in OF_RUN):
        raise UserError(f"{name}.{key}: belongs to the whole run: write {key}=...")


def _combinations(heads: Heads) -> list[Heads]:
    """All combinations of the values of words that are swept over."""
    places = [(name, _values(word)) for name, words in heads.items() for word in words]
    found = []
    for picks in itertools.product(*(values for _, values in places)):
        one: Heads = {name: [] for name in heads}
        for (name, _), word in zip(places, picks):
            one[name].append(word)
        found.append(one)
    return found


def _values(word: str) -> list[str]:
    if "=" not in word:
        return [word]
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return [word]
    return [f"{word.split('=', 1)[0]}={value}" for value in override.sweep_string_iterator()]


def _first(word: str) -> str:
    return _values(word)[0]


def _parsed(word: str) -> Any:
    override = OverridesParser.create().parse_override(word)
    return None if override.is_sweep_override() else override.value()


def _key(word: str) -> str:
    return word.lstrip("+~").split("=")[0]


def _head_of(word: str, names: Sequence[str]) -> str | None:
    first, dot, _ = _key(word).partition(".")
    return first if dot and first in names and not word.startswith("-") else None


def _without(name: str) -> Any:
    """Word -> what it says to a head, or "" if it says nothing to it."""

    def stripped(word: str) -> str:
        if _head_of(word, [name]) is None:
            return ""
        mark = word[: len(word) - len(word.lstrip("+~"))]
        return mark + word.lstrip("+~").removeprefix(f"{name}.")

    return stripped


def _with(name: str, word: str) -> str:
    mark = word[: len(word) - len(word.lstrip("+~"))]
    return f"{mark}{name}.{word.lstrip('+~')}"


def _no_heads() -> str:
    known = sorted(path.stem for path in (CONF / "head_tasks").glob("*.yaml"))
    return f"no heads given; add heads=[NAME,...], some of {', '.join(known)}, or names of your own with NAME.task=TASK"
