"""Multiply the learning rate by sqrt(S), after a linear warm-up S times as long as the base warm-up
(LEGW).

    lr = sqrt(S) * min(base steps / W, 1) * base lr,    W = warm-up epochs * S * N / B0

LEGW stands for linear-epoch gradual warm-up. N is the number of samples in the data set. Counted in
epochs, the warm-up grows with the scale: one epoch of warm-up at the base batch becomes S epochs.

You, Hseu, Ying, Demmel, Keutzer, Hsieh: Large-Batch Training for LSTM and Beyond, 2019, arXiv
1901.08256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


def legw_factor(*, scale: float, base_steps: float, warmup_base_steps: float) -> float:
    """Return the factor sqrt(scale) * min(base_steps / warmup_base_steps, 1) on the learning rate.

    >>> legw_factor(scale=4, base_steps=100, warmup_base_steps=400)
    0.5

    Args:
        scale: S = B / B0, above 0.
        base_steps: Number of base steps before the current step.
        warmup_base_steps: Length W of the warm-up, in base steps, above 0.
    """
    return math.sqrt(scale) * min(base_steps / warmup_base_steps, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Legw(DefaultFacts):
    """Multiply the learning rate by sqrt(S), after a linear warm-up over `warmup_epochs` * S
    epochs.

    >>> rule, proposed = Legw(warmup_epochs=1), Decision(next_batch_size=256, base_steps=4)
    >>> seen = Measurement(step=50, samples=12_800, base_steps=200, batch_size=256,
    ...     base_batch_size=64, dataset_size=6400)
    >>> rule.update(None, seen, proposed)[1].reason
    'LEGW: lr x1'

    Args:
        warmup_epochs: Length of the warm-up at the base batch, in epochs, above 0.

    Raises:
        ValueError: If `warmup_epochs` is not above 0, or at the first step if the size of the data
            set is unknown.

    Reference: You, Hseu, Ying, Demmel, Keutzer, Hsieh, 2019, arXiv 1901.08256.
    """

    warmup_epochs: float

    needs = frozenset({"dataset_size"})
    changes = frozenset({"lr"})
    references = ("you2019large",)
    forbids = frozenset({"AdaScale", "LinearScaling", "SqrtScaling", "Legw", "WarmUp"})

    def __post_init__(self) -> None:
        if not 0.0 < self.warmup_epochs < math.inf:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs!r} was given, but warmup_epochs must be "
                "above 0. Example: Legw(warmup_epochs=0.5)"
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        if seen.dataset_size is None:
            raise ValueError(
                "Legw counts its warm-up in epochs, but the size of the data set is unknown. Train "
                "from a data set with a length, or use a warm-up that needs no size: "
                "lb.chain(lb.SqrtScaling(), lb.WarmUp(fraction=0.05))"
            )
        # A public implementation also counts the base steps before the current step, so the first
        # step of the run has learning rate 0. We do the same: only one step has learning rate 0, in
        # a warm-up of whole epochs.
        warmup = self.warmup_epochs * seen.scale * seen.dataset_size / seen.base_batch_size
        factor = legw_factor(scale=seen.scale, base_steps=seen.base_steps, warmup_base_steps=warmup)
        return state, proposed.scaled(factor, because=f"LEGW: lr x{factor:.4g}")
