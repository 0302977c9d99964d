"""Tar shards: what lies where in them, the order of their pictures, and going on in the middle of an epoch."""

from __future__ import annotations

import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mnvision.data.geo_shards import GeoShardsDataModule
from mnvision.data.geo_table import GeoTableDataModule
from mnvision.data.shard_files import shard_paths
from mnvision.data.shard_index import IndexOptions, index_file, read_index, write_index
from mnvision.data.shard_places import PlaceError, PlaceKeys, place_of
from mnvision.data.shards import OPEN_SHARDS, ShardSampler
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from mnvision.geo.partition import partition_photos
from tests.builders_geo import make_geo_shards, picture, place_near, shard_members, write_tar

CELLS = {"max_photos": 6, "min_photos": 1}
ALL: dict[str, Any] = {"val": None, "val_fraction": None}  # nothing is held out


def module(root: Path, **options: Any) -> GeoShardsDataModule:
    fixed = {"val": None, "val_fraction": 0.3, "resolution": 32, "batch_size": 2, "num_workers": 0, "cells": CELLS}
    return GeoShardsDataModule(root, **{**fixed, "shuffle_buffer": 8, **options})


def place(index: int) -> bytes:
    latitude, longitude = place_near(index)
    return json.dumps({"lat": latitude, "lng": str(longitude)}).encode()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_index_says_where_every_picture_lies(form: int, tmp_path: Path):
    """Against the archive's own contents: long names, folders, members in any order, other kinds of files."""
    long = "x" * (90 if form == tarfile.USTAR_FORMAT else 150)
    members = [
        ("a/1.json", place(1)),
        ("a/2.jpg", picture(2)),
        (f"{long}.jpg", picture(3)),
        ("a/readme", b"hello"),
        ("b/2.PNG", picture(4, suffix=".png")),
        ("a/2.json", place(2)),
        ("b/2.txt", "{}, {}\n".format(*place_near(4)).encode()),
        (f"{long}.json", place(3)),
        (f"{long}.txt", b"a caption of many words"),
        ("a/1.jpg", picture(1)),
        ("a/1.seg.png", picture(5)),
    ]
    write_tar(tmp_path / "train-0.tar", members, form)
    write_tar(tmp_path / "train-1.tar", shard_members(6, 2), form)
    data = module(tmp_path, train="train-{0..1}.tar", **ALL)
    source = data.listed("train")
    got = {source.name(row): (source.picture(row).data, source.place(row).tolist()) for row in range(4)}
    assert got == {
        "train-0.tar/a/1.jpg": (picture(1), list(place_near(1))),
        "train-0.tar/a/2.jpg": (picture(2), list(place_near(2))),
        f"train-0.tar/{long}.jpg": (picture(3), list(place_near(3))),
        "train-0.tar/b/2.PNG": (picture(4, suffix=".png"), list(place_near(4))),
    }
    found = source.report.findings["members that are neither pictures nor positions skipped"]
    assert (found.count, found.examples) == (2, ("train-0.tar/a/readme", "train-0.tar/a/1.seg.png"))
    assert len(source) == 6
    assert source.name(5) == "train-1.tar/000007.jpg"
    copied = pickle.loads(pickle.dumps(source))  # as for spawned workers
    assert copied.picture(5).data == picture(7)


