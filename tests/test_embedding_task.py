"""Face embeddings from identities: what is learned, logged, calibrated, saved and resumed, in one and two processes."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor, multiprocessing, nn
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from mnvision.build import build_model
from mnvision.callbacks.checkpoint_io import AtomicCheckpointIO
from mnvision.checkpoints import Metadata, load_model
from mnvision.cost import measure
from mnvision.errors import UserError
from mnvision.heads.embedding import EmbeddingHead, UnitLength
from mnvision.losses.distillation import EmbeddingTargets
from mnvision.losses.margins import ArcFace, SubCentreArcFace
from mnvision.losses.triplet import TripletLoss
from mnvision.metrics.embedding_spread import embedding_spread
from mnvision.models import Embedder
from mnvision.teachers.base import Teacher
from tasks.distillation import Distillation
from tasks.face_embeddings import FaceEmbeddingsTask

SIDE, DIM, PEOPLE, EACH = 32, 8, 6, 8


def config(**head: Any) -> dict[str, Any]:
    return {
        "_target_": "mnvision.models.Embedder",
        "mean": [127.5] * 3,
        "std": [127.5] * 3,
        "backbone": {
            "_target_": "mnvision.backbones.mobilenet_v1.MobileNetV1",
            "alpha": 0.25,
            "resolution": SIDE,
            "stem_stride": 1,
            "variant": "shallow",
            "bn_momentum": 0.5,
        },
        "head": {"_target_": "mnvision.heads.embedding.EmbeddingHead", "resolution": SIDE, "dim": DIM, **head},
        "decoder": {"_target_": "mnvision.heads.embedding.UnitLength"},
    }


class Faces(pl.LightningDataModule):
    """Blotches of one pattern per person, other people in validation; pairs as a data module of pictures gives them."""

    num_identities = PEOPLE
    labelled = True

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.batch_size = batch_size

    def samples(self, split: str) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0 if split == "train" else 1)
        patterns = torch.rand(PEOPLE, 3, 4, 4, generator=generator)
        rows = []
        for index in range(PEOPLE * EACH):
            noise = torch.rand(3, SIDE, SIDE, generator=generator)
            pattern = nn.functional.interpolate(patterns[index % PEOPLE][None], size=(SIDE, SIDE))[0]
            image = ((pattern * 0.85 + noise * 0.15) * 255).to(torch.uint8)
            rows.append({"images": image, "labels": torch.tensor(index % PEOPLE)})
            rows[-1]["indices"] = torch.tensor(index)
        return rows

    def loader(self, split: str) -> DataLoader[Any]:
        """Batches of all processes, put together, are those of one process."""
        rows, size = self.samples(split), self.batch_size
        if torch.distributed.is_initialized():
            rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
            rows = [row for place, row in enumerate(rows) if place // size % processes == rank]
        return DataLoader(rows, size)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def pairs(self, split: str) -> tuple[Any, Any, Any]:
        count = PEOPLE * EACH
        first, second = np.triu_indices(count, 1)
        return np.stack([first, second], axis=1), first % PEOPLE == second % PEOPLE, np.arange(len(first)) % 10


def task(loss: Any = None, seed: int = 0, optimizer: Any = None, **options: Any) -> FaceEmbeddingsTask:
    torch.manual_seed(seed)
    model_config = config(**options.pop("head", {}))
    if "distillation" not in options:
        loss = loss or partial(ArcFace, scale=16.0)
    return options.pop("kind", FaceEmbeddingsTask)(
        build_model(model_config),
        Metadata("face_embeddings", model_config, []),
        loss,
        optimizer or partial(torch.optim.SGD, lr=0.02, momentum=0.9),
        **options,
    )


def trainer(folder: Path, epochs: int = 1, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
        **options,
    )


LOSSES: list[Callable[[], Any]] = [
    lambda: partial(ArcFace, scale=16.0),
    lambda: partial(SubCentreArcFace, sub_centres=2),
    lambda: TripletLoss("semi_hard"),
    lambda: TripletLoss("batch_hard", squared=False, soft_margin=True),
]


@pytest.mark.parametrize("make", LOSSES)
def test_every_loss_trains_and_is_scored(make: Callable[[], Any], tmp_path: Path) -> None:
    learner, fit = task(make(), spread_every=1), trainer(tmp_path, 2, gradient_clip_val=5.0)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    fit.fit(learner, datamodule=Faces())
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    assert {"train/loss", "val/accuracy", "val/auc", "val/eer", "val/mean_cosine", "val/effective_rank"} <= set(metrics)
    assert {"train/mean_cosine", "train/effective_rank", "train/std"} <= set(metrics)
    assert metrics["val/auc"] > 0.6
    assert all((learner.model.state_dict()[k] != v).any() for k, v in before.items() if v.is_floating_point())


def test_the_calibrated_similarity_is_stored_and_separates_the_pairs(tmp_path: Path) -> None:
    learner, fit, data = task(), trainer(tmp_path, 1), Faces()
    fit.fit(learner, datamodule=data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    model, metadata = load_model(tmp_path / "last.ckpt")
    assert isinstance(model, Embedder)
    assert not any(name.startswith("loss") for name in model.state_dict())
    stored = metadata.calibration
    positions, same, _ = data.pairs("val")
    with torch.no_grad():
        embeddings = model.predict(torch.stack([row["images"] for row in data.samples("val")]))
    similarity = cosine_similarity(embeddings)[tuple(positions.T)]
    right = ((similarity > stored["similarity"]) == same).mean()
    best = max(((similarity > t) == same).mean() for t in np.unique(similarity))
    assert stored["pairs"] == len(same)
    assert right == pytest.approx(best, abs=2 / len(same))
    assert learner.scores is not None
    assert learner.write_report(tmp_path / "report")
    assert (tmp_path / "report" / "metrics.json").is_file()


def test_mirrored_pictures_count_too(tmp_path: Path) -> None:
    learner, data = task(mirror=True), Faces()
    trainer(tmp_path).fit(learner, datamodule=data)
    images = torch.stack([row["images"] for row in data.samples("val")])
    model = learner.model.eval()
    with torch.no_grad():
        summed = normalize(model.predict(images) + model.predict(images.flip(3)))
    positions, _, _ = data.pairs("val")
    expected = cosine_similarity(summed)[tuple(positions.T)]
    np.testing.assert_allclose(learner.scores.similarities, expected, atol=1e-4)
    assert learner.metadata.calibration["mirror"] is True


def test_a_resumed_run_goes_on_with_its_centres(tmp_path: Path) -> None:
    whole, fit = task(), trainer(tmp_path, 2)
    fit.fit(whole, datamodule=Faces())
    first, half = task(), trainer(tmp_path, 1)
    half.fit(first, datamodule=Faces())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = task(seed=5)
    trainer(tmp_path, 2).fit(resumed, datamodule=Faces(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert "loss.centres" in whole.state_dict()


def test_a_resumed_run_with_other_identities_is_refused(tmp_path: Path) -> None:
    fit = trainer(tmp_path)
    fit.fit(task(), datamodule=Faces())
    fit.save_checkpoint(tmp_path / "six.ckpt")
    data = Faces()
    data.num_identities = PEOPLE + 3
    with pytest.raises(UserError, match="trained on 6 identities, but the data have 9"):
        trainer(tmp_path, 2).fit(task(), datamodule=data, ckpt_path=tmp_path / "six.ckpt", weights_only=True)


def test_data_without_identities_need_a_teacher(tmp_path: Path) -> None:
    data = Faces()
    data.labelled = False
    with pytest.raises(UserError, match="the data name no identities"):
        trainer(tmp_path).fit(task(), datamodule=data)


class _Taught(Faces):
    """Batches that hold a teacher's stored embeddings: one direction per person."""

    def samples(self, split: str) -> list[dict[str, Any]]:
        directions = normalize(torch.randn(PEOPLE, DIM, generator=torch.Generator().manual_seed(2)))
        rows: list[dict[str, Any]] = list(super().samples(split))
        return [row | {"teacher_outputs": {"embedding": directions[int(row["labels"])].half()}} for row in rows]


