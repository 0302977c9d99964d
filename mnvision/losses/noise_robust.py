"""Cross-entropies for labels of which some are wrong, as those of pictures gathered from the web.

Label smoothing, the third remedy, is ``torch.nn.CrossEntropyLoss(label_smoothing=...)``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnvision.errors import UserError

# What the paper's experiments used.
BETAS = {"soft": 0.95, "hard": 0.8}


class BootstrappedCrossEntropy(nn.Module):
    """Cross-entropy towards a mixture of the label and the network's own answer.

    Source: Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping",
    https://arxiv.org/abs/1412.6596, soft and hard bootstrapping. With probabilities ``p`` and label ``t``:

    - soft: ``-sum_k (beta t_k + (1 - beta) p_k) log p_k``. The gradient also runs through the ``p`` of the target, so
      that it is cross-entropy plus ``1 - beta`` times the entropy, as the paper explains it.
    - hard: the same with the one-hot best class in the place of ``p_k``.

    A network that knows nothing yet learns from its own guesses, so this belongs into a run that starts from trained
    weights, or one with many clean labels.

    Args:
        mode: "hard" or "soft".
        beta: Share of the label, in (0, 1]; None for the paper's 0.8 (hard) or 0.95 (soft). 1 is cross-entropy.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(self, mode: str = "hard", beta: float | None = None) -> None:
        super().__init__()
        if mode not in BETAS:
            raise UserError(f"loss.mode={mode}: give {' or '.join(BETAS)}")
        self.mode, self.beta = mode, BETAS[mode] if beta is None else checked_share("loss.beta", beta)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a float32 scalar.

        Args:
            logits: ``(B, K)``, any float type.
            labels: ``(B,)`` int64, ``0 .. K-1``.
        """
        log_p = F.log_softmax(logits.float(), dim=1)
        given = F.nll_loss(log_p, labels)
        if self.mode == "hard":
            own = F.nll_loss(log_p, log_p.argmax(dim=1))
        else:
            own = -(log_p.exp() * log_p).sum(dim=1).mean()
        return self.beta * given + (1 - self.beta) * own


class GeneralizedCrossEntropy(nn.Module):
    """``(1 - p_label ** q) / q``: cross-entropy for q towards 0, mean absolute error (halved) for q = 1.

    Source: Zhang & Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels",
    https://arxiv.org/abs/1805.07836, section 3.2. Its gradient is cross-entropy's times ``p_label ** q``, so samples
    whose label the network does not believe count little. With many classes that is true of all samples at the start,
    and a run from random weights hardly moves: begin from trained ones, or choose a small q.

    Args:
        q: In (0, 1]; the paper's experiments used 0.7.

    Raises:
        UserError: ``q`` is out of range.
    """

    def __init__(self, q: float = 0.7) -> None:
        super().__init__()
        self.q = checked_share("loss.q", q)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a float32 scalar in [0, 1 / q].

        Args:
            logits: ``(B, K)``, any float type.
            labels: ``(B,)`` int64, ``0 .. K-1``.
        """
        log_p = -F.cross_entropy(logits.float(), labels, reduction="none")
        # expm1 keeps the digits that 1 - p ** q loses where q is small or the label is certain.
        return -torch.expm1(self.q * log_p).mean() / self.q


def checked_share(name: str, value: float) -> float:
    """A number in (0, 1].

    Raises:
        UserError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{name}={value!r}: give a number above 0 and at most 1")
    return float(value)
