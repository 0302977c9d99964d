"""Face embeddings: trained from identities, from a teacher's embeddings or both, scored by verification."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.checkpoints import Metadata
from mnvision.errors import UserError
from mnvision.losses.margins import MarginSoftmax
from mnvision.metrics.embedding_spread import embedding_spread
from mnvision.metrics.verification import VerificationEvaluator
from mnvision.metrics.verification_scores import VerificationScores
from mnvision.models import Embedder
from mnvision.types import IdentityBatch
from tasks.distillation import Distillation
from tasks.sharded_centres import CentredTask, ShardedCentres

log = logging.getLogger("mnvision")

# Networks begin with all embeddings alike, and batch statistics take a while to settle: so
# many times spread_every no alarm is raised.
_FIRST_NAMED = 4
_STAGES = {"train": "training", "val": "validation"}


class FaceEmbeddingsTask(CentredTask):
    """Trains and evaluates an :class:`~mnvision.models.Embedder`.

    After every validation of a training run the similarity that separates its pairs best goes into
    ``metadata.calibration``, and with it into the checkpoint of the same weights; none where none separates them.

    Args:
        model: Backbone, embedding head and normalisation to unit length.
        metadata: Stored in every checkpoint.
        loss: Called with embeddings ``(B, D)`` and identities ``(B,)``, gives a dictionary with ``loss`` and scalars
            to log. A function is first called with ``num_identities`` of the training data and ``dim``. ``None``, or
            ``distill.labels=0``, learns from the teacher alone.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: See :class:`~tasks.base.VisionTask`.
        distillation: See :class:`~tasks.base.VisionTask`; its student is the embedding at unit length.
        mirror: Evaluate the sum of the embeddings of a picture and of its mirror image, at twice the time.
        spread_every: Optimizer steps between two looks at the spread of a training batch's embeddings, at least 1; the
            last batch of an epoch is always looked at. A collapse is named after four times as many steps, once.

    Raises:
        UserError: ``spread_every`` is below 1, or there is neither a loss nor a teacher.
    """

    model: Embedder
    loss: nn.Module | None

    def __init__(
        self,
        model: Embedder,
        metadata: Metadata,
        loss: nn.Module | Callable[..., nn.Module] | None,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        channels_last: bool = True,
        compile: bool = False,
        distillation: Distillation | None = None,
        mirror: bool = False,
        spread_every: int = 50,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, channels_last, compile, distillation)
        if spread_every < 1:
            raise UserError(f"task.spread_every={spread_every}: give 1 or more")
        if loss is None and self.label_share > 0:
            raise UserError("nothing to learn from: give loss=arcface or another one, or teacher=... with labels=0")
        unused = self.label_share == 0
        self.loss = loss if isinstance(loss, nn.Module) and not unused else None
        self._make_loss = None if unused or isinstance(loss, nn.Module) else loss
        self.mirror = mirror
        self.spread_every = spread_every
        self.evaluator: VerificationEvaluator | None = None
        self.scores: VerificationScores | None = None
        self._pairs: tuple[Any, Any, Any] | None = None
        self._verified: tuple[Any, Any] | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._compared = False
        self._collapsed: set[str] = set()

    def setup(self, stage: str) -> None:
        """Build the loss for the identities of the training data, its centres spread over the processes.

        Raises:
            UserError: The data have no identities to learn from.
        """
        if stage != "fit":
            return
        if self.label_share > 0 and not self.labelled:
            raise UserError(
                "the data name no identities, so loss=... has nothing to learn from: give teacher=... and "
                "distill.labels=0, or data with identities"
            )
        if self._make_loss is not None and self.loss is None:
            self.loss = self._make_loss(num_identities=self.data.num_identities, dim=self.model.head.dim)
        if isinstance(self.loss, MarginSoftmax):
            self.centres = ShardedCentres(self.owner, self.loss, f"{self.state_prefix}loss.centres")
            self.centres.spread()

    def prepare_evaluation(self, data: Any, split: str) -> None:
        """Take the pairs to verify from ``split`` of a data module."""
        self._pairs = data.pairs(split)
        self._verified = (data, split)

    def learn(self, raw: Tensor, batch: IdentityBatch, maps: dict[int, Tensor] | None = None) -> Tensor:
        """The identities' loss of raw embeddings, the teacher's, or both."""
        embeddings = self.model.decoder(raw)
        losses = self.loss(raw, batch["labels"]) if self.loss is not None else None
        if losses is not None and not self._compared:
            self._check_pairs(losses)
        if (self.global_step and self.global_step % self.spread_every == 0) or self.trainer.is_last_batch:
            self._watch("train", embeddings.detach(), _identities(batch))
        return self.learned(losses, embeddings, batch, maps)

    def on_validation_epoch_start(self) -> None:
        """Forget the previous epoch's embeddings."""
        if not self.labelled:
            return
        if self._pairs is None:
            self.prepare_evaluation(self.data, "val")
        assert self._pairs is not None
        self.evaluator = VerificationEvaluator(*self._pairs)
        self._seen = []

    def validation_step(self, batch: IdentityBatch, batch_idx: int) -> None:
        """Collect embeddings; without identities compare with the teacher."""
        model: Any = self.evaluation_model
        if not self.labelled:
            raw, maps = self.answers(batch, model)
            return self.compare_with_teacher(model.decoder(raw), batch, maps)
        assert self.evaluator is not None
        images = self.pixels(batch)
        embeddings = model.predict(images)
        if not torch.isfinite(embeddings).all():
            raise UserError(
                f"the embeddings of validation pictures are not finite after step {self.global_step}: the run has "
                "diverged; lower optimizer.lr, or set trainer.gradient_clip_val"
            )
        self.evaluator.update(embeddings, batch["indices"], model.predict(images.flip(3)) if self.mirror else None)
        self._seen.append((embeddings.cpu(), _identities(batch).cpu()))

    def on_validation_epoch_end(self) -> None:
        """Scores of the pairs, the same in every process, and in a training run the calibrated similarity."""
        if not self.labelled:
            return
        assert self.evaluator is not None
        self.evaluator.gather()
        self.scores = self.evaluator.compute()
        self.log_dict({f"val/{name}": value for name, value in self.scores.scalars().items()})
        embeddings, labels = (torch.cat(column) for column in zip(*self._seen, strict=True))
        self._watch("val", embeddings, labels)
        if self.trainer.state.fn == TrainerFn.FITTING and self.scores.roc is not None:
            self.metadata.calibration = self.scores.calibration(self.mirror) if self.scores.separates else {}

    def write_report(self, folder: Path) -> list[str]:
        """Scores and figures of the last evaluation.

        Returns:
            Lines for the terminal.
        """
        from tasks.reports_embeddings import people_trained_on, verification_report

        assert self.scores is not None
        shared = None if self._verified is None else people_trained_on(self.metadata.run, *self._verified)
        return verification_report(folder, self.scores, shared)

    def _check_pairs(self, losses: Mapping[str, Tensor]) -> None:
        """Say once where batches hold nothing to compare, as with triplets from ordinary shuffling."""
        self._compared = True
        if "triplets" in losses and not losses["triplets"]:
            log.warning(
                "the first batch holds no two pictures of one person, so the triplet loss learns nothing from it: "
                "give data.sampling=identities"
            )

    def _watch(self, stage: str, embeddings: Tensor, labels: Tensor) -> None:
        """Log the spread of the embeddings in the first process, and name a collapse when it sets in."""
        if not self.trainer.is_global_zero:
            return
        spread = embedding_spread(embeddings, labels)
        values = {f"{stage}/{name}": value for name, value in spread.scalars().items()}
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(embeddings)}
        self.log_dict(values, rank_zero_only=True, **options)
        if self.trainer.state.fn != TrainerFn.FITTING:
            if spread.collapsed:
                log.warning("the embeddings have collapsed: %s; they tell nobody apart", spread)
            return
        if self.global_step < _FIRST_NAMED * self.spread_every:
            return
        if spread.collapsed and stage not in self._collapsed:
            self._collapsed.add(stage)
            log.warning(
                "the embeddings of %s pictures have collapsed (step %d): %s; lower optimizer.lr, warm up longer "
                "(scheduler.warmup_epochs), or begin with loss=triplet (semi-hard) or a margin loss",
                *(_STAGES[stage], self.global_step, spread),
            )
        elif spread.recovered and stage in self._collapsed:
            self._collapsed.remove(stage)
            log.info(
                "the embeddings of %s pictures differ again (step %d): %s", _STAGES[stage], self.global_step, spread
            )


def _identities(batch: IdentityBatch) -> Tensor:
    """Labels of a batch, all unknown where it has none."""
    labels = batch.get("labels")
    return torch.full_like(batch["indices"], -1) if labels is None else labels
