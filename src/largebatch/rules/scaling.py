"""Scale the learning rate by a fixed formula at any scale S = B / B0, and count base steps.

    linear:       lr = S * base lr            Goyal et al., 2017, arXiv 1706.02677, section 2.1
    square root:  lr = sqrt(S) * base lr      Krizhevsky, 2014, arXiv 1404.5997

By default, a step of S base batches counts as S base steps, so runs are compared at an equal number
of samples. With `StepClock`, every step counts as one base step, so runs are compared at an equal
number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts


def linear_factor(scale: float) -> float:
    """Return S as the factor on the learning rate.

    With the factor S, the same samples change the weights by the same amount at any batch size, as
    long as the weights change little within one batch.

    >>> linear_factor(8)
    8.0
    """
    return float(scale)


def sqrt_factor(scale: float) -> float:
    """Return sqrt(S) as the factor on the learning rate, which keeps the variance of lr * gradient
    constant.

    >>> sqrt_factor(16)
    4.0
    """
    return math.sqrt(scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling(DefaultFacts):
    """Multiply the learning rate by S = B / B0, where B is the size of the current batch.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> LinearScaling().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].reason
    'linear scaling: lr x4'

    Reference: Goyal et al., Accurate, Large Minibatch SGD, 2017, arXiv 1706.02677, section 2.1.
    """

    changes = frozenset({"lr"})
    references = ("goyal2017accurate",)
    forbids = frozenset({"LinearScaling", "SqrtScaling", "Legw"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        factor = linear_factor(seen.scale)
        return state, proposed.scaled(factor, because=f"linear scaling: lr x{factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SqrtScaling(DefaultFacts):
    """Multiply the learning rate by sqrt(B / B0), where B is the size of the current batch.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> SqrtScaling().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].reason
    'square-root scaling: lr x2'

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014,
    arXiv 1404.5997.
    """

    changes = frozenset({"lr"})
    references = ("krizhevsky2014weird",)
    forbids = frozenset({"LinearScaling", "SqrtScaling", "Legw"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        factor = sqrt_factor(seen.scale)
        return state, proposed.scaled(factor, because=f"square-root scaling: lr x{factor:.4g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClock(DefaultFacts):
    """Count every optimizer step as one base step, whatever the batch size.

    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64)
    >>> StepClock().update(None, seen, Decision(next_batch_size=256, base_steps=4))[1].base_steps
    1.0

    Reference: none.
    """

    changes = frozenset({"clock"})
    references = ()
    forbids = frozenset({"AdaScale", "StepClock"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        return state, replace(proposed, base_steps=1.0)