class _Teacher(Teacher):
    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.dim, self.options = dim, {}
        self._settle("a teacher", "face_embeddings", (SIDE, SIDE), class_names=None)

    def answer(self, images: Tensor) -> dict[str, Tensor]:
        return {"embedding": normalize(torch.ones(len(images), self.dim))}


def taught(labels: float, loss: Any, dim: int = DIM, **options: Any) -> FaceEmbeddingsTask:
    learner = task(loss)
    distillation = Distillation(_Teacher(dim), EmbeddingTargets(), learner.model, [], labels=labels)
    return task(loss, distillation=distillation, **options)


def test_a_teacher_alone_needs_no_identities_and_no_centres(tmp_path: Path) -> None:
    data = _Taught()
    data.num_identities = 0
    learner, fit = taught(0.0, None, optimizer=partial(torch.optim.Adam, lr=0.003)), trainer(tmp_path, 8)
    fit.fit(learner, datamodule=data)
    assert learner.loss is None
    metrics = fit.callback_metrics
    assert float(metrics["train/loss"]) == pytest.approx(float(metrics["train/loss_distill"]))
    assert "train/loss_labels" not in metrics
    assert float(metrics["train/loss"]) < 0.7  # 2 without any likeness
    assert "val/accuracy" in metrics


def test_unlabelled_pictures_are_compared_with_the_teacher(tmp_path: Path) -> None:
    data, fit = _Taught(), trainer(tmp_path)
    data.labelled = False
    learner = taught(0.0, TripletLoss())
    fit.fit(learner, datamodule=data)
    assert learner.loss is None
    assert 0 < float(fit.callback_metrics["val/distill"]) < 4
    assert "val/accuracy" not in fit.callback_metrics


