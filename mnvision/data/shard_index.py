"""What lies where in a tar shard of pictures and their positions, kept in a small file.

The layout is WebDataset's: members that share a name up to the first dot of their last part are one sample
(``000012.jpg``, ``000012.json``). With the place of every picture known, a sample is read by one call, in any order,
and a run can go on anywhere in an epoch. The index of a shard is a line of JSON (how it was made, and of which file),
padded to 64 bytes, and one record of 36 bytes per picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mnvision.data.geo_index import usable_places
from mnvision.data.images import IMAGE_SUFFIXES, EncodedImage, check_image
from mnvision.data.index import Finding, FindingCounter
from mnvision.data.shard_places import PlaceError, PlaceKeys, place_of
from mnvision.errors import UserError
from mnvision.files import whole_file

FORMAT, VERSION = "mnvision.shard", 1
RECORD = np.dtype([("header", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("latitude", "<f8"), ("longitude", "<f8")])
"""Of one picture: where its member and its content begin, bytes of the content, and the position in degrees."""

_ALIGNED = 64
_BLOCK = tarfile.BLOCKSIZE
_PICTURES = tuple(suffix[1:] for suffix in IMAGE_SUFFIXES)
_PLACES = ("json", "txt")


@dataclass(frozen=True)
class IndexOptions:
    """What an index depends on beside the shard.

    Attributes:
        keys: Names of the fields of the position.
        check: Pictures were read whole to find the unreadable ones.
    """

    keys: PlaceKeys = field(default_factory=PlaceKeys)
    check: bool = True


class IndexedShard(NamedTuple):
    """A shard and its index.

    Attributes:
        path: The tar file.
        index_path: Its index.
        start: Bytes before the records.
        rows: Usable pictures.
        entries: Samples in the shard, usable or not, and one more where it breaks off.
        findings: What was wrong with the others.
    """

    path: Path
    index_path: Path
    start: int
    rows: int
    entries: int
    findings: dict[str, Finding]

    def records(self) -> NDArray[Any]:
        """``(rows,)`` of ``RECORD``.

        Raises:
            UserError: The index was removed or cut off since it was checked.
        """
        try:
            records = np.fromfile(self.index_path, RECORD, self.rows, offset=self.start)
        except OSError as error:
            raise UserError(f"cannot read {self.index_path}: {error.strerror}; start again to make it anew") from None
        if len(records) != self.rows:
            raise UserError(f"{self.index_path} was cut off; start again to make it anew")
        return records


@dataclass
class _Sample:
    """Members of one sample: header, offset and size of the picture; offset, size and kind of the position."""

    picture: tuple[int, int, int] | None = None
    place: tuple[int, int, str] | None = None


def index_file(shard: Path, index_dir: Path | None) -> Path:
    """Where a shard's index is kept: beside it, or in ``index_dir`` under a name that tells its folder apart."""
    if index_dir is None:
        return shard.with_name(f"{shard.name}.index")
    digest = hashlib.blake2b(os.fsencode(shard.absolute()), digest_size=6).hexdigest()
    return index_dir / f"{shard.name}-{digest}.index"


def read_index(shard: Path, index: Path, options: IndexOptions) -> IndexedShard | None:
    """The index of a shard; None where there is none, or it was made of another file or in another way."""
    try:
        with open(index, "rb") as file:
            line = file.readline(1 << 20)
            header = json.loads(line)
            length = os.fstat(file.fileno()).st_size
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.get("made") != _made(shard, options):
        return None
    rows = int(header["rows"])
    if length != len(line) + rows * RECORD.itemsize:
        return None
    findings = {what: Finding(count, tuple(examples)) for what, (count, examples) in header["findings"].items()}
    return IndexedShard(shard, index, len(line), rows, int(header["entries"]), findings)


def write_index(shard: Path, index: Path, options: IndexOptions) -> None:
    """Reads a shard once and writes its index.

    Raises:
        UserError: The shard cannot be read, or the index cannot be written.
    """
    made = _made(shard, options)
    found = FindingCounter()
    try:
        with open(shard, "rb") as file:
            samples, is_whole = _samples(file, shard.name, found)
            records = _records(file.fileno(), shard, samples, options, found)
    except OSError as error:
        raise UserError(f"cannot read {shard}: {error.strerror or error}") from None
    findings = {what: [item.count, list(item.examples)] for what, item in found.findings().items()}
    header = {"made": made, "rows": len(records), "entries": len(samples) + (not is_whole), "findings": findings}
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % _ALIGNED) + b"\n"
    with whole_file(index) as path, open(path, "wb") as target:
        target.write(line)
        target.write(records.tobytes())


