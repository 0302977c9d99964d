"""Our triplet losses against pytorch-metric-learning alone, on P x K batches.

"choosing": from embeddings to the triplets. "loss": from embeddings to the gradient, triplets chosen on the way.
Semi-hard: ours chooses for every pair of anchor and positive the hardest negative that is farther than the positive
(FaceNet); the peer's ``TripletMarginMiner`` keeps every negative within the margin. Batch hard is the same on both
sides; the run fails unless both choose the same triplets there, and unless ours are among the peer's where these are
within the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.duel import interleave, rate_table, ratio_table, raw
from benchmarks.report import Result, Table, finish, parser
from mnvision.losses.triplet import TripletLoss, Triplets, pair_masks, pairwise_distances

MARGIN = 0.2
MINING = ("semi_hard", "batch_hard")


def make_batch(identities: int, images: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings as in the middle of a training: those of one identity lie somewhat closer together."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(identities).repeat_interleave(images)
    centres = torch.randn(identities, dim, generator=generator)
    return centres[labels] + 1.5 * torch.randn(len(labels), dim, generator=generator), labels


class Ours:
    """Our choice and our loss."""

    def __init__(self, mining: Any) -> None:
        self.loss = TripletLoss(mining, MARGIN)

    @torch.no_grad()
    def choose(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Triplets of a batch."""
        return self.loss.mine(pairwise_distances(normalize(embeddings), True), *pair_masks(labels))

    def value(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch."""
        return self.loss(embeddings, labels)["loss"]


class Peer:
    """The library's miner and its triplet loss."""

    def __init__(self, mining: str) -> None:
        distance = LpDistance(power=2)
        self.miner = BatchHardMiner(distance=distance)
        if mining == "semi_hard":
            self.miner = TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance)
        self.loss = TripletMarginLoss(margin=MARGIN, distance=distance)

    @torch.no_grad()
    def choose(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Triplets of a batch."""
        return Triplets(*self.miner(embeddings, labels))

    def value(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch."""
        value: Tensor = self.loss(embeddings, labels, self.miner(embeddings, labels))
        return value


def check_equal(mining: str, embeddings: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many triplets both choose.

    Raises:
        SystemExit: The choices contradict each other.
    """
    ours, theirs = Ours(mining).choose(embeddings, labels), Peer(mining).choose(embeddings, labels)
    distances = pairwise_distances(normalize(embeddings), True)
    gaps = distances[ours.anchors, ours.negatives] - distances[ours.anchors, ours.positives]
    # Triplets that lie on the margin to the last bit may fall on either side of it.
    inside = (gaps > 1e-5) & (gaps < MARGIN - 1e-5) | (mining == "batch_hard")
    mine = set(zip(*(part[inside].tolist() for part in ours)))
    peers = set(zip(*(part.tolist() for part in theirs)))
    if not mine <= peers or (mining == "batch_hard" and mine != peers):
        raise SystemExit(f"{mining}: {len(mine - peers)} of our triplets are none of the peer's")
    return len(ours.anchors), len(peers)


def works(mining: str, embeddings: Tensor, labels: Tensor, repeats: int) -> dict[str, Callable[[], int]]:
    """What is timed: choosing triplets, and a loss with its gradient, on both sides."""
    found: dict[str, Callable[[], int]] = {}
    for name, side in (("ours", Ours(mining)), ("pytorch-metric-learning", Peer(mining))):

        def choose(side: Ours | Peer = side) -> int:
            for _ in range(repeats):
                side.choose(embeddings, labels)
            return repeats

        def learn(side: Ours | Peer = side) -> int:
            for _ in range(repeats):
                side.value(embeddings.detach().requires_grad_(), labels).backward()
            return repeats

        found |= {f"{name}, {mining}, choosing": choose, f"{name}, {mining}, loss": learn}
    return found


def main() -> None:
    """Command line."""
    options = parser("mining", __doc__, rounds=5)
    options.add_argument("--identities", type=int, default=45, help="P of a batch (default 45)")
    options.add_argument("--images", type=int, default=4, help="K, pictures of each (default 4)")
    options.add_argument("--dim", type=int, default=128, help="length of an embedding (default 128)")
    options.add_argument("--repeats", type=int, default=20, help="batches of a round (default 20)")
    given = options.parse_args()
    identities, rounds, repeats = (6, 1, 1) if given.quick else (given.identities, given.rounds, given.repeats)
    embeddings, labels = make_batch(identities, given.images, given.dim)
    tasks: dict[str, Callable[[], int]] = {}
    rows = []
    for mining in MINING:
        ours, peers = check_equal(mining, embeddings, labels)
        rows.append([mining, f"{ours}", f"{peers}"])
        tasks |= works(mining, embeddings, labels, repeats)
    interleave(tasks, 1)  # warm-up
    samples = interleave(tasks, rounds)
    pairs = [
        (f"ours, {mining}, {what}", f"pytorch-metric-learning, {mining}, {what}")
        for mining in MINING
        for what in ("choosing", "loss")
    ]
    tables = [
        rate_table("Batches of triplets", "batches", samples),
        ratio_table("Ratio", samples, pairs),
        Table("Triplets chosen", ["mining", "ours", "pytorch-metric-learning"], rows),
    ]
    notes = [
        "Semi-hard is not the same work: the peer's miner lists all triplets of the batch and keeps every negative "
        "within the margin; ours finds one per pair, FaceNet's choice, which no miner of the peer's makes.",
        "Batch hard is the same work with the same result.",
    ]
    settings = {
        "identities": identities,
        "images per identity": given.images,
        "dim": given.dim,
        "batches per round": repeats,
        "rounds": rounds,
    }
    finish(Result("mining", settings, tables, notes, raw(samples)), given.output)


if __name__ == "__main__":
    main()
