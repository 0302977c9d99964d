"""Classification training step at 224 px against timm's mobilenetv1_100, in float32 and bfloat16 autocast.

A step is forward, cross-entropy, backward and optimizer; the pictures are in memory. Ours: uint8 pixels,
normalised in the model, channels_last, the allocator as our tools set it, SGD with our parameter groups.
timm: as its train.py runs it by default (NCHW, the system's allocator, ``create_optimizer_v2`` with sgd), on
pixels normalised as its loader does; then with our allocator; then with our memory layout too.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks.duel import Contestant, Samples, contest, rate_table, ratio_table, raw
from benchmarks.report import Result, Table, finish, parser
from benchmarks.steps import CLASSIFIER_CLASSES, classification_step, make_images, repeated

ALLOCATORS = {
    "default allocator": (False, False),
    "our allocator": (True, False),
    "our allocator, channels_last": (True, True),
}
HERE = "benchmarks.classification_step"


def our_step(batch: int, side: int, steps: int, bf16: bool, channels_last: bool = True) -> Callable[[], int]:
    """A round of our training steps."""
    return repeated(classification_step(batch, side, channels_last, bf16), steps, batch)


def timm_step(batch: int, side: int, steps: int, bf16: bool, channels_last: bool = False) -> Callable[[], int]:
    """A round of timm's training steps."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv1_100", num_classes=CLASSIFIER_CLASSES).train()
    pixels = make_images(batch, side)
    mean, std = torch.full((1, 3, 1, 1), 127.5), torch.full((1, 3, 1, 1), 127.5)
    labels = torch.arange(batch) % CLASSIFIER_CLASSES
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    loss = nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1e-6, weight_decay=2e-5, momentum=0.9)

    def step() -> None:
        # As timm's loader (PrefetchLoader) and its train.py do it, in the process that trains.
        images = pixels.to(torch.float32).sub_(mean).div_(std)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            total = loss(model(images), labels)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return repeated(step, steps, batch)


def duel(batch: int, side: int, steps: int, rounds: int, bf16: bool) -> tuple[list[Table], Samples]:
    """Both sides at one precision; at bfloat16 timm's float32 default runs along."""
    precision = "bf16" if bf16 else "fp32"
    options = {"batch": batch, "side": side, "steps": steps, "bf16": bf16}
    ours, plain = f"ours {precision}", f"ours {precision}, NCHW, default allocator"
    names = {setting: f"timm {precision}, {setting}" for setting in ALLOCATORS}
    default = names["default allocator"]
    contestants = [
        Contestant(ours, f"{HERE}:our_step", options, tuned=True),
        Contestant(plain, f"{HERE}:our_step", options | {"channels_last": False}),
    ]
    for setting, (tuned, last) in ALLOCATORS.items():
        chosen = options | {"channels_last": last}
        contestants.append(Contestant(names[setting], f"{HERE}:timm_step", chosen, tuned=tuned))
    pairs = [*((ours, name) for name in names.values()), (plain, default)]
    if bf16:
        full = "timm fp32, default allocator"
        contestants.append(Contestant(full, f"{HERE}:timm_step", options | {"bf16": False}))
        pairs.append((ours, full))
    samples = contest(contestants, rounds)
    rates = rate_table(f"Classification training step, {precision}", "images", samples)
    return [rates, ratio_table(f"Step ratio, {precision}", samples, pairs)], samples


def main() -> None:
    """Command line."""
    options = parser("classification_step", __doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=2, help="training steps per round (default 2)")
    given = options.parse_args()
    batch, side, steps, rounds = given.batch, 224, given.steps, given.rounds
    if given.quick:
        batch, side, steps, rounds = 2, 96, 1, 1
    tables, samples = [], {}
    for bf16 in (False, True):
        found, measured = duel(batch, side, steps, rounds, bf16)
        tables += found
        samples["bf16" if bf16 else "fp32"] = raw(measured)
    notes = [
        "The first ratio compares both sides as they are run; the next give timm our allocator, then also our "
        "memory layout; the last of the same precision takes both from ours.",
        "Left out on both sides: reading pictures, averaged weights. Both start from uint8 pixels.",
    ]
    settings = {
        "batch": batch,
        "pixels": side,
        "steps per round": steps,
        "rounds": rounds,
        "timm": timm.__version__,
    }
    finish(Result("classification_step", settings, tables, notes, samples), given.output)


if __name__ == "__main__":
    main()
