"""What all tools share: Hydra's command line with errors that a person can act on."""

from __future__ import annotations

import functools
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnvision.errors import UserError
from mnvision.runtime import reader_left, tune_allocator, tune_threads

CONF = Path(__file__).resolve().parents[1] / "conf"
# Flags after which the words on the command line are no overrides of ours, or nothing is run.
_UNCHECKED = ("--help", "-h", "--hydra-help", "--version", "-cp", "--config-path", "--config-dir", "-cd")
_SIGPIPE_CODE = 141
_NO_NAME = re.compile(r"null|true|false|[-+.\d]+", re.IGNORECASE)  # what Hydra does not read as text
_FLAGS_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-name", "-cn")


def command(
    config_name: str, expand: Callable[[list[str]], list[str]] | None = None
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Turn a function of a composed config into a command-line entry.

    Wrong overrides end in one line that names the nearest valid key, a :class:`UserError` in its own line; both
    with exit code 2. ``HYDRA_FULL_ERROR=1`` shows the traceback instead.

    Args:
        config_name: File in ``conf/`` without its suffix.
        expand: Replaces words of the command line before Hydra reads them, e.g. ``resume=DIR``.
    """

    def decorate(function: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(cfg: DictConfig) -> None:
            with errors_for_people():
                function(cfg)

        def main() -> None:
            prepare_process()
            words = sys.argv[1:]
            if {"--help", "-h"} & set(words) and not has_task(config_name, words):
                # Hydra composes before it helps, and a missing task would end in an error instead.
                sys.argv.append("task=ssd_coco")
            if not any(word.split("=")[0] in _UNCHECKED for word in words):
                with errors_for_people():
                    words = expand(words) if expand else words
                    overrides = override_words(words)
                    check_overrides(config_name, overrides)
                # Words put before those given would part the flags from them, which argparse does not take.
                sys.argv[1:] = [*flag_words(words), *overrides]
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()

        return main

    return decorate


def group_list(width: int = 110) -> str:
    """The config groups that leave a choice, in lines that fit a screen."""
    lines = []
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in ("base", "hydra")):
        names = sorted(path.stem for path in folder.glob("*.yaml"))
        if len(names) > 1:
            text = f"{folder.name}: {', '.join(names)}"
            lines += textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


OmegaConf.register_new_resolver("group_list", group_list, replace=True)


def has_task(config_name: str, words: Sequence[str]) -> bool:
    """Whether the config composes without ``task=`` being given."""
    return config_name not in ("config", "evaluate", "cache_teacher") or any(word.startswith("task=") for word in words)


def one_task(words: Sequence[str]) -> list[str]:
    """The words themselves, of a command that is about one head.

    Raises:
        UserError: They are of several heads.
    """
    if "task=multitask" in words:
        raise UserError("task=multitask: this command is about one head: give the task that trains it alone, task=NAME")
    return list(words)


def override_words(words: Sequence[str]) -> list[str]:
    """The words of a command line that are neither flags nor the values of flags."""
    return [word for i, word in enumerate(words) if i not in _flag_places(words)]


def flag_words(words: Sequence[str]) -> list[str]:
    """The words of a command line that are flags or the values of flags."""
    return [word for i, word in enumerate(words) if i in _flag_places(words)]


def _flag_places(words: Sequence[str]) -> set[int]:
    values = {i + 1 for i, word in enumerate(words) if word in _FLAGS_WITH_VALUE}
    return values | {i for i, word in enumerate(words) if word.startswith("-")}


def prepare_process() -> None:
    """Settings that must stand before the first tensor and the first import of albumentations."""
    tune_threads()
    tune_allocator()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Advice of Lightning's that does not apply: our loaders choose their workers and our samplers their ranks.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", ".*You have overridden `on_before_batch_transfer`.*")  # as is meant
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", "\\s*Running Hydra app with --multirun")  # as asked for


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Print errors meant for the user and leave with exit code 2; let all others through.

    Where nobody reads on (``| head``), leave as other programs do, with the code of SIGPIPE.
    """
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            sys.exit(_SIGPIPE_CODE)
        text = None if os.environ.get("HYDRA_FULL_ERROR") else message_for_user(error)
        if text is None:
            raise
        fail(text)


def message_for_user(error: BaseException) -> str | None:
    """The one line that an error is for the user, or ``None`` where it is a bug of ours."""
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    for link in _chain(error):
        if isinstance(link, UserError):
            # A loader's worker hands its exception on as the text of a whole traceback; the last line is the error.
            return str(link).strip().splitlines()[-1].removeprefix("mnvision.errors.UserError: ")
    if isinstance(error, MisconfigurationException):
        return " ".join(str(error).split())
    if isinstance(error, InstantiationException | HydraException | OmegaConfBaseException):
        lines = [line for line in str(error).splitlines() if line.strip() and "full_key" not in line]
        return "; ".join(line.strip() for line in lines[:3])
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fail(text: str) -> NoReturn:
    """Print one line and leave with exit code 2."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def check_overrides(config_name: str, overrides: Sequence[str]) -> None:
    """Compose once ahead of Hydra.

    Raises:
        UserError: An unknown key or choice, with the nearest valid ones.
    """
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word!r} is no override; write key=value, e.g. {word}=VALUE")
        key, _, value = word.partition("=")
        if _NO_NAME.fullmatch(value) and (CONF / key).is_dir():
            raise UserError(f"{word}: a group is chosen by name; leave it out, or take it away with ~{key}")
    words = [_first_of_sweep(word) for word in overrides]
    try:
        compose_config(config_name, words)
    except (HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        raise UserError(explain(error, config_name, words)) from None


def compose_config(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """The config of ``conf/config_name.yaml`` under ``overrides``; inside a command of Hydra's, too."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        return _compose(config_name, overrides)
    finally:
        state.hydra = outer


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, list(overrides))


