"""Which tar shards a user means, and their indices, made where they are missing."""

from __future__ import annotations

import glob
import itertools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from mnvision.data.index import FindingCounter, first_few
from mnvision.data.shard_index import IndexedShard, IndexOptions, index_file, read_index, write_index
from mnvision.errors import UserError

log = logging.getLogger(__name__)

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_NEWS_SECONDS = 30.0


def shard_paths(root: Path, pattern: str) -> list[Path]:
    """Tar files that a pattern names, in order, each once.

    Args:
        root: Folder that the pattern is relative to.
        pattern: A file, a folder (its ``*.tar``), a glob pattern, or names with braces: ``a-{000000..000099}.tar``,
            ``{a,b}.tar``.

    Raises:
        UserError: There are none, or named ones are missing.
    """
    names = list(_expanded(pattern))
    paths: dict[Path, None] = {}
    missing: list[str] = []
    for name in names:
        path = root / Path(name).expanduser()
        if path.is_dir():
            found = sorted(path.glob("*.tar"))
        elif path.exists():
            found = [path]
        else:
            found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        missing += [] if found else [str(path)]
        paths |= dict.fromkeys(found)
    if missing:
        raise UserError(
            f"{len(missing)} of the shards that {pattern} names are not there: {first_few(missing)}; set data.root, "
            "and name those that exist: \"data.train='photos-{000000..000099}.tar'\", a glob pattern or a folder"
        )
    packed = [str(path) for path in paths if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst")]
    if packed:
        raise UserError(f"compressed shards cannot be read in any order: unpack {first_few(packed)} to plain tar files")
    return list(paths)


def indexed_shards(
    shards: Sequence[Path], index_dir: Path | None, options: IndexOptions, workers: int
) -> list[IndexedShard]:
    """The shards with their indices; those that are missing or out of date are made.

    Args:
        shards: Tar files.
        index_dir: Where indices are kept; None keeps each beside its shard.
        options: How they are made.
        workers: Processes that make them.

    Raises:
        UserError: A shard cannot be read, or an index cannot be written.
    """
    known = {shard: read_index(shard, index_file(shard, index_dir), options) for shard in shards}
    new = [shard for shard, index in known.items() if index is None]
    if new:
        log.info("reading %d of %d shards once, to know what lies where", len(new), len(shards))
        _make(new, index_dir, options, workers)
        known |= {shard: read_index(shard, index_file(shard, index_dir), options) for shard in new}
    lost = [str(shard) for shard, index in known.items() if index is None]
    if lost:
        raise UserError(f"the shards change while they are read: {first_few(lost)}; wait until they are written")
    return [index for index in known.values() if index is not None]


def add_findings(found: FindingCounter, shards: Sequence[IndexedShard]) -> None:
    """Counts what was wrong in all shards."""
    for shard in shards:
        for what, finding in shard.findings.items():
            found.add(what, finding.examples, finding.count)


class _Indexing(Dataset[str | None]):
    """Writes the index of a shard when it is asked for; gives what went wrong."""

    def __init__(self, shards: Sequence[Path], index_dir: Path | None, options: IndexOptions) -> None:
        self.shards, self.index_dir, self.options = shards, index_dir, options

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> str | None:
        shard = self.shards[position]
        try:
            write_index(shard, index_file(shard, self.index_dir), self.options)
        except UserError as error:
            return str(error)
        return None


def _make(shards: Sequence[Path], index_dir: Path | None, options: IndexOptions, workers: int) -> None:
    dataset = _Indexing(shards, index_dir, options)
    workers = min(workers, len(shards)) if len(shards) > 1 else 0
    told = time.monotonic()
    for done, error in enumerate(DataLoader(dataset, batch_size=None, num_workers=workers), start=1):
        if error is not None:
            raise UserError(f"{error} (data.index_dir=FOLDER keeps the indices of shards elsewhere)")
        if time.monotonic() - told > _NEWS_SECONDS:
            log.info("read %d of %d shards", done, len(shards))
            told = time.monotonic()


def _expanded(pattern: str) -> Iterator[str]:
    """Names of a pattern with braces."""
    pieces = _BRACES.split(pattern)
    choices = [[piece] if place % 2 == 0 else _choices(piece) for place, piece in enumerate(pieces)]
    yield from map("".join, itertools.product(*choices))


def _choices(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    if int(last) < int(first):
        raise UserError(f"{{{inside}}} counts down; give the smaller number first")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
