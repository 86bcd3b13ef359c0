"""Multiply the learning rate by a factor that depends on the used fraction of the budget.

    lr = factor(x) * base lr,    x in [0, 1] is the fraction of the run's budget before this step

A schedule over fractions of the budget keeps its shape when the batch size changes, but a schedule
over step numbers does not. The budget may be counted in base steps, samples or optimizer steps. The
rise of the learning rate at the start of a run is a separate rule, `WarmUp`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.factors import Cosine, Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(DefaultFacts):
    """Multiply the learning rate by a factor of the used fraction of the budget.

    >>> from largebatch.rules.factors import Linear
    >>> seen = Measurement(step=0, samples=500, base_steps=0, batch_size=50, base_batch_size=50,
    ...     budget=Budget(samples=1000))
    >>> rule, proposed = Schedule(factor=Linear()), Decision(next_batch_size=50, base_steps=1)
    >>> rule.update(None, seen, proposed)[1].lr_multiplier
    0.5

    Args:
        factor: A factor of `largebatch.rules`, such as `Cosine()`, or your own frozen dataclass
            with the same `__call__`. The factor must be a dataclass so that the run's record can
            store the factor.
        over: Length of the schedule, as an `lb.Budget`; None for the run's budget. After the length
            `over`, the schedule keeps its last factor.

    Raises:
        ValueError: If the factor is a function or a class instead of a dataclass instance. If
            neither the run nor the schedule has a length, the first step raises ValueError.

    Reference: none.
    """

    factor: Factor = field(default_factory=Cosine)
    over: Budget | None = None

    changes = frozenset({"lr"})
    references = ()

    def __post_init__(self) -> None:
        if not is_dataclass(self.factor) or isinstance(self.factor, type):
            raise ValueError(
                f"factor={self.factor!r} was given, but the run's record can only store an "
                "instance of a dataclass. Pass an instance of your own frozen dataclass with "
                "__call__, or a factor of this package: Schedule(factor=Cosine())"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.over is not None else frozenset({"budget"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        # AdaScale's algorithm reads the learning rate at floor(base steps), and the public ports
        # advance a scheduler in the same whole steps. We do not round base steps. Rounding
        # would not change a step decay at a whole base step, but would turn a smooth factor into a
        # staircase.
        factor = self.factor(seen.progress_of(self.over))
        why = f"schedule: lr x{factor:.4g}" if factor != 1.0 else ""
        return state, proposed.scaled(factor, because=why)
