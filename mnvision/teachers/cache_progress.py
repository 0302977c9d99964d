"""How far a cache is filled, how fast, and for how long still: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console

_FIRST_LINE, _NEXT_LINES = 5.0, 60.0  # seconds

log = logging.getLogger(__name__)


class FillProgress:
    """Counts views; the first estimate is a line everywhere, so that nobody starts a week's work unknowingly.

    Args:
        total: Views to compute.
        row_bytes: Size of one on the disk.
    """

    def __init__(self, total: int, row_bytes: int) -> None:
        self.total, self.row_bytes, self.done = total, row_bytes, 0
        from mnvision.prediction.folders import progress_bar  # drags in all of prediction

        self._bar = progress_bar(Console(file=sys.stderr))
        self._task = self._bar.add_task("", total=total)
        self._start, self._due = 0.0, _FIRST_LINE

    def __enter__(self) -> Self:
        self._bar.start()
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        seconds = time.monotonic() - self._start
        if self.done:
            rate = self.done / max(seconds, 1e-9)
            log.info("teacher cache: %d of %d views in %s, %.1f images/s", self.done, self.total, _span(seconds), rate)

    def advance(self, count: int) -> None:
        """So many views more."""
        self.done += count
        self._bar.advance(self._task, count)
        seconds = time.monotonic() - self._start
        if seconds >= self._due and self.done < self.total:
            first = self._due == _FIRST_LINE
            self._due = seconds + _NEXT_LINES
            if first or self._bar.disable:
                log.info(self.line(seconds))

    def line(self, seconds: float) -> str:
        """The state after some seconds, in words."""
        rate = self.done / max(seconds, 1e-9)
        left, size = (self.total - self.done) / max(rate, 1e-9), gigabytes(self.total * self.row_bytes)
        return (
            f"teacher cache: {self.done} of {self.total} views, {rate:.1f} images/s, about {_span(left)} left, "
            f"{size} in the end"
        )


def gigabytes(count: int) -> str:
    """A size for people: ``1.9 GB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _span(seconds: float) -> str:
    """A time for people: ``2 h 10 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