def test_teacher_and_identities_mix(tmp_path: Path) -> None:
    fit = trainer(tmp_path)
    fit.fit(taught(0.25, partial(ArcFace, scale=16.0)), datamodule=_Taught())
    values = {name: float(fit.callback_metrics[f"train/{name}"]) for name in ("loss", "loss_labels", "loss_distill")}
    assert values["loss"] == pytest.approx(0.25 * values["loss_labels"] + 0.75 * values["loss_distill"], rel=1e-4)


def test_a_teacher_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match="16"):
        taught(0.0, None, dim=16)


def test_neither_loss_nor_teacher_is_refused() -> None:
    model_config = config()
    metadata = Metadata("face_embeddings", model_config, [])
    with pytest.raises(UserError, match="nothing to learn from"):
        FaceEmbeddingsTask(build_model(model_config), metadata, None, torch.optim.SGD)


class _Single(Faces):
    """Every picture another person's."""

    def samples(self, split: str) -> list[dict[str, Tensor]]:
        rows = super().samples(split)
        return [row | {"labels": row["indices"]} for row in rows] if split == "train" else rows


def test_batches_without_positives_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mnvision"):
        trainer(tmp_path, 2).fit(task(TripletLoss()), datamodule=_Single())
    said = [line for line in caplog.messages if "no two pictures of one person" in line]
    assert len(said) == 1