def member_name(head: bytes) -> str:
    """Name of the member whose header blocks are ``head``."""
    try:
        if len(head) == _BLOCK:
            return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape").name
        with tarfile.open(fileobj=io.BytesIO(head + bytes(2 * _BLOCK)), mode="r:") as archive:
            member = archive.next()
    except tarfile.TarError:
        return "?"
    return "?" if member is None else member.name


def _made(shard: Path, options: IndexOptions) -> dict[str, Any]:
    """What decides whether an index still holds: of which file it is, and how it was made."""
    try:
        status = shard.stat()
    except OSError as error:
        raise UserError(f"cannot read shard {shard}: {error.strerror or error}") from None
    kept = {"format": FORMAT, "version": VERSION, "bytes": status.st_size, "changed": status.st_mtime_ns}
    return {**kept, "options": asdict(options)}


def _samples(file: Any, name: str, found: FindingCounter) -> tuple[dict[str, _Sample], bool]:
    """Samples by key, in the order of the shard, and whether it was read to its end."""
    samples: dict[str, _Sample] = {}
    length = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them all
                if member.isreg():
                    _add(samples, member, length, name, found)
            end = archive.offset
    except tarfile.TarError as error:
        found.add("shards that are no whole tar archives", [f"{name}: {error}"])
        return samples, False
    mark = os.pread(file.fileno(), _BLOCK, end)
    is_whole = bool(mark) and not mark.strip(b"\0")
    if not is_whole:  # tarfile takes a damaged header after the first for the end
        found.add("shards that end without the mark of their end", [f"{name}: at byte {end} of {length}"])
    return samples, is_whole


def _add(samples: dict[str, _Sample], member: tarfile.TarInfo, length: int, name: str, found: FindingCounter) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, kind = base.partition(".")
    key, kind = f"{folder}/{stem}" if folder else stem, kind.lower()
    if not stem or kind not in _PICTURES + _PLACES:
        found.add("members that are neither pictures nor positions skipped", [f"{name}/{member.name}"])
        return
    if member.offset_data + member.size > length:
        found.add("members that are cut off", [f"{name}/{member.name}"])
        return
    sample = samples.setdefault(key, _Sample())
    if kind in _PICTURES:
        if sample.picture is not None:
            found.add("further pictures of a sample left out", [f"{name}/{member.name}"])
        else:
            sample.picture = (member.offset, member.offset_data, member.size)
    # A caption beside the json is no position.
    elif sample.place is None or kind == "json":
        sample.place = (member.offset_data, member.size, kind)


def _records(
    file: int, shard: Path, samples: dict[str, _Sample], options: IndexOptions, found: FindingCounter
) -> NDArray[Any]:
    records = np.zeros(len(samples), RECORD)
    names: list[str] = []
    for key, sample in samples.items():
        name = f"{shard.name}/{key}"
        if sample.picture is None:
            found.add("samples without a picture left out", [name])
            continue
        if sample.place is None:
            found.add("pictures without a position left out", [name])
            continue
        start, size, kind = sample.place
        try:
            latitude, longitude = place_of(os.pread(file, size, start), kind, options.keys)
        except PlaceError as error:
            found.add("pictures whose position cannot be read left out", [f"{name}.{kind}: {error}"])
            continue
        records[len(names)] = (*sample.picture, latitude, longitude)
        names.append(name)
    records = records[: len(names)]
    valid = usable_places(records["latitude"], records["longitude"], names.__getitem__, found)
    if options.check:
        for row in np.flatnonzero(valid).tolist():
            valid[row] = _is_readable(file, records[row], names[row], found)
    return records[valid]


def _is_readable(file: int, record: Any, name: str, found: FindingCounter) -> bool:
    try:
        check_image(EncodedImage(name, os.pread(file, int(record["size"]), int(record["offset"]))))
    except UserError as error:
        found.add("unreadable pictures left out", [str(error)])
        return False
    return True
