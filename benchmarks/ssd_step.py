"""SSD training step at 300 px against torchvision's SSD on the same backbone, whole and in parts.

A step is forward, loss, backward and optimizer; the pictures are in memory. Ours: uint8 pixels, normalised in
the model, channels_last, the allocator as our tools set it. The peer: float pixels 0-1, its own transform and
loss, SGD as in its detection references. "own head" is torchvision's SSD as it builds it; "same network" has our
predictors and boxes in it. The parts are matching + loss (forward and backward) and decoding, on fixed head
outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import box_iou

from benchmarks.duel import Contestant, Samples, contest, rate_table, ratio_table, raw
from benchmarks.report import Result, Table, finish, parser, spread
from benchmarks.steps import (
    SSD_CLASSES,
    detection_step,
    make_detector,
    make_images,
    make_targets,
    repeated,
)
from benchmarks.torchvision_ssd import as_list, make_peer
from mnvision.losses.multibox import MultiBoxLoss
from mnvision.types import SSDOutputs

OURS, OURS_PLAIN = "ours", "ours, NCHW, default allocator"
DEFAULT, TUNED, LAST = "default allocator", "our allocator", "our allocator, channels_last"
ALLOCATORS = {DEFAULT: (False, False), TUNED: (True, False), LAST: (True, True)}


def our_step(batch: int, side: int, steps: int, channels_last: bool = True) -> Callable[[], int]:
    """A round of our training steps."""
    return repeated(detection_step(batch, side, channels_last), steps, batch)


def peer_step(batch: int, side: int, steps: int, same_network: bool, channels_last: bool = False) -> Callable[[], int]:
    """A round of torchvision's training steps."""
    model = make_peer(side, same_network).train()
    pixels = make_images(batch, side).float() / 255
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    images, targets = list(pixels), as_list(make_targets(batch, side))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return repeated(step, steps, batch)


def head_outputs(batch: int, boxes: int, trained: bool) -> SSDOutputs:
    """Raw outputs as a head gives them.

    Args:
        batch: Images.
        boxes: Default boxes.
        trained: 100 boxes per image see one class and the others mostly background, as around the objects of a
            trained detector; else the near equal logits of a new network, where every score is a candidate.
    """
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(batch, boxes, SSD_CLASSES + 1, generator=generator) * (1.5 if trained else 0.3)
    if trained:
        logits[..., 0] = 12.0 + 2.0 * torch.randn(batch, boxes, generator=generator)
        objects = torch.rand(batch, boxes, generator=generator).topk(min(100, boxes)).indices
        labels = torch.randint(1, SSD_CLASSES + 1, objects.shape, generator=generator)
        logits[torch.arange(batch)[:, None], objects, labels] += 12.0
    return {"cls_logits": logits, "box_offsets": torch.randn(batch, boxes, 4, generator=generator)}


def our_loss(batch: int, side: int, steps: int) -> Callable[[], int]:
    """A round of our matching and loss, forward and backward."""
    boxes, loss = make_detector(side).head.default_boxes, MultiBoxLoss()
    outputs, targets = _with_gradients(head_outputs(batch, len(boxes), True)), make_targets(batch, side)
    return repeated(lambda: _backward(loss(outputs, targets, boxes)["loss"], outputs), steps, batch)


def peer_loss(batch: int, side: int, steps: int) -> Callable[[], int]:
    """The same of torchvision, on the same boxes; the two lines that match are those of its ``forward``."""
    model = make_peer(side, same_network=True)
    anchors = [model.anchor_generator.boxes] * batch
    outputs, targets = (
        _with_gradients(head_outputs(batch, len(anchors[0]), True)),
        as_list(make_targets(batch, side)),
    )
    named = {"cls_logits": outputs["cls_logits"], "bbox_regression": outputs["box_offsets"]}

    def step() -> None:
        qualities = (box_iou(target["boxes"], boxes) for target, boxes in zip(targets, anchors))
        matched = [model.proposal_matcher(quality) for quality in qualities]
        losses = model.compute_loss(targets, named, anchors, matched)
        _backward(losses["bbox_regression"] + losses["classification"], outputs)

    return repeated(step, steps, batch)


def our_decoding(batch: int, side: int, steps: int, trained: bool) -> Callable[[], int]:
    """A round of our decoding: scores, boxes, suppression."""
    model = make_detector(side)
    boxes = model.head.default_boxes
    outputs = head_outputs(batch, len(boxes), trained)

    def step() -> None:
        model.decoder(outputs, boxes, (side, side))

    return repeated(step, steps, batch)


def peer_decoding(batch: int, side: int, steps: int, trained: bool) -> Callable[[], int]:
    """The same of torchvision."""
    model = make_peer(side, same_network=True)
    anchors = [model.anchor_generator.boxes] * batch
    outputs = head_outputs(batch, len(anchors[0]), trained)
    named = {"cls_logits": outputs["cls_logits"], "bbox_regression": outputs["box_offsets"]}

    def step() -> None:
        with torch.no_grad():
            model.postprocess_detections(named, anchors, [(side, side)] * batch)

    return repeated(step, steps, batch)