def test_samples_that_cannot_be_used_are_counted_and_named(tmp_path: Path):
    torn = picture(9)[:-20]
    members = [
        *shard_members(0, 10),
        ("lone.jpg", picture(10)),
        ("blind.json", place(11)),
        ("torn.jpg", torn),
        ("torn.json", place(9)),
        ("far.jpg", picture(12)),
        ("far.json", b'{"lat": -91.5, "lon": 200}'),
        ("zero.jpg", picture(13)),
        ("zero.json", b'{"lat": 0, "lon": 0}'),
        ("words.jpg", picture(14)),
        ("words.json", b'{"lat": "north", "lon": 3}'),
        ("none.jpg", picture(15)),
        ("none.json", b'{"lat": null, "lon": 3}'),
        ("fields.jpg", picture(16)),
        ("fields.json", b'{"x": 1}'),
        ("broken.jpg", picture(17)),
        ("broken.json", b'{"lat": 1'),
    ]
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(UserError, match=r"9 of 19 entries cannot be used, more than data.max_faulty=0.1"):
        module(tmp_path, **ALL).listed("train")
    data = module(tmp_path, max_faulty=0.5, **ALL)
    source = data.listed("train")
    assert len(source) == 10
    found = {what: (item.count, item.examples) for what, item in source.report.findings.items()}
    shard = "train-0.tar"
    assert found["pictures without a position left out"] == (1, (f"{shard}/lone",))
    assert found["samples without a picture left out"] == (1, (f"{shard}/blind",))
    (count, reasons) = found["pictures whose position cannot be read left out"]
    assert count == 3
    assert reasons[0] == f"{shard}/words.json: 'north' is no number"
    assert "no field latitude or lat; there are x" in reasons[1]
    assert reasons[2] == f"{shard}/broken.json: no JSON"
    assert f"image file is truncated: {shard}/torn" in found["unreadable pictures left out"][1][0]
    rest = {what: item for what, item in found.items() if "north" not in str(item) and f"{shard}/far" in str(item)}
    assert list(rest.values()) == [(1, (f"{shard}/far: -91.5, 200",))]
    assert sum(item[0] for item in found.values()) == 9
    # Without looking into the pictures the torn one is found when it is drawn.
    blind = module(tmp_path, max_faulty=0.5, check=False, **ALL)
    assert len(blind.listed("train")) == 11
    with pytest.raises(UserError, match=r"truncated: train-0.tar/torn.jpg"):
        list(blind.train_dataloader())


@pytest.mark.parametrize("harm", ["cut", "garbled", "empty", "text"])
def test_shards_that_break_off_are_named_and_used_up_to_there(harm: str, tmp_path: Path):
    make_geo_shards(tmp_path, (8, 8))
    path = tmp_path / "train-000001.tar"
    whole = path.read_bytes()
    half = len(whole) // 2 // 512 * 512
    broken = {
        "cut": whole[: half + 100],
        "garbled": whole[:half] + b"\x07" * 512 * 9 + whole[half + 512 * 9 :],
        "empty": b"",
        "text": b"<html>not found</html>" * 99,
    }
    path.write_bytes(broken[harm])
    source = module(tmp_path, max_faulty=0.3, **ALL).listed("train")
    assert 8 <= len(source) < 16
    named = [example for item in source.report.findings.values() for example in item.examples]
    assert any("train-000001.tar" in example for example in named)
    for row in range(len(source)):  # what is used is whole
        assert source.picture(row).data == picture(row)
    with pytest.raises(UserError, match=r"entries cannot be used.*train-000001.tar"):
        module(tmp_path, train="train-000001.tar", max_faulty=0.0, **ALL).listed("train")


def test_an_index_is_made_once_and_again_when_the_shard_changes(tmp_path: Path):
    root = make_geo_shards(tmp_path / "set", (4, 4))
    shard, options = root / "train-000000.tar", IndexOptions()
    module(root).setup("fit")
    index = index_file(shard, None)
    assert index == root / "train-000000.tar.index"
    before = index.stat().st_mtime_ns
    module(root).setup("fit")
    assert index.stat().st_mtime_ns == before
    assert read_index(shard, index, IndexOptions(check=False)) is None
    assert read_index(shard, index, IndexOptions(PlaceKeys("lat"))) is None
    write_tar(shard, shard_members(0, 3))
    assert read_index(shard, index, options) is None
    assert len(module(root).listed("train")) + len(module(root).listed("val")) == 7
    index.write_bytes(index.read_bytes()[:-1])
    assert read_index(shard, index, options) is None
    index.write_bytes(b"\x00\xff")
    assert read_index(shard, index, options) is None
    elsewhere = tmp_path / "kept"
    assert len(module(root, index_dir=elsewhere).listed("train")) > 0
    assert len(list(elsewhere.iterdir())) == 2
    source = module(root, index_dir=elsewhere).listed("train")
    with shard.open("r+b") as file:
        file.truncate(600)
    with (root / "train-000001.tar").open("r+b") as file:
        file.truncate(600)
    with pytest.raises(UserError, match="was cut off since the run began"):
        source.picture(len(source) - 1)


