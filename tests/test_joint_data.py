"""Several heads' batches as one: which of them a step takes, what they hold, and going on anywhere."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mnvision.data import loaders
from mnvision.data.geo_shards import GeoShardsDataModule
from mnvision.data.joint import JointDataModule
from mnvision.data.joint_loader import EPOCHS_APART
from mnvision.data.joint_schedule import DRAWS, Draw
from mnvision.data.teacher_view import TeacherView
from mnvision.errors import UserError
from tests.builders_geo import make_geo_shards
from tests.builders_joint import attributes, boxes, make_three_sets, people, same, three_heads


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_three_sets(tmp_path_factory.mktemp("joint"))


def test_batches_are_those_of_the_heads_own_loaders(root: Path):
    """Pictures of 32 px stand together, those of 24 px alone; each head's epochs follow each other."""
    data = three_heads(root)
    loader = data.train_dataloader()
    alone = {name: head.train_dataloader() for name, head in data.data.items()}
    lengths = {name: len(own) for name, own in alone.items()}
    assert lengths == {"ssd": 5, "attributes": 4, "embedding": 3}
    expected: dict[str, list[Any]] = {name: [] for name in alone}
    for number, (name, own) in enumerate(alone.items()):
        for epoch in range(4):
            own.sampler.set_epoch(number * EPOCHS_APART + epoch)
            expected[name] += list(own)
    taken = Counter[str]()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        steps = list(loader)
        assert len(steps) == len(loader) == 5
        for step in steps:
            together, faces = step["groups"]
            assert [part["head"] for part in together["parts"]] == ["ssd", "attributes"]
            assert [part["rows"].tolist() for part in together["parts"]] == [[0, 1], [2, 3, 4, 5]]
            assert together["images"].shape == (6, 3, 32, 32)
            assert faces["images"].shape == (6, 3, 24, 24)
            for group in step["groups"]:
                for part in group["parts"]:
                    name = part["head"]
                    own = expected[name][taken[name]]
                    taken[name] += 1
                    assert "images" not in part["batch"]
                    assert same(
                        {**part["batch"], "images": group["images"][part["rows"]]}, {**own, "images": own["images"]}
                    )
    assert taken == {"ssd": 10, "attributes": 10, "embedding": 10}


def test_a_set_that_ends_early_begins_again_in_a_new_order_and_is_reported(
    root: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO, "mnvision"):
        loader = three_heads(root).train_dataloader()
    assert "5 steps of 3 batches in an epoch; ssd: 1, attributes: 1.25, embedding: 1.67 passes per epoch" in caplog.text
    shown = [step["groups"][1]["parts"][0]["batch"]["indices"].tolist() for step in loader]
    assert sorted(shown[:2]) != sorted(shown[3:])


def test_sets_of_the_same_pictures_and_seed_are_in_different_orders(root: Path):
    """Else a step would hold the same few pictures once for every head."""
    data = JointDataModule({"attributes": attributes(root), "classes": attributes(root), "more": attributes(root)})
    for step in data.train_dataloader():
        parts = [part["batch"]["indices"].tolist() for group in step["groups"] for part in group["parts"]]
        assert parts[0] != parts[1] != parts[2] != parts[0]


@pytest.mark.parametrize("draw", DRAWS)
def test_pictures_stay_apart_where_heads_have_their_own_normalisations(root: Path, draw: Draw):
    for step in three_heads(root, draw=draw, together=False).train_dataloader():
        assert [len(group["parts"]) for group in step["groups"]] == [1, 1, 1]
        for group in step["groups"]:
            assert group["parts"][0]["rows"].tolist() == list(range(len(group["images"])))


def test_a_head_may_have_two_batches_in_a_step(root: Path):
    data = JointDataModule({"ssd": boxes(root, batch_size=1), "attributes": attributes(root)}, "proportional", 7)
    (group,) = next(iter(data.train_dataloader()))["groups"]
    assert Counter(part["head"] for part in group["parts"]) == {"ssd": 5, "attributes": 2}
    assert torch.cat([part["rows"] for part in group["parts"]]).tolist() == list(range(13))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("draw", ["round_robin", "square_root"])
def test_an_epoch_is_entered_where_a_checkpoint_left_it(root: Path, num_workers: int, draw: Draw):
    def loader(epoch: int) -> Any:
        made = three_heads(root, num_workers, draw=draw).train_dataloader()
        made.sampler.set_epoch(epoch)
        return made

    first = loader(1)
    length, taken = len(first), iter(first)
    next(taken)
    next(taken)
    state = first.state_dict()
    assert state["batches"] == 2
    rest = list(taken)
    again = loader(1)
    again.load_state_dict(state)
    resumed = list(again)
    assert len(rest) == len(resumed) == length - 2
    assert all(map(same, rest, resumed))
    assert len(list(again)) == length  # only once
    for epoch, place in ((2, state), (1, first.state_dict())):  # another epoch, the end of one
        other = loader(epoch)
        other.load_state_dict(place)
        assert len(list(islice(other, length))) == length
    changed = JointDataModule({"ssd": boxes(root), "attributes": attributes(root, batch_size=8)}).train_dataloader()
    changed.sampler.set_epoch(1)
    changed.load_state_dict(state)
    with pytest.raises(UserError, match=r"attributes\.batch_size 4 -> 8, .*embedding\.samples 18 -> None"):
        next(iter(changed))


def test_epochs_that_are_cut_short_change_nothing(root: Path):
    """As with ``limit_train_batches``: what an epoch gives does not depend on how much of the last one was taken."""
    whole, cut = three_heads(root).train_dataloader(), three_heads(root).train_dataloader()
    for epoch in range(3):
        for loader in (whole, cut):
            loader.sampler.set_epoch(epoch)
        expected = list(whole)
        assert all(map(same, expected[:2], list(islice(cut, 2))))