def _with_gradients(outputs: SSDOutputs) -> SSDOutputs:
    return {
        "cls_logits": outputs["cls_logits"].requires_grad_(),
        "box_offsets": outputs["box_offsets"].requires_grad_(),
    }


def _backward(loss: Tensor, outputs: SSDOutputs) -> None:
    outputs["cls_logits"].grad = outputs["box_offsets"].grad = None
    loss.backward()


def whole_step(batch: int, side: int, steps: int, rounds: int, same_network: bool) -> tuple[list[Table], Samples]:
    """The step against one form of the peer in its three settings."""
    options = {"batch": batch, "side": side, "steps": steps}
    contestants = [
        Contestant(OURS, "benchmarks.ssd_step:our_step", options, tuned=True),
        Contestant(OURS_PLAIN, "benchmarks.ssd_step:our_step", options | {"channels_last": False}),
    ]
    form = "same network" if same_network else "own head"
    names = {setting: f"torchvision {form}, {setting}" for setting in ALLOCATORS}
    for setting, (tuned, last) in ALLOCATORS.items():
        chosen = options | {"same_network": same_network, "channels_last": last}
        contestants.append(Contestant(names[setting], "benchmarks.ssd_step:peer_step", chosen, tuned=tuned))
    samples = contest(contestants, rounds)
    pairs = [*((OURS, name) for name in names.values()), (OURS_PLAIN, names[DEFAULT])]
    rates = rate_table(f"SSD training step, torchvision with {form}", "images", samples)
    return [rates, ratio_table(f"Step ratio, torchvision with {form}", samples, pairs)], samples


def parts(batch: int, side: int, steps: int, rounds: int) -> tuple[Table, dict[str, Samples]]:
    """Matching + loss, decoding, and the sum of both, each beside the peer in two allocator settings."""
    default, tuned = f"torchvision, {DEFAULT}", f"torchvision, {TUNED}"
    sides = {OURS: ("our", True), default: ("peer", False), tuned: ("peer", True)}
    options = {"batch": batch, "side": side, "steps": steps}
    # The peer needs seconds for a batch of a new network's outputs: once per round is enough.
    works = {
        "matching + loss": ("loss", options),
        "decoding, trained": ("decoding", options | {"trained": True}),
        "decoding, untrained": ("decoding", options | {"trained": False, "steps": 1}),
    }
    found = {}
    for title, (function, chosen) in works.items():
        contestants = [
            Contestant(name, f"benchmarks.ssd_step:{prefix}_{function}", chosen, tuned=allocator)
            for name, (prefix, allocator) in sides.items()
        ]
        found[title] = contest(contestants, rounds)
    times = {title: _milliseconds(samples, batch) for title, samples in found.items()}
    loss, decoding = times["matching + loss"], times["decoding, trained"]
    times["matching + loss + decoding, trained"] = {
        name: [a + b for a, b in zip(loss[name], decoding[name], strict=True)] for name in sides
    }
    rows = []
    for title, spent in times.items():
        quotients = ([p / o for p, o in zip(spent[peer], spent[OURS])] for peer in (default, tuned))
        rows.append([title, *(spread(spent[name], 1) for name in sides), *(spread(q, 1) for q in quotients)])
    columns = ["ms per batch", *sides, f"ratio to {default}", f"ratio to {tuned}"]
    return Table("Beside the network, the same boxes on both sides", columns, rows), found


def _milliseconds(samples: Samples, batch: int) -> dict[str, list[float]]:
    """Per batch, round by round."""
    return {name: [1e3 * batch / sample.rate for sample in found] for name, found in samples.items()}


def main() -> None:
    """Command line."""
    options = parser("ssd_step", __doc__)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=2, help="training steps per round (default 2)")
    given = options.parse_args()
    batch, side, steps, rounds = given.batch, 300, given.steps, given.rounds
    if given.quick:
        batch, side, steps, rounds = 2, 160, 1, 1
    tables, samples = [], {}
    for form, same_network in (("own head", False), ("same network", True)):
        found, samples[form] = whole_step(batch, side, steps, rounds, same_network)
        tables += found
    part_table, part_samples = parts(batch, side, 10 * steps, rounds)
    notes = [
        "The first ratio of each form compares both sides as they are run; the next give the peer our allocator, "
        "then also our memory layout; the last takes both from ours.",
        "torchvision's own head has 3x3 predictors and 2278 boxes, a larger network than ours (1x1, 1917 boxes, "
        "as TF's ssd_mobilenet_v1); the same-network rows compare like with like.",
        "Left out on both sides: reading pictures, gradient clipping, averaged weights. The making of the peer's "
        "boxes counts in its step, not in its parts. Trained outputs: 100 boxes per image see an object.",
    ]
    settings = {"batch": batch, "pixels": side, "steps per round": steps, "rounds": rounds}
    raw_samples = {name: raw(found) for name, found in (samples | part_samples).items()}
    finish(Result("ssd_step", settings, [*tables, part_table], notes, raw_samples), given.output)


if __name__ == "__main__":
    main()