def test_indices_that_cannot_be_kept_say_where_else(tmp_path: Path):
    root = make_geo_shards(tmp_path, (4, 4))
    (tmp_path / "train-000000.tar.index").mkdir()
    with pytest.raises((UserError, OSError)):
        module(root).setup("fit")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data.index_dir=FOLDER"):
        module(root, index_dir=tmp_path / "file").setup("fit")


def test_patterns_of_shards(tmp_path: Path):
    make_geo_shards(tmp_path, (1,) * 11)
    names = [f"train-{number:06d}.tar" for number in range(11)]
    for pattern in ("train-{000000..000010}.tar", "train-*.tar", ".", "{train-00000?,train-000010}.tar"):
        assert [path.name for path in shard_paths(tmp_path, pattern)] == names
    assert [path.name for path in shard_paths(tmp_path, "train-{000009..000010}.tar")] == names[9:]
    assert [path.name for path in shard_paths(tmp_path, "train-00000{3,1}.tar")] == [names[3], names[1]]
    with pytest.raises(UserError, match=r"2 of the shards that .*train-000011.tar, .*train-000012.tar"):
        shard_paths(tmp_path, "train-{000010..000012}.tar")
    with pytest.raises(UserError, match="counts down"):
        shard_paths(tmp_path, "train-{3..1}.tar")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="compressed shards"):
        shard_paths(tmp_path, "*.tar.gz")
    with pytest.raises(UserError, match="one shard, which cannot be parted"):
        module(tmp_path, train="train-000000.tar").setup("fit")


def test_shards_to_be_scored_are_not_trained_on(tmp_path: Path):
    root = make_geo_shards(tmp_path, (3, 4, 5))
    make_geo_shards(tmp_path, (2,), "val", 12)
    data = module(root, train=".", val="val-*.tar", test="train-000001.tar")
    assert [len(data.listed(split)) for split in ("train", "val", "test")] == [8, 2, 4]
    found = data.listed("train").report.findings
    assert found["training shards that are also val shards left out"].examples == (str(root / "val-000000.tar"),)
    assert found["training shards that are also test shards left out"].examples == (str(root / "train-000001.tar"),)
    with pytest.raises(UserError, match=r"no shards but those of data.val=\*.tar"):
        module(root, val="*.tar").listed("train")
    assert len(module(root, **ALL).listed("train")) == 12
    with pytest.raises(UserError, match=r"no val split: give data\.val"):
        module(root, **ALL).listed("val")


def test_positions_in_other_fields_and_in_texts():
    keys = PlaceKeys("exif.gps.lat", "exif.gps.lon")
    assert place_of(b'{"exif": {"gps": {"lat": 1.5, "lon": "-2"}}}', "json", keys) == (1.5, -2.0)
    assert place_of(b'\xef\xbb\xbf{"LAT": 3, "Longitude": 4}', "json", PlaceKeys()) == (3.0, 4.0)
    for text in (b"1.5 -2", b"1.5, -2\n", b"1.5\t-2", b"1.5;-2"):
        assert place_of(text, "txt", PlaceKeys()) == (1.5, -2.0)
    for data, kind in (
        (b"[1, 2]", "json"),
        (b"1 2 3", "txt"),
        (b"a cat", "txt"),
        (b"\xff", "txt"),
        (b'{"lat": {}}', "json"),
        (b'{"lat": 1%s, "lon": 1}' % (b"0" * 400), "json"),  # beyond floating-point numbers
    ):
        with pytest.raises(PlaceError):
            place_of(data, kind, PlaceKeys())
    with pytest.raises(PlaceError, match=r"no field exif.gps.lat"):
        place_of(b'{"exif": 3}', "json", keys)


