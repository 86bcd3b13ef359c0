"""Schedules of the learning rate: a factor on the rate as a function of the budget that is used.

    lr = factor(x) * base lr,    x in [0, 1] the fraction of the run's budget before this step

A fraction, and not a step number, keeps the shape of a schedule when the batch changes: the budget
may be counted in base steps, samples or optimizer steps. The rise at the start is another rule,
`WarmUp`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.factors import Cosine, Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(DefaultFacts):
    """Multiplies the learning rate by a factor of the fraction of the budget used.

    >>> from largebatch.rules.factors import Linear
    >>> seen = Measurement(step=0, samples=500, base_steps=0, batch_size=50, base_batch_size=50,
    ...     budget=Budget(samples=1000))
    >>> rule, proposed = Schedule(factor=Linear()), Decision(next_batch_size=50, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].lr_multiplier
    0.5

    Args:
        factor: `Cosine()` and its neighbours, or a frozen dataclass of your own that is called in
            the same way, so that the record can name it.
        over: the schedule's own horizon, which names its unit; None for the run's budget. After
            its end the last factor stays.

    Raises:
        ValueError: a factor that is no value, as a function is; and at the first step, when neither
            the run nor the schedule has a length.

    Reference: none.
    """

    factor: Factor = field(default_factory=Cosine)
    over: Budget | None = None

    changes = frozenset({"lr"})

    def __post_init__(self) -> None:
        if not is_dataclass(self.factor) or isinstance(self.factor, type):
            raise ValueError(
                f"A run's record names its schedule, so the factor is a value, as in "
                f"Schedule(factor=Cosine()), or a frozen dataclass of your own with __call__; got "
                f"{self.factor!r}."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.over is not None else frozenset({"budget"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        # AdaScale's algorithm looks the rate up at floor(base steps); the public ports drive a
        # scheduler in the same whole steps. Here the clock is not rounded: a step decay at a whole
        # base step is the same either way, and a smooth factor would otherwise become a staircase.
        factor = self.factor(seen.progress_of(self.over))
        why = f"schedule x{factor:.4g}" if factor != 1.0 else ""
        return state, proposed.scaled(factor, because=why)
