"""Object detection in two stages: a Faster R-CNN trained on boxes and scored by the twelve COCO numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mnvision.boxes.sampling import random_streams
from mnvision.checkpoints import Metadata
from mnvision.losses.regions import RegionLoss
from mnvision.models import FasterRCNN
from mnvision.types import DetectionBatch
from tasks.box_scoring import BoxScoringTask


class FasterRCNNTask(BoxScoringTask):
    """Trains and evaluates a :class:`~mnvision.models.FasterRCNN`.

    Args:
        model: Backbone with a tail, head and decoder.
        metadata: Stored in every checkpoint.
        loss: Chooses what the classifier learns from, and gives ``loss`` and its four parts.
        optimizer: See :class:`~tasks.base.VisionTask`.
        scheduler: See :class:`~tasks.base.VisionTask`.
        evaluator: ``"vectorized"`` (ours) or ``"pycocotools"``; the numbers are the same.
        channels_last: See :class:`~tasks.base.VisionTask`.
        compile: Compile the backbone up to the proposals' map; the number of regions behind it varies.
        seed: Of the random choice of anchors and proposals to learn from.
    """

    model: FasterRCNN

    def __init__(
        self,
        model: FasterRCNN,
        metadata: Metadata,
        loss: RegionLoss,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        evaluator: Literal["vectorized", "pycocotools"] = "vectorized",
        channels_last: bool = True,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(model, metadata, optimizer, scheduler, evaluator, channels_last, compile)
        self.loss = loss
        self.seed = seed

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        """The joint loss of one batch."""
        return self.learn(self.trained_outputs(self.model.features(self.pixels(batch)), batch), batch)

    def trained_outputs(self, maps: Sequence[Tensor], batch: DetectionBatch) -> dict[str, Any]:
        """What :meth:`label_losses` takes; the classifier runs only on the regions that it learns from."""
        (feature_map,) = maps
        proposals = self.model.head.propose(feature_map)
        streams = random_streams(self.seed, self.current_epoch, batch["image_ids"])
        regions = self.loss.choose(proposals, batch["targets"], streams, with_truth=True)
        logits, offsets = self.model.classify(feature_map, regions.image, regions.boxes)
        return {"arguments": (proposals, regions, logits, offsets), "streams": streams}

    def label_losses(self, raw: dict[str, Any], batch: DetectionBatch) -> dict[str, Tensor]:
        """The joint loss of proposals and classes, and its parts."""
        return self.loss(*raw["arguments"], batch["targets"], self.model.head.anchors, raw["streams"])

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        """Collect detections in original pixels; the loss is that of a choice of the proposals, always the same."""
        model: Any = self.evaluation_model
        images, targets = self.pixels(batch), batch["targets"]
        outputs = model(images)
        if getattr(model, "has_loss", True):  # an exported file gives no raw outputs
            streams = random_streams(self.seed, 0, batch["image_ids"])
            regions = self.loss.choose(outputs, targets, streams, with_truth=False)
            chosen = (outputs[name][regions.image, regions.row] for name in ("cls_logits", "box_offsets"))
            losses = self.loss(outputs, regions, *chosen, targets, model.head.anchors, streams)
            self.log_losses("val", losses, len(images))
        self.collect(model.decoder(outputs, (images.shape[2], images.shape[3])), batch)

    def on_fit_start(self) -> None:
        """Compile in place, so that state-dict names stay as they are."""
        if self._compile:
            self.model.backbone.compile()
