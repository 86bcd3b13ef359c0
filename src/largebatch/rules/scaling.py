"""Fixed scaling of the learning rate and of the clock with the batch, at any S = B / B0.

linear:       lr = S * base lr            Goyal et al., 2017, arXiv 1706.02677, section 2.1
square root:  lr = sqrt(S) * base lr      Krizhevsky, 2014, arXiv 1404.5997

And of the clock: a step of S base batches counts S base steps, so that runs are compared at equal
samples, unless `StepClock` counts it as one, so that they are compared at equal steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


def linear_factor(scale: float) -> float:
    """S, which keeps lr x gradient the same for the same samples while the weights hardly move.

    >>> linear_factor(8)
    8.0
    """
    return float(scale)


def sqrt_factor(scale: float) -> float:
    """sqrt(S), which keeps the variance of lr x gradient the same.

    >>> sqrt_factor(16)
    4.0
    """
    return math.sqrt(scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling(DefaultFacts):
    """Multiplies the learning rate by S = B / B0, from the gradient in hand.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> LinearScaling().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].reason
    'linear scaling x4'

    Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017, arXiv 1706.02677, section 2.1.
    """

    changes = frozenset({"lr"})
    forbids = frozenset({"LinearScaling", "SqrtScaling", "Legw"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        factor = linear_factor(seen.scale)
        return state, proposed.scaled(factor, because=f"linear scaling x{factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SqrtScaling(DefaultFacts):
    """Multiplies the learning rate by sqrt(B / B0), from the gradient in hand.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> SqrtScaling().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].reason
    'square-root scaling x2'

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014,
    arXiv 1404.5997.
    """

    changes = frozenset({"lr"})
    forbids = frozenset({"LinearScaling", "SqrtScaling", "Legw"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        factor = sqrt_factor(seen.scale)
        return state, proposed.scaled(factor, because=f"square-root scaling x{factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClock(DefaultFacts):
    """Counts every optimizer step as one step of the base batch, whatever its size.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> StepClock().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].base_steps
    1.0

    Reference: none.
    """

    changes = frozenset({"clock"})
    forbids = frozenset({"AdaScale", "StepClock"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, base_steps=1.0)
