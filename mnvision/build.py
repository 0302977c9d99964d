"""Objects from plain data: ``{"_target_": "mnvision.heads.ssd.SSDHead", "num_classes": 80}``.

The same few lines build a model from a composed config and from a stranger's checkpoint. Since importing and
calling whatever a file names would undo ``torch.load(weights_only=True)``, only targets inside mnvision are built.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from mnvision.errors import UserError


def locate(target: str) -> Callable[..., Any]:
    """The class or function that a dotted path inside mnvision names.

    Raises:
        UserError: The path lies outside mnvision, or names nothing.
    """
    if not isinstance(target, str) or not target.startswith("mnvision."):
        raise UserError(f"_target_={target!r}: only targets inside mnvision are built from a config")
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        raise UserError(f"_target_={target!r}: there is no such class or function in mnvision") from None
    if not callable(found) or getattr(found, "__module__", None) != module_name:
        raise UserError(f"_target_={target!r}: not a class or function defined in {module_name}")
    return found


def build(config: Mapping[str, Any], **parts: Any) -> Any:
    """Call the ``_target_`` of ``config`` with its other keys, and with ``parts`` built elsewhere.

    Args:
        config: ``_target_`` and plain keyword arguments.
        **parts: Arguments that only the caller knows, e.g. ``in_channels`` of a head.

    Raises:
        UserError: No or a foreign target, an unknown argument, or a value that the target refuses.
    """
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise UserError(f"a config with a _target_ is needed to build a part, not {config!r}")
    target = locate(config["_target_"])
    arguments = {key: value for key, value in config.items() if key != "_target_"} | parts
    known = inspect.signature(target).parameters
    for key in arguments:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(known)}"
            raise UserError(f"{config['_target_']} has no argument {key!r}{hint}")
    try:
        return target(**arguments)
    except TypeError as error:
        raise UserError(f"{config['_target_']} could not be built: {error}") from error


def build_model(config: Mapping[str, Any]) -> Any:
    """A whole model from its plain config, weights initialised at random.

    Args:
        config: ``_target_`` one of the classes in ``mnvision.models``, and what its ``from_config`` takes.

    Raises:
        UserError: As :func:`build`, or a key of the config is missing.
    """
    target = config.get("_target_", "") if isinstance(config, Mapping) else ""
    model_class = locate(target)
    if not hasattr(model_class, "from_config"):
        raise UserError(f"_target_={target!r} is no model: it has no from_config")
    try:
        return model_class.from_config(config)
    except KeyError as error:
        raise UserError(f"the model config lacks the key {error.args[0]!r}") from error