counts_of_shards = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(lambda counts: sum(counts) > 0)


@settings(deadline=None, max_examples=80)
@given(counts_of_shards, st.integers(1, 30), st.integers(1, 4), st.integers(0, 3), st.integers(0, 40))
def test_every_picture_is_dealt_once_in_equal_shares_and_entered_anywhere(
    counts: list[int], buffer: int, world: int, epoch: int, start: int
):
    array = np.array(counts, np.int64)
    total = int(array.sum())
    samplers = [ShardSampler(array, buffer, 7, rank, world) for rank in range(world)]
    shares = [np.concatenate(list(sampler.positions(epoch, 0))).tolist() for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {-(-total // world)}
    order = [position for row in zip(*shares) for position in row]
    assert sorted(order[:total]) == list(range(total))
    assert set(order) == set(range(total))
    for sampler, share in zip(samplers, shares):
        rest = [position for piece in sampler.positions(epoch, start) for position in piece.tolist()]
        assert rest == share[start:]
        sampler.set_epoch(epoch)
        sampler.start = start
        assert [tuple(key) for key in sampler] == [(position, epoch) for position in share[start:]]
        assert len(list(sampler)) == len(share)  # only that once
    # The same order whatever the number of processes.
    alone = np.concatenate(list(ShardSampler(array, buffer, 7, 0, 1).positions(epoch, 0)))
    assert alone.tolist() == order[:total]


def test_the_order_mixes_shards_and_changes_with_the_epoch():
    counts = np.full(40, 100)
    sampler = ShardSampler(counts, 1000, 3, 0, 1)
    first, second = (np.concatenate(list(sampler.positions(epoch, 0))) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    pieces = list(sampler.positions(0, 0))
    assert [len(piece) for piece in pieces] == [1000] * 4
    assert all(len(np.unique(piece // 100)) == 10 for piece in pieces)
    # Neighbours are of different shards as often as a shuffle of ten shards makes them.
    assert (np.diff(pieces[0] // 100) == 0).mean() < 0.2
    many = ShardSampler(np.ones(1000, np.int64), 10**9, 3, 0, 1)
    assert max(len(piece) for piece in many.positions(0, 0)) == OPEN_SHARDS


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 21 pictures in shards and in a folder with a table."""
    root = make_geo_shards(tmp_path_factory.mktemp("shards"), (7, 5, 9))
    make_geo_shards(root, (1,), "val", 21)
    rows = ["path,lat,lon"]
    for index in range(21):
        (root / f"{index:06d}.jpg").write_bytes(picture(index))
        rows.append("{:06d}.jpg,{},{}".format(index, *place_near(index)))
    (root / "train.csv").write_text("\n".join(rows))
    (root / "val.jpg").write_bytes(picture(99))
    (root / "val.csv").write_text(f"{rows[0]}\nval.jpg,1,2\n")
    return root


def test_pictures_of_shards_are_shown_as_those_of_files(pair: Path):
    """Bit by bit, in training and evaluation, to the network and to a teacher."""
    options: dict[str, Any] = {"resolution": 32, "batch_size": 4, "num_workers": 0, "cells": CELLS}
    shards = GeoShardsDataModule(pair, shuffle_buffer=8, **options)
    files = GeoTableDataModule(pair, val_table="val.csv", **options)
    assert shards.partition.fingerprint == files.partition.fingerprint
    teacher = TeacherView((48, 48))
    datasets = [data.train_dataset(teacher) for data in (shards, files)]
    assert len(datasets[0]) == len(datasets[1]) == 21
    for row in range(21):
        one, other = (dataset[row] for dataset in datasets)
        assert torch.equal(one.view.image, other.view.image)
        assert one.view.teacher_image is not None
        assert other.view.teacher_image is not None
        assert torch.equal(one.view.teacher_image, other.view.teacher_image)
        assert (one.label, one.place.tolist()) == (other.label, other.place.tolist())
    evaluated = [data.dataset(data.source("train"), None, None) for data in (shards, files)]
    assert all(torch.equal(evaluated[0][row].view.image, evaluated[1][row].view.image) for row in range(21))
    with pytest.raises(UserError, match=r"teacher.cache=false"):
        datasets[0].path(0)


def batches_of(data: GeoShardsDataModule, epoch: int) -> list[dict[str, Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def test_workers_show_what_one_process_shows(pair: Path):
    alone, shared = (batches_of(module(pair, val="val-*.tar", num_workers=workers), 1) for workers in (0, 2))
    assert len(alone) == len(shared) == 10
    for one, other in zip(alone, shared):
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_pictures_outside_the_cells_are_left_out_of_the_shards_order(pair: Path):
    inside = np.array([place_near(index) for index in range(21) if index % 6 < 2])
    partition = partition_photos([(inside[:, 0], inside[:, 1])], 4, 1, min_level=6)
    data, scored = (module(pair, val=val, batch_size=1) for val in ("val-*.tar", "train-*.tar"))
    for one in (data, scored):
        one.use_partition(partition)
    assert data.num_images("train") == len(inside) == 8
    seen = [(batch["coordinates"][0].tolist(), int(batch["labels"][0])) for batch in batches_of(data, 0)]
    assert sorted(place for place, _ in seen) == sorted(inside.tolist())
    assert min(label for _, label in seen) >= 0
    labels = torch.cat([batch["labels"] for batch in scored.val_dataloader()])
    assert (labels >= 0).tolist() == [index % 6 < 2 for index in range(21)]
    found = data.source("train").report.findings["pictures outside every cell left out of training"]
    assert (found.count, found.examples[0]) == (13, "train-000000.tar/000002.jpg")


class Watcher(pl.LightningModule):
    """Learns a little and writes down what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.seen: list[tuple[int, bytes]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen.append((batch_idx, batch["images"].numpy().tobytes()))
        return self.layer(batch["images"].float().mean((2, 3))).square().mean() * 1e-6

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Not reached; without it Lightning warns."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(data: GeoShardsDataModule, folder: Path, resumed: Path | None = None, steps: int = -1) -> Watcher:
    """Two epochs, a checkpoint after every third step."""
    every = pl.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=3, save_top_k=-1, enable_version_counter=False
    )
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 2, "max_steps": steps, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(callbacks=[every], use_distributed_sampler=False, **quiet, **limits)
    model = Watcher()
    trainer.fit(model, datamodule=data, ckpt_path=resumed, weights_only=True)
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch(workers: int, pair: Path, tmp_path: Path):
    """Bit by bit what the uninterrupted run was shown, in the first epoch and in a later one; and only that."""

    def data(**options: Any) -> GeoShardsDataModule:
        return module(pair, **{"val": "val-*.tar", "num_workers": workers, **options})

    whole = fit(data(), tmp_path).seen
    assert len(whole) == 20
    for step in (3, 9, 12, 18):
        assert fit(data(), tmp_path, tmp_path / f"step={step}.ckpt").seen == whole[step:]
    if workers:
        return
    middle = tmp_path / "step=12.ckpt"
    with pytest.raises(UserError, match=r"middle of an epoch .*batch_size 2 -> 3"):
        fit(data(batch_size=3), tmp_path, middle)
    os.remove(index_file(pair / "train-000000.tar", None))  # a new index is the same
    assert fit(data(), tmp_path, middle).seen == whole[12:]


def test_an_index_does_not_depend_on_who_made_it(tmp_path: Path):
    root = make_geo_shards(tmp_path, (3, 4, 5))
    module(root, num_workers=2).setup("fit")
    for shard in sorted(root.glob("*.tar")):
        made = index_file(shard, None).read_bytes()
        write_index(shard, tmp_path / "alone", IndexOptions())
        assert (tmp_path / "alone").read_bytes() == made
