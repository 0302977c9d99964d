from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from mnvision.data.coco import CocoDataModule
from mnvision.data.loaders import EvalSampler, SampleKey, TrainSampler, sample_rng
from mnvision.errors import UserError
from mnvision.types import DetectionBatch
from tests.builders import make_tiny_coco


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_coco(tmp_path_factory.mktemp("loaders") / "coco", num_images=8)


def module(root: Path, num_workers: int = 0, seed: int = 0) -> CocoDataModule:
    return CocoDataModule(root, resolution=32, batch_size=2, num_workers=num_workers, seed=seed)


def epochs(root: Path, num_workers: int = 0, seed: int = 0, count: int = 2) -> list[dict[int, Tensor]]:
    """Image id -> augmented picture, for each epoch of one loader."""
    loader, seen = module(root, num_workers, seed).train_dataloader(), []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        ids = torch.cat([batch["image_ids"] for batch in batches]).tolist()
        seen.append(dict(zip(ids, torch.cat([batch["images"] for batch in batches]))))
    return seen


def equal(a: dict[int, Tensor], b: dict[int, Tensor]) -> list[bool]:
    return [torch.equal(a[key], b[key]) for key in a]


def test_rerun_is_identical_and_epochs_and_seeds_differ(root: Path):
    first, second = epochs(root)
    again = epochs(root)
    assert list(first) == list(again[0])  # order included
    assert all(equal(first, again[0]))
    assert all(equal(second, again[1]))
    assert list(first) != list(second)
    assert not any(equal(first, second))
    assert not any(equal(first, epochs(root, seed=1)[0]))


def test_workers_draw_what_one_process_draws(root: Path):
    """Persistent workers too: the second epoch is drawn by the same ones."""
    for alone, shared in zip(epochs(root), epochs(root, num_workers=2)):
        assert list(alone) == list(shared)
        assert all(equal(alone, shared))


def test_streams_of_samples_are_independent():
    draws = {sample_rng(seed, epoch, i).random() for seed in (0, 1) for epoch in (0, 1) for i in range(-1, 50)}
    assert len(draws) == 2 * 2 * 51


def test_same_picture_twice_in_an_epoch_is_not_shown_the_same_way_by_two_positions(tmp_path: Path):
    """The pitfall of a generator copied into every worker: all samples cropped and flipped alike."""

    def same_file(data: dict) -> None:
        for item in data["images"]:
            item["file_name"] = data["images"][0]["file_name"]
        data["annotations"] = data["annotations"][:1]

    root = make_tiny_coco(tmp_path / "coco", num_images=8, change=same_file)
    pictures = list(epochs(root, num_workers=2, count=1)[0].values())
    assert len({picture.numpy().tobytes() for picture in pictures}) == 8


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_sample_is_evaluated_once(world_size: int):
    shares = [list(EvalSampler(10, rank, world_size)) for rank in range(world_size)]
    assert sorted(position for share in shares for position in share) == list(range(10))
    assert [len(EvalSampler(10, rank, world_size)) for rank in range(world_size)] == [len(s) for s in shares]


@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (10, 2), (10, 3), (1, 4)])
def test_every_sample_is_trained_on_with_equal_shares(length: int, world_size: int):
    samplers = [TrainSampler(length, 5, rank, world_size) for rank in range(world_size)]
    orders = []
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        assert {key.position for share in shares for key in share} == set(range(length))
        assert sum(len(share) for share in shares) < length + world_size
        assert {key.epoch for share in shares for key in share} == {epoch}
        orders.append([key.position for share in shares for key in share])
    assert length == 1 or orders[0] != orders[1]


def test_samplers_ask_the_process_group(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert (TrainSampler(4).rank, TrainSampler(4).world_size) == (0, 1)
        assert list(EvalSampler(3)) == [0, 1, 2]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_is_entered_where_a_checkpoint_left_it(root: Path, num_workers: int):
    def loader(epoch: int, **options: int) -> Any:
        made = module(root, num_workers, **options).train_dataloader()
        made.sampler.set_epoch(epoch)
        return made

    first = loader(3)
    taken = iter(first)
    next(taken)
    state = first.state_dict()
    rest = [batch["images"] for batch in taken]
    assert first.state_dict()["batches"] == 4
    again = loader(3)
    again.load_state_dict(state)
    resumed = [batch["images"] for batch in again]
    assert len(rest) == len(resumed) == 3
    assert all(map(torch.equal, rest, resumed))
    assert len(list(again)) == 4  # only once
    # The end of an epoch, or another epoch, is no place to go on from.
    for epoch, place in ((4, state), (3, first.state_dict())):
        other = loader(epoch)
        other.load_state_dict(place)
        assert len(list(other)) == 4
    smaller = loader(3)
    smaller.load_state_dict({**state, "processes": 2})
    with pytest.raises(UserError, match=r"processes 2 -> 1"):
        next(iter(smaller))


def test_last_batch_is_left_out_only_beside_full_ones(tmp_path: Path):
    root = make_tiny_coco(tmp_path / "coco", num_images=3)
    sizes = {
        batch_size: [
            len(batch["images"])
            for batch in CocoDataModule(root, resolution=32, batch_size=batch_size, num_workers=0).train_dataloader()
        ]
        for batch_size in (2, 3, 5)
    }
    assert sizes == {2: [2], 3: [3], 5: [3]}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_picture_in_training_is_a_user_error_with_its_name(tmp_path: Path, num_workers: int):
    root = make_tiny_coco(tmp_path / "coco", num_images=4)
    path = root / "train2017" / "000000000002.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"truncated: .*000000000002\.jpg"):
        list(module(root, num_workers).train_dataloader())


class Recorder(pl.LightningModule):
    """Notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[bytes]] = {}

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        images = batch["images"].numpy()
        self.seen.setdefault(self.current_epoch, []).extend(image.tobytes() for image in images)
        return self.weight * 0.0

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*LeafSpec.*:FutureWarning",
)
def test_lightning_sets_the_epoch(root: Path, tmp_path: Path):
    recorder = Recorder()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=tmp_path, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(recorder, datamodule=module(root))
    expected = [[image.numpy().tobytes() for image in epoch.values()] for epoch in epochs(root)]
    assert recorder.seen == {0: expected[0], 1: expected[1]}


def test_plain_position_is_epoch_zero(root: Path):
    dataset = module(root).train_dataloader().dataset
    assert torch.equal(dataset[3].image, dataset[SampleKey(3, 0)].image)
    np.testing.assert_array_equal(dataset[3].boxes, dataset[SampleKey(3, 0)].boxes)
