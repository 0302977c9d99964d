"""Command lines in tests: a tool run within this process, and the one line that it refuses with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from mnvision.prediction.pictures import write_picture
from tests.builders_models import picture


def call(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *words: str) -> None:
    """Run a tool's ``main`` with these words behind its name."""
    monkeypatch.setattr(sys, "argv", [f"{main.__module__.rpartition('.')[2]}.py", *words])
    main()


def refusal(capsys: pytest.CaptureFixture[str], run: Callable[..., object], *args: object, **options: object) -> str:
    """The one line on stderr with which a run ends in exit code 2."""
    with pytest.raises(SystemExit) as left:
        run(*args, **options)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def save_photos(folder: Path, names: Iterable[str], size: tuple[int, int] | None = None) -> Path:
    """Random pictures under these names below a folder, which is given back; without ``size`` each one is higher."""
    for seed, name in enumerate(names):
        height, width = size or (100 + 10 * seed, 150)
        write_picture(folder / name, picture(seed, height, width))
    return folder
