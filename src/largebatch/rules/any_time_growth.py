"""Growth for any time at which the run may end: bias and variance balanced in every step.

    next B = c lr (sum of all rates so far and this one)

With smoothness L, variance of one sample v and distance to the least loss D, c = L v / (2 D) makes
the two terms of the bound on the squared gradient norm equal at every step; a constant rate makes
the batch linear in the steps, and thus the root of the samples. It pays a logarithm for serving all
ends of the run; where the end is known, a constant batch suited to it needs fewer samples. Derived
from the bound for smooth functions and plain SGD, and checked in numbers; from no paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.sizes import check_above_zero, whole_batch


def any_time_batch(*, coefficient: float, lr: float, lr_sum: float) -> float:
    """c lr sum, in samples.

    >>> any_time_batch(coefficient=50.0, lr=0.1, lr_sum=10.0)
    50.0

    Args:
        coefficient: c = L v / (2 D), above 0.
        lr: of the step.
        lr_sum: of all steps up to this one.
    """
    # `any_time_batch_size` of theory is the same and checks its arguments; rules may not import
    # theory, and tests/theory/test_rules_and_theory.py compares the two.
    return coefficient * lr * lr_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSum:
    """The sum of the rates of all steps so far."""

    total: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyTimeGrowth(DefaultFacts):
    """Proposes the batch that balances bias and variance now, whenever the run may end.

    It reads the rate of the step in hand as the rules before it have set it, and takes it for that
    of the next one, so it stands after the schedule.

    >>> rule, proposed = AnyTimeGrowth(coefficient=800.0), Decision(next_batch_size=8, base_steps=1)
    >>> seen = Measurement(
    ...     step=0, samples=0, base_steps=0, batch_size=8, base_batch_size=8, base_lr=0.1)
    >>> rule.update(rule.init(), seen, proposed)[1].next_batch_size
    16

    Args:
        coefficient: c = L v / (2 D), in samples over a squared rate, above 0: with a batch B0 that
            suits the run's end after T steps of the rate lr it is B0 / (lr^2 T).

    Raises:
        ValueError: a coefficient that is not above 0.

    Reference: derived here from the bound; from no paper.
    """

    coefficient: float

    changes = frozenset({"batch"})

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
        why = f"batch {size}" if size != seen.batch_size else ""
        return after, proposed.resized(size, because=why)
