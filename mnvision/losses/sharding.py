"""Class centres spread over processes: each holds some rows, and a softmax runs over all of them.

As in Partial FC (https://arxiv.org/abs/2010.05222, section 3.1): embeddings travel, centres and their gradients
never do. Every function here is called by all processes at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed


class Shard(NamedTuple):
    """The part of one process: classes ``first`` up to but without ``end``."""

    rank: int
    world_size: int
    first: int
    end: int


def shard_of(rank: int, world_size: int, num_classes: int) -> Shard:
    """Consecutive classes in equal parts; some processes hold one more than others."""
    return Shard(rank, world_size, rank * num_classes // world_size, (rank + 1) * num_classes // world_size)


class _Gather(torch.autograd.Function):
    """Rows of all processes; the gradients of a row are added up where it came from."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return gather_rows(rows, shard)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        shard: Shard = ctx.shard
        # DDP averages gradients over the processes, where the loss of the joint batch needs their sum.
        return gradient.chunk(shard.world_size)[shard.rank] * shard.world_size, None


def gather_rows(rows: Tensor, shard: Shard) -> Tensor:
    """``(W * B, ...)`` from the ``(B, ...)`` of each process, in the order of their ranks; without gradient."""
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(shard.world_size)]
    distributed.all_gather(parts, rows)
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor, shard: Shard) -> Tensor:
    """As :func:`gather_rows`; gradients flow back, scaled for a model whose gradients DDP averages."""
    return _Gather.apply(rows, shard)


class _CrossEntropy(torch.autograd.Function):
    """Softmax cross-entropy whose columns lie in several processes."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        own = (targets >= 0).nonzero().squeeze(1)
        columns = targets[own]
        largest = logits.amax(dim=1)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        shifted = logits - largest[:, None]
        target = shifted.new_zeros(len(shifted))
        target[own] = shifted[own, columns]
        exponentials = shifted.exp_()
        sums = torch.stack([exponentials.sum(dim=1), target])
        distributed.all_reduce(sums)
        ctx.save_for_backward(exponentials.div_(sums[0][:, None]), own, columns)
        return (sums[0].log() - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        probabilities, own, columns = ctx.saved_tensors
        logits_gradient = probabilities.clone()
        logits_gradient[own, columns] -= 1
        return logits_gradient * (gradient / len(probabilities)), None


def sharded_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over the rows, the same in every process.

    Args:
        logits: ``(B, C_own)`` float32, the same rows in every process, each with its own classes; C_own >= 1.
        targets: ``(B,)`` int64, column of the true class in this process, ``-1`` where another one holds it.
    """
    return _CrossEntropy.apply(logits, targets)


def whole_on_first(rows: Tensor, shard: Shard, total: int) -> Tensor | None:
    """All ``total`` rows in the process of rank 0, ``None`` in the others."""
    largest = -(-total // shard.world_size)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(shard.world_size)] if shard.rank == 0 else None
    distributed.gather(padded, parts)
    if parts is None:
        return None
    shards = [shard_of(rank, shard.world_size, total) for rank in range(shard.world_size)]
    return torch.cat([part[: theirs.end - theirs.first] for part, theirs in zip(parts, shards)])