def _first_of_sweep(word: str) -> str:
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{word.split('=', 1)[0]}={next(iter(override.sweep_string_iterator()))}"


def explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """One line for a failed composition: what is wrong and the nearest valid spelling."""
    text = str(error)
    if found := re.search(r"Could not override '([^'@]+)", text):
        key = found.group(1)
        rest = [word for word in overrides if word.lstrip("+~").split("=")[0] != key]
        near = nearest_keys(key, config_name, rest)
        hint = f"did you mean {' or '.join(near)}?" if near else "--cfg job prints all keys"
        return f"there is no config key {key!r}; {hint}"
    if found := re.search(r"Could not find '([\w/]+)/([^/']+)'", text):
        group, name = found.groups()
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        near = get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{group}={name}: there is no such choice; {hint}choices: {', '.join(choices)}"
    if found := re.search(r"You must specify '([\w/]+)'", text):
        group = found.group(1)
        if (config_name, group) == ("evaluate", "task"):
            return "nothing to evaluate: give checkpoint=FILE, or task=NAME backbone.pretrained=SOURCE"
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        return f"no {group} given; add {group}=NAME, one of {', '.join(choices)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:2])


def nearest_keys(key: str, config_name: str, overrides: Sequence[str]) -> list[str]:
    """Up to three existing keys that look like ``key``, by the whole path or by its last part."""
    try:
        keys = list(_leaves(OmegaConf.to_container(compose_config(config_name, overrides), resolve=False)))
    except (HydraException, OmegaConfBaseException):
        return []
    if key in keys:  # the key is right, and what stands below it is not
        return [k for k in keys if k.startswith(f"{key}.")][:3]
    by_path = get_close_matches(key, keys, n=3, cutoff=0.75)
    last = key.rsplit(".", 1)[-1]
    by_name = [k for k in keys if k.rsplit(".", 1)[-1] == last]
    near_name = [k for k in keys if get_close_matches(last, [k.rsplit(".", 1)[-1]], cutoff=0.8) and k not in by_name]
    return list(dict.fromkeys([*by_path, *by_name, *near_name]))[:3]


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        yield path
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}.")


def quoted(value: str | Path) -> str:
    """A value that Hydra's grammar takes literally, whatever characters it holds."""
    return "'" + str(value).replace("'", "\\'") + "'"


def take(words: Sequence[str], key: str) -> tuple[str | None, list[str]]:
    """The value of ``key=`` among command-line words (``None`` if absent), and the other words."""
    values = [word.split("=", 1)[1] for word in words if word.startswith(f"{key}=")]
    rest = [word for word in words if not word.startswith(f"{key}=")]
    return (values[-1].strip("'\"") if values else None), rest


def merge_overrides(stored: Sequence[str], given: Sequence[str], dropped: Sequence[str]) -> list[str]:
    """Overrides of an earlier run below those given now.

    Args:
        stored: Of the earlier run.
        given: Of this command; a key or group named here replaces the stored one and all values below it.
        dropped: Keys (with all below them) of ``stored`` that do not belong to this command.
    """
    keys = [word.lstrip("+~").split("=")[0] for word in given if not word.startswith("-")]
    # A group chosen anew (data=voc) leaves nothing of the old group's values; a single value only itself.
    gone = [*dropped, *keys]

    def kept(word: str) -> bool:
        key = word.lstrip("+~").split("=")[0]
        return not any(key == g or key.startswith(f"{g}.") for g in gone)

    return [word for word in stored if kept(word)]
