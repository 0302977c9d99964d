"""The ranges of all activations of one model: measured once, followed in training, stored with the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from mnvision.errors import UserError
from mnvision.quantization.grid import rounded_activation

WEIGHTS = ("channel", "tensor")
"""What has a scale of its own: every output channel, or every layer."""
OUTPUT = ":output"
"""Behind a layer's name: what leaves it, not what goes in."""
_STORED = ("weights", "ranges")
Show = Callable[[nn.Module, Mapping[str, Any]], int]


class Ranges(nn.Module):
    """Lowest and highest value of what goes into each layer, as averages over batches, and of maps that are pooled.

    All layers share one of these, and so does every copy of the model (that of averaged weights, too): what it knows
    is itself an average. It is part of a run's state but not of the model's.

    Args:
        names: Of the layers, such as ``backbone.stem.conv``; with :data:`OUTPUT` behind it for what leaves one.
        momentum: Weight of the newest batch of a training, 0 to 1.
        weights: What has a scale of its own, one of :data:`WEIGHTS`.
        shared: Further layers, each with the one of ``names`` whose range is its own, too.

    Attributes:
        bounds: ``(L, 2)`` float32 buffer, lowest and highest of each of ``names``; NaN before they are measured.
        measuring: Whether values are looked at and left as they are; see :meth:`measure`.

    Raises:
        UserError: ``momentum`` or ``weights`` is out of range.
    """

    bounds: Tensor

    def __init__(
        self,
        names: Sequence[str],
        momentum: float = 0.01,
        weights: str = WEIGHTS[0],
        shared: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            raise UserError(f"quantize.momentum={momentum!r}: give a number from 0 (ranges stay as measured) to 1")
        if weights not in WEIGHTS:
            raise UserError(f"quantize.weights={weights!r}: choose {' or '.join(WEIGHTS)}")
        self.names, self.shared = tuple(names), dict(shared or {})
        self.weights = weights
        self.momentum = float(momentum)
        self.measuring = False
        self._seen: Counter[int] = Counter()
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._rows |= {name: self._rows[owner] for name, owner in self.shared.items()}
        self.register_buffer("bounds", torch.full((len(names), 2), torch.nan))

    @property
    def per_channel(self) -> bool:
        """Whether every output channel has a scale of its own."""
        return self.weights == WEIGHTS[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def row(self, name: str) -> int:
        """Row of ``bounds`` that holds a name's range."""
        return self._rows[name]

    def rounded(self, values: Tensor, name: str, training: bool, exact: bool = False) -> Tensor:
        """What a layer gets to see of its input.

        Args:
            values: Float32 of any shape.
            name: The layer's.
            training: Whether the range follows the values; one that is shared follows those of its owner.
            exact: Leave them as they are all the same.
        """
        row, own = self._rows[name], name not in self.shared
        if self.measuring:
            if own and values.numel():
                self._seen[row] += 1
                self._follow(values, row, 1 / self._seen[row])
            return values
        if training and self.momentum and own and values.numel():
            self._follow(values, row, self.momentum)
        return values if exact else rounded_activation(values, self.bounds[row])

    @torch.no_grad()
    def _follow(self, values: Tensor, row: int, weight: float) -> None:
        seen = torch.stack(torch.aminmax(values.detach()))
        known = self.bounds[row]
        known.copy_(torch.where(known.isnan(), seen, known.lerp(seen, weight)))

    @contextmanager
    def _looking(self) -> Iterator[None]:
        self.measuring = True
        try:
            yield
        finally:
            self.measuring = False

    def measure(
        self, model: nn.Module, batches: Iterable[Mapping[str, Any]], count: int, show: Show | None = None
    ) -> int:
        """Set the ranges to the averages over some batches, on which the model computes in float.

        Args:
            model: From :func:`~mnvision.quantization.layers.quantize`; its mode is kept.
            batches: Mappings with ``images`` ``(B, 3, H, W)`` uint8, as the training loader gives them.
            count: Batches to look at, at most.
            show: Has the model look at a batch of another form, and gives the number of its pictures.

        Returns:
            The number of pictures.

        Raises:
            UserError: There is no batch, or the model's values are not finite.
        """
        training, pictures = model.training, 0
        self.bounds.fill_(torch.nan)
        self._seen.clear()
        with torch.no_grad(), self._looking():
            model.eval()
            for number, batch in enumerate(batches, 1):
                pictures += _show(model, batch) if show is None else show(model, batch)
                if number == count:
                    break
        model.train(training)
        self.require_finite("no ranges of activations could be measured: there are no pictures, or weights diverged")
        return pictures

    def require_finite(self, otherwise: str) -> None:
        """Raise a UserError with this text where a range is not known."""
        if not bool(self.bounds.isfinite().all()):
            raise UserError(otherwise)

    def to_plain(self) -> dict[str, Any]:
        """Plain data for a checkpoint: what :meth:`load_plain` takes."""
        bounds = self.bounds.cpu().tolist()
        return {"weights": self.weights, "ranges": {name: bounds[row] for name, row in self._rows.items()}}

    def load_plain(self, stored: Mapping[str, Any]) -> None:
        """Take the ranges of a checkpoint.

        Raises:
            UserError: They are of other layers, or are no ranges.
        """
        if not isinstance(stored, Mapping) or set(stored) != set(_STORED) or stored["weights"] not in WEIGHTS:
            raise UserError("its quantisation is of another version of mnvision: train with quantize=qat again")
        self.weights, rows = stored["weights"], stored["ranges"]
        if set(rows) != set(self._rows):
            odd = sorted(set(rows) ^ set(self._rows))
            raise UserError(f"its ranges of activations are those of other layers ({odd[0]}): train it again")
        torn = [name for name, owner in self.shared.items() if rows[name] != rows[owner]]
        if torn:
            raise UserError(f"its ranges of one map contradict each other ({torn[0]}): train it again")
        try:
            values = torch.tensor([rows[name] for name in self.names], dtype=torch.float32)
            self.bounds.copy_(values.reshape(len(self.names), 2))
        except (TypeError, ValueError, RuntimeError):
            raise UserError("its ranges of activations are not two numbers each: train it again") from None
        self.require_finite("its ranges of activations are not finite: train it again")


def _show(model: Any, batch: Mapping[str, Any]) -> int:
    model(batch["images"].to(model.mean.device))
    return len(batch["images"])
