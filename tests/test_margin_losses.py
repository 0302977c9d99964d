"""Margin losses against pytorch-metric-learning, and spread over two processes against one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses as peers
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from mnvision.errors import UserError
from mnvision.losses.margins import ArcFace, CosFace, MarginSoftmax, SubCentreArcFace
from mnvision.losses.sharding import shard_of, whole_on_first

CLASSES, DIM = 7, 12
DEGREES = 28.6


def ours(name: str, **options: float) -> MarginSoftmax:
    torch.manual_seed(0)
    angle = {"margin": math.radians(DEGREES)} | options
    loss: MarginSoftmax
    if name == "arcface":
        loss = ArcFace(CLASSES, DIM, **angle)
    elif name == "cosface":
        loss = CosFace(CLASSES, DIM, **options)
    else:
        loss = SubCentreArcFace(CLASSES, DIM, **angle)
    with torch.no_grad():
        loss.centres.normal_(std=0.5)  # lengths that differ, as after training
    return loss


def peer(name: str, centres: Tensor, **options: float) -> nn.Module:
    theirs = {
        "arcface": lambda: peers.ArcFaceLoss(CLASSES, DIM, **options),
        "cosface": lambda: peers.CosFaceLoss(CLASSES, DIM, **options),
        "subcenter": lambda: peers.SubCenterArcFaceLoss(num_classes=CLASSES, embedding_size=DIM, **options),
    }[name]()
    theirs.W.data = centres.detach().T.clone()
    return theirs


def batch(size: int = 20, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (size,), generator=generator)
    return torch.randn(size, DIM, generator=generator) * 3, labels


@pytest.mark.parametrize("name", ["arcface", "cosface", "subcenter"])
@pytest.mark.parametrize("scale", [64.0, 8.0])
def test_equals_pytorch_metric_learning(name: str, scale: float) -> None:
    loss = ours(name, scale=scale)
    theirs = peer(name, loss.centres, scale=scale)
    embeddings, labels = batch()
    a, b = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    found, expected = loss(a, labels)["loss"], theirs(b, labels)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loss.centres.grad, theirs.W.grad.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["arcface", "subcenter"])
def test_beyond_180_degrees_the_target_goes_on_falling(name: str) -> None:
    # 170 degrees from its centre, plus 28.6: past the turn.
    loss = ours(name, scale=4.0)
    theirs = peer(name, loss.centres, scale=4.0)
    centre = nn.functional.normalize(loss.centres.detach()[:1], dim=1)
    aside = nn.functional.normalize(torch.eye(DIM)[:1] - (torch.eye(DIM)[:1] @ centre.T) * centre, dim=1)
    angle = math.radians(170)
    embedding, label = centre * math.cos(angle) + aside * math.sin(angle), torch.tensor([0])
    torch.testing.assert_close(loss(embedding, label)["loss"], theirs(embedding, label), rtol=1e-4, atol=1e-5)
    cosines = torch.linspace(-1, 1, 2001)
    assert (loss.harden(cosines).diff() > 0).all()


def test_without_margin_it_is_softmax_cross_entropy_of_cosines() -> None:
    embeddings, labels = batch()
    expected = []
    for name in ("arcface", "cosface"):
        loss = ours(name, margin=0.0, scale=10.0)
        unit = nn.functional.normalize(embeddings, dim=1)
        logits = 10 * unit @ nn.functional.normalize(loss.centres, dim=1).T
        expected.append(nn.functional.cross_entropy(logits, labels))
        torch.testing.assert_close(loss(embeddings, labels)["loss"], expected[-1], rtol=1e-5, atol=1e-5)


def test_one_sub_centre_is_arcface() -> None:
    single, plain = SubCentreArcFace(CLASSES, DIM, sub_centres=1), ArcFace(CLASSES, DIM)
    single.load_state_dict(plain.state_dict())
    torch.testing.assert_close(single(*batch())["loss"], plain(*batch())["loss"])


def test_unknown_identities_take_no_part() -> None:
    loss = ours("arcface")
    embeddings, labels = batch()
    with_unknown = loss(torch.cat([embeddings, torch.randn(5, DIM)]), torch.cat([labels, torch.full((5,), -1)]))
    torch.testing.assert_close(with_unknown["loss"], loss(embeddings, labels)["loss"])
    nothing = loss(embeddings.requires_grad_(), torch.full_like(labels, -1))["loss"]
    nothing.backward()
    assert nothing.item() == 0
    assert not embeddings.grad.any()
    assert not loss.centres.grad.any()


@pytest.mark.parametrize("name", ["arcface", "subcenter", "cosface"])
def test_an_embedding_on_its_centre_has_a_finite_gradient(name: str) -> None:
    loss = ours(name)
    for sign in (1, -1):
        embeddings = (sign * loss.centres.detach()[:1] * 2).requires_grad_()
        loss(embeddings, torch.tensor([0]))["loss"].backward()
        assert torch.isfinite(embeddings.grad).all()
        assert torch.isfinite(loss.centres.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    loss, (embeddings, labels) = ours("arcface"), batch()
    half = embeddings.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(half, labels)["loss"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(half.float(), labels)["loss"])


def test_training_brings_embeddings_to_their_centres() -> None:
    loss, (embeddings, labels) = ours("subcenter", scale=16.0), batch()
    embeddings.requires_grad_()
    optimizer = torch.optim.Adam([embeddings, *loss.parameters()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(embeddings, labels)["loss"]
        value.backward()
        optimizer.step()
    assert value.item() < 0.1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ArcFace(1, 8), "at least 2 identities"),
        (lambda: ArcFace(5, 8, margin=-0.1), "loss.margin=-0.1"),
        (lambda: ArcFace(5, 8, margin=28.6), "radians"),
        (lambda: CosFace(5, 8, scale=0.0), "loss.scale=0.0"),
        (lambda: SubCentreArcFace(5, 8, sub_centres=0), "loss.sub_centres=0"),
        (lambda: ArcFace(5, 8).shard_over(0, 6), "5 identities cannot be spread over 6 processes"),
        (lambda: ArcFace(5, 8)(torch.randn(2, 8), torch.tensor([0, 5])), "identity 5 in a batch"),
    ],
)
def test_bad_options_and_labels_are_refused(build, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()


@pytest.mark.parametrize(("classes", "processes"), [(7, 2), (10, 3), (4, 4), (9, 1)])
def test_shards_share_all_classes(classes: int, processes: int) -> None:
    shards = [shard_of(rank, processes, classes) for rank in range(processes)]
    assert [c for shard in shards for c in range(shard.first, shard.end)] == list(range(classes))
    sizes = [shard.end - shard.first for shard in shards]
    assert max(sizes) - min(sizes) <= 1


class Net(nn.Module):
    """A model with a margin loss as submodule, as a task holds them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model = nn.Linear(DIM, DIM)
        self.loss = ours(name)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.loss(self.model(rows), labels)["loss"]
        return value