def test_processes_take_the_same_heads_and_share_their_pictures(root: Path, monkeypatch: pytest.MonkeyPatch):
    def steps(rank: int) -> list[Any]:
        monkeypatch.setattr(loaders, "process", lambda *_: (rank, 2))
        return list(three_heads(root, draw="square_root").train_dataloader())

    ranks = [steps(0), steps(1)]
    plans = [[[part["head"] for group in step["groups"] for part in group["parts"]] for step in rank] for rank in ranks]
    assert plans[0] == plans[1]
    seen = [
        [
            key
            for step in rank
            for group in step["groups"]
            for part in group["parts"]
            if part["head"] == "attributes"
            for key in part["batch"]["indices"].tolist()
        ]
        for rank in ranks
    ]
    assert len(seen[0]) == len(seen[1])
    once = [set(share[:8]) for share in seen]  # an own epoch of 16 pictures
    assert once[0] | once[1] == set(range(16))


def test_shards_and_replayed_views_take_part(root: Path, tmp_path: Path):
    """A teacher's K views are replayed by own epochs; shards are entered anywhere."""
    make_geo_shards(tmp_path, counts=(7, 5, 4))
    cells = {"max_photos": 6, "min_photos": 1}
    places = GeoShardsDataModule(
        tmp_path, val=None, val_fraction=None, resolution=32, batch_size=4, num_workers=0, cells=cells, augment=False
    )
    faces = attributes(root, batch_size=16)  # one batch in an own epoch
    faces.teacher_view = TeacherView((16, 16), views=2)
    data = JointDataModule({"geolocation": places, "attributes": faces})
    loader = data.train_dataloader()
    steps = list(loader)
    shown = [step["groups"][0]["parts"][1]["batch"] for step in steps]
    assert len(steps) == len(places.train_dataloader()) == 4
    by_index = [dict(zip(part["indices"].tolist(), part["teacher_images"])) for part in shown]
    assert [part["indices"].tolist() for part in shown[:1]] != [part["indices"].tolist() for part in shown[2:3]]
    assert all(torch.equal(picture, by_index[2][key]) for key, picture in by_index[0].items())
    assert not all(torch.equal(picture, by_index[1][key]) for key, picture in by_index[0].items())
    again = data.train_dataloader()
    again.load_state_dict({**loader.state_dict(), "batches": 3})
    assert same(next(iter(again)), steps[3])


class Recorder(pl.LightningModule):
    """Notes what it is trained and validated on."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.weight, self.stop_after = nn.Parameter(torch.zeros(())), stop_after
        self.seen: list[tuple[int, bytes]] = []
        self.validated: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pixels = b"".join(group["images"].numpy().tobytes() for group in batch["groups"])
        self.seen.append((self.current_epoch, pixels))
        return self.weight * 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        if self.global_step == self.stop_after:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "middle.ckpt")

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.validated.append(dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, folder: Path, recorder: Recorder, ckpt: Path | None = None, **options: Any) -> Recorder:
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=three_heads(root), ckpt_path=ckpt, weights_only=True)
    return recorder


quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*LeafSpec.*:FutureWarning",
    "ignore:.*resuming from a checkpoint.*",
    "ignore:.*requested to overfit.*",
)


@quiet
def test_lightning_trains_resumes_and_validates_every_head(root: Path, tmp_path: Path):
    whole = fit(root, tmp_path, Recorder(stop_after=7), max_epochs=3)
    assert [epoch for epoch, _ in whole.seen] == [0] * 5 + [1] * 5 + [2] * 5
    assert len({pixels for _, pixels in whole.seen}) == 15
    assert sorted(set(whole.validated)) == [0, 1, 2]
    resumed = fit(root, tmp_path, Recorder(), tmp_path / "middle.ckpt", max_epochs=3)
    assert resumed.seen == whole.seen[7:]


@quiet
def test_lightnings_limits_hold(root: Path, tmp_path: Path):
    whole = fit(root, tmp_path, Recorder(), max_epochs=2, limit_val_batches=0)
    half = fit(root, tmp_path, Recorder(), max_epochs=2, limit_train_batches=0.4, limit_val_batches=0)
    assert half.seen == whole.seen[:2] + whole.seen[5:7]
    overfitted = fit(root, tmp_path, Recorder(), max_epochs=2, overfit_batches=2)
    assert [pixels for _, pixels in overfitted.seen] == [pixels for _, pixels in whole.seen[:2]] * 2
    fast = fit(root, tmp_path, Recorder(), fast_dev_run=True)
    assert fast.seen == whole.seen[:1]
    assert fast.validated == [0, 1, 2]


def test_the_heads_data_are_reported_by_head(root: Path):
    data = three_heads(root)
    data.prepare_data()
    data.setup("fit")
    assert data.labelled
    assert data.num_images("train") == 10 + 16 + 18
    assert set(data.reports()) == {f"{head}/{split}" for head in data.data for split in ("train", "val")} | {
        "attributes/test"
    }
    assert data.notes("val") == []
    assert [len(loader.dataset) for loader in data.val_dataloader()] == [
        10,
        2,
        len(data.data["embedding"].source("val")),
    ]


def test_refusals_name_the_head(root: Path, tmp_path: Path):
    data = JointDataModule({"ssd": boxes(root), "attributes": attributes(tmp_path)})
    with pytest.raises(UserError, match=r"^attributes: data root not found"):
        data.setup("fit")
    with pytest.raises(UserError, match="at least one head"):
        JointDataModule({})
    few = JointDataModule({"ssd": boxes(root), "embedding": people(root, batch_size=20)})
    with pytest.raises(UserError, match=r"^embedding: \d identities are too few"):
        few.train_dataloader()
