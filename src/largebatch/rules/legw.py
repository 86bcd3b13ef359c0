"""LEGW: linear-epoch gradual warm-up, with the square root of the scale after it.

    lr = sqrt(S) min(base steps / W, 1) * base lr,    W = warm-up epochs * S * N / B0

The warm-up grows with the scale when counted in epochs: one base epoch of it becomes S epochs.

You et al.: Large-Batch Training for LSTM and Beyond, 2019, arXiv 1901.08256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


def legw_factor(*, scale: float, base_steps: float, warmup_base_steps: float) -> float:
    """sqrt(scale) min(base_steps / warmup_base_steps, 1).

    >>> legw_factor(scale=4, base_steps=100, warmup_base_steps=400)
    0.5

    Args:
        scale: S = B / B0, above 0.
        base_steps: the clock before this step, in steps of the base batch.
        warmup_base_steps: W, length of the warm-up on the same clock, above 0.
    """
    return math.sqrt(scale) * min(base_steps / warmup_base_steps, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Legw(DefaultFacts):
    """Multiplies the learning rate by sqrt(S) after a warm-up of `warmup_epochs` x S epochs.

    >>> rule, proposed = Legw(warmup_epochs=1), Decision(next_batch_size=256, base_steps=4)
    >>> seen = Measurement(step=50, samples=12_800, base_steps=200, batch_size=256,
    ...     base_batch_size=64, dataset_size=6400)
    >>> rule.update(None, seen, proposed)[1].reason
    'LEGW x1'

    Args:
        warmup_epochs: length of the warm-up at the base batch, in epochs, above 0.

    Raises:
        ValueError: a length that is not above 0; at the first step, an unknown dataset size.

    Reference: arXiv 1901.08256.
    """

    warmup_epochs: float

    needs = frozenset({"dataset_size"})
    changes = frozenset({"lr"})
    forbids = frozenset({"AdaScale", "LinearScaling", "SqrtScaling", "Legw", "WarmUp"})

    def __post_init__(self) -> None:
        if not 0.0 < self.warmup_epochs < math.inf:
            raise ValueError(
                f"warmup_epochs is above 0, as in Legw(warmup_epochs=0.5); got {self}."
            )

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        if seen.dataset_size is None:
            raise ValueError(
                "Legw counts its warm-up in epochs and needs the dataset's size: train from a "
                "dataset with a length, or use lb.WarmUp(fraction=...) with lb.SqrtScaling()."
            )
        # A public implementation also reads the clock before the step, so that the very first step
        # has rate 0. It is kept: one step of a warm-up of whole epochs.
        warmup = self.warmup_epochs * seen.scale * seen.dataset_size / seen.base_batch_size
        factor = legw_factor(scale=seen.scale, base_steps=seen.base_steps, warmup_base_steps=warmup)
        return state, proposed.scaled(factor, because=f"LEGW x{factor:.4g}")