def _train(net: nn.Module, parameters: list[nn.Parameter], parts: list[tuple[Tensor, Tensor]]) -> list[float]:
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    values = []
    for rows, labels in parts:
        optimizer.zero_grad()
        value = net(rows, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def _batches() -> list[tuple[Tensor, Tensor]]:
    batches = [batch(8, seed) for seed in range(3)]
    batches[1][1][2] = -1
    return batches


def _process(rank: int, name: str, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    net = Net(name)
    net.loss.shard_over(rank, 2)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, ["loss.centres"])
    parts = [(rows.chunk(2)[rank], labels.chunk(2)[rank]) for rows, labels in _batches()]
    values = _train(DistributedDataParallel(net), list(net.parameters()), parts)
    each = net.loss.centres_per_identity
    whole = whole_on_first(net.loss.centres.unflatten(0, (-1, each)), net.loss.shard, CLASSES)
    assert (whole is None) == (rank == 1)
    centres = None if whole is None else whole.flatten(0, 1)
    torch.save({"values": values, "model": net.model.state_dict(), "centres": centres}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arcface", "subcenter"])
def test_two_processes_learn_what_one_learns(name: str, tmp_path: Path) -> None:
    multiprocessing.spawn(_process, (name, tmp_path), nprocs=2)
    single = Net(name)
    values = _train(single, list(single.parameters()), _batches())
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert values[0] != pytest.approx(values[-1], abs=0.1)
    assert first["values"] == pytest.approx(values, rel=1e-5)
    assert second["values"] == pytest.approx(values, rel=1e-5)
    torch.testing.assert_close(first["centres"], single.loss.centres.detach(), rtol=1e-4, atol=1e-5)
    for found in (first, second):
        torch.testing.assert_close(found["model"], dict(single.model.state_dict()), rtol=1e-4, atol=1e-5)