class _Collapsing(nn.Module):
    """Draws all embeddings to one point."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        target = torch.ones_like(embeddings)
        return {"loss": (embeddings - target).square().mean()}


def test_collapse_is_named_once_and_so_is_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mnvision"):
        gentle = partial(torch.optim.SGD, lr=0.05)
        learner = task(_Collapsing(), spread_every=1, head={"batch_norm": False}, optimizer=gentle)
        trainer(tmp_path, 6).fit(learner, datamodule=Faces())
        said = [line for line in caplog.messages if "have collapsed" in line]
        assert len([line for line in said if "of training pictures" in line]) == 1
        assert len([line for line in said if "of validation pictures" in line]) == 1
        assert len(said) == 2
        assert all("between different identities, effective rank 1." in line for line in said)
        learner.log_dict = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        even = normalize(torch.randn(40, DIM, generator=torch.Generator().manual_seed(0)))
        for _ in range(2):
            learner._watch("train", even, torch.arange(40))
    assert len([line for line in caplog.messages if "differ again" in line]) == 1


def test_a_collapse_is_named_in_evaluation_and_leaves_no_threshold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learner = task(head={"batch_norm": False})
    with torch.no_grad():
        for parameter in learner.model.head.parameters():
            parameter.fill_(1.0)
    idle = partial(torch.optim.SGD, lr=0.0)
    frozen = task(head={"batch_norm": False}, optimizer=idle)
    frozen.model.load_state_dict(learner.model.state_dict())
    trainer(tmp_path, limit_train_batches=1).fit(frozen, datamodule=Faces())
    assert frozen.scores is not None
    assert not frozen.scores.separates
    assert frozen.metadata.calibration == {}
    assert not [line for line in caplog.messages if "have collapsed" in line]  # the first step is too early
    learner.prepare_evaluation(Faces(), "val")
    trainer(tmp_path).validate(learner, dataloaders=Faces().val_dataloader(), verbose=False)
    assert len([line for line in caplog.messages if "the embeddings have collapsed: mean cosine 1.00" in line]) == 1


def test_spread_against_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(30, 5, generator=generator) + 0.7)
    labels = torch.randint(-1, 4, (30,), generator=generator)
    found = embedding_spread(embeddings, labels)
    rows = embeddings.double().numpy()
    names = [f"nobody {i}" if label < 0 else str(label) for i, label in enumerate(labels.tolist())]
    cosines = [rows[i] @ rows[j] for i in range(30) for j in range(30) if names[i] != names[j]]
    assert found.mean_cosine == pytest.approx(np.mean(cosines))
    shares = np.linalg.svd(rows, compute_uv=False) ** 2
    shares /= shares.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found.std == pytest.approx(rows.std(axis=0).mean() * 5**0.5)
    wide = embedding_spread(normalize(torch.randn(6, 50, generator=generator)), torch.arange(6))
    assert 5 < wide.effective_rank <= 6


def test_spread_of_a_point_a_line_and_the_sphere() -> None:
    point = normalize(torch.ones(20, 16))
    line = point * torch.tensor([1.0, -1.0]).repeat(10)[:, None]
    sphere = normalize(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)))
    found = [embedding_spread(rows, torch.arange(len(rows))) for rows in (point, line, sphere)]
    assert [spread.collapsed for spread in found] == [True, True, False]
    assert found[0].mean_cosine == pytest.approx(1)
    assert [spread.effective_rank for spread in found] == pytest.approx([1, 1, 16], rel=0.01)
    assert [spread.std for spread in found] == pytest.approx([0, 1, 1], abs=0.02)
    assert not embedding_spread(point[:4], torch.arange(4)).collapsed
    assert not embedding_spread(point * float("nan"), torch.arange(20)).scalars()


@pytest.mark.parametrize("pooling", ["average", "depthwise"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_head_shapes_and_cost(pooling: str, batch_norm: bool) -> None:
    model = build_model(config(pooling=pooling, batch_norm=batch_norm)).eval()
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    embeddings = model.predict(images)
    assert embeddings.shape == (3, DIM)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    head = [layer for layer in measure(model, SIDE).layers if layer.name.startswith("head.")]
    # The last map has 256 channels of 2 x 2: the global depthwise layer multiplies each place once.
    assert sum(layer.mult_adds for layer in head) == 256 * DIM + (256 * 4 if pooling == "depthwise" else 0)
    assert [layer.type for layer in head if "depthwise" in layer.type] == ["depthwise 2x2"] * (pooling == "depthwise")


def test_depthwise_pooling_begins_as_the_average() -> None:
    maps = [torch.randn(4, 16, 5, 5)]
    average = EmbeddingHead([16], [16], 80, DIM).eval()
    depthwise = EmbeddingHead([16], [16], 80, DIM, pooling="depthwise").eval()
    depthwise.load_state_dict(average.state_dict(), strict=False)
    torch.testing.assert_close(depthwise(maps), average(maps), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="built for maps of 5 x 5, got 4 x 5"):
        depthwise([torch.randn(2, 16, 4, 5)])


def test_one_image_cannot_train_batch_norm() -> None:
    with pytest.raises(UserError, match="at least 2 images per batch"):
        EmbeddingHead([16], [16], 32, DIM)([torch.randn(1, 16, 2, 2)])
    assert EmbeddingHead([16], [16], 32, DIM, batch_norm=False)([torch.randn(1, 16, 2, 2)]).shape == (1, DIM)


@pytest.mark.parametrize("options", [{"dim": 1}, {"dropout": 1.0}, {"pooling": "max"}])
def test_bad_head_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"head.{next(iter(options))}"):
        EmbeddingHead([16], [16], 32, **options)


def test_unit_length_is_float32_and_safe_at_zero() -> None:
    found = UnitLength()(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


class _FrozenTask(FaceEmbeddingsTask):
    """Its batch statistics do not depend on how pictures are spread over processes."""

    def on_train_epoch_start(self) -> None:
        self.model.eval()


def _frozen(seed: int = 0) -> FaceEmbeddingsTask:
    loss, optimizer = (
        partial(SubCentreArcFace, scale=16.0, sub_centres=2),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    )
    return task(loss, seed=seed, optimizer=optimizer, kind=_FrozenTask)


def _fit(folder: Path, name: str, epochs: int, batch_size: int, start: str | None = None, **options: Any) -> None:
    """Train, or go on from a file of the same folder, and save."""
    learner = _frozen(0 if start is None else 9)
    fit = trainer(folder, epochs, gradient_clip_val=0.5, use_distributed_sampler=False, **options)
    fit.fit(learner, datamodule=Faces(batch_size), ckpt_path=start and folder / start, weights_only=True)
    rows = PEOPLE * 2 // max(fit.world_size, 1)
    assert isinstance(learner.loss, SubCentreArcFace)
    assert len(learner.loss.centres) == rows
    fit.save_checkpoint(folder / name)


def _process(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    options = {"devices": 2, "strategy": "ddp"}
    _fit(folder, "two.ckpt", 1, 8, **options)
    _fit(folder, "one_two.ckpt", 2, 8, "one.ckpt", **options)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_and_either_resumes_the_other(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _fit(tmp_path, "one.ckpt", 1, 16)
    _fit(tmp_path, "one_one.ckpt", 2, 16, "one.ckpt")
    multiprocessing.spawn(_process, (tmp_path, port), nprocs=2)
    _fit(tmp_path, "two_one.ckpt", 2, 16, "two.ckpt")
    names = ("one", "two", "one_one", "one_two", "two_one")
    saved = {name: torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in names}
    for expected, found in (("one", "two"), ("one_one", "one_two"), ("one_one", "two_one")):
        ours, theirs = saved[expected], saved[found]
        assert ours["state_dict"]["loss.centres"].shape == (PEOPLE * 2, DIM)
        torch.testing.assert_close(dict(theirs["state_dict"]), dict(ours["state_dict"]), rtol=1e-3, atol=1e-5)
        states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (theirs, ours)]
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)
    moved = saved["one_one"]["state_dict"]["loss.centres"] - saved["one"]["state_dict"]["loss.centres"]
    assert moved.abs().max() > 1e-3
