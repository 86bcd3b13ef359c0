"""Grow the batch so that the run may end at any time: balance bias and variance in every step.

    next B = c * lr * (sum of the learning rates of all steps so far and of the next one)

L is the smoothness, v the variance of one sample's gradient, and D the distance to the smallest
loss. With c = L * v / (2 * D), the two terms of the bound on the squared gradient norm are equal at
every step. With a constant learning rate, the batch size grows linearly with the number of steps,
and as the square root of the number of samples. The bound is larger by a logarithmic factor than
the bound of the best batch size for a run whose end is known. If the end is known, a suitable
constant batch needs fewer samples than `AnyTimeGrowth`. We derived `AnyTimeGrowth` from the bound
for smooth functions and plain SGD, and checked the derivation numerically. No paper describes
`AnyTimeGrowth`.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import check_above_zero, whole_batch


def any_time_batch(*, coefficient: float, lr: float, lr_sum: float) -> float:
    """Return the batch size coefficient * lr * lr_sum, in samples.

    >>> any_time_batch(coefficient=50.0, lr=0.1, lr_sum=10.0)
    50.0

    Args:
        coefficient: c = L * v / (2 * D), above 0.
        lr: Learning rate of the step.
        lr_sum: Sum of the learning rates of all steps up to and including the current step.
    """
    # The function `any_time_batch_size` in `theory` computes the same and checks its arguments.
    # Rules may not import `theory`, so tests/theory/test_rules_and_theory.py compares the two.
    return coefficient * lr * lr_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSum:
    """Hold the sum of the learning rates of all steps so far."""

    total: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyTimeGrowth(DefaultFacts):
    """Propose the batch size that balances bias and variance now, whenever the run may end.

    `AnyTimeGrowth` reads the learning rate that the earlier rules of the chain set, and assumes the
    same learning rate for the next step. Put `AnyTimeGrowth` after the schedule.

    >>> rule, proposed = AnyTimeGrowth(coefficient=800.0), Decision(next_batch_size=8, base_steps=1)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, base_lr=0.1)
    >>> rule.update(rule.init(), seen, proposed)[1].next_batch_size
    16

    Args:
        coefficient: c = L * v / (2 * D), in samples per squared learning rate, above 0. If a batch
            size B0 suits a run that ends after T steps with learning rate lr, use the coefficient
            B0 / (lr^2 * T).

    Raises:
        ValueError: If the coefficient is not above 0.

    Reference: none. We derived the rule from the bound for smooth functions and plain SGD.
    """

    coefficient: float

    changes = frozenset({"batch"})
    references = ()

    def __post_init__(self) -> None:
        check_above_zero(
            self, example="AnyTimeGrowth(coefficient=50.0)", coefficient=self.coefficient
        )

    def init(self) -> RateSum:
        return RateSum()

    def update(
        self, state: RateSum, seen: Measurement, proposed: Decision
    ) -> tuple[RateSum, Decision]:
        lr = seen.base_lr * proposed.lr_multiplier
        after = RateSum(total=state.total + lr)
        required = any_time_batch(coefficient=self.coefficient, lr=lr, lr_sum=after.total + lr)
        size = whole_batch(required, ranks=seen.ranks, dataset_size=seen.dataset_size, least=1)
        why = f"batch size {size} for a sum of learning rates of {after.total:.4g}"
        why = why if size != seen.batch_size else ""
        return after, proposed.resized(size, because=why)
