"""Raise the learning rate gradually to the scaled learning rate over the first part of the run.

    lr = (start + (1 - start) * min(x / fraction, 1)) * scaled lr,    start = 1 / S

x is the fraction of the budget that was used before the current step. After `LinearScaling`, the
warm-up therefore begins at the base learning rate and ends at S times the base learning rate.

Goyal, Dollar, Girshick, Noordhuis, Wesolowski, Kyrola, Tulloch, Jia, He: Accurate, Large Minibatch
SGD: Training ImageNet in 1 Hour, 2017, arXiv 1706.02677, section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import DefaultFacts


def warmup_factor(*, progress: float, fraction: float, start: float) -> float:
    """Return start + (1 - start) * min(progress / fraction, 1), which rises linearly from `start`
    to 1.

    >>> warmup_factor(progress=0.25, fraction=0.5, start=0.25)
    0.625

    Args:
        progress: Used fraction of the budget, in [0, 1].
        fraction: Fraction of the budget that the warm-up takes, above 0.
        start: Factor at progress 0.
    """
    if progress >= fraction:
        return 1.0
    return start + (1.0 - start) * progress / fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp(DefaultFacts):
    """Multiply the learning rate by a factor that rises linearly to 1.

    >>> rule, proposed = WarmUp(fraction=0.1), Decision(next_batch_size=256, base_steps=4)
    >>> seen = Measurement(step=0, samples=0, base_steps=0, batch_size=256, base_batch_size=64,
    ...     budget=Budget(samples=10_000))
    >>> rule.update(None, seen, proposed)[1].lr_multiplier
    0.25

    Args:
        fraction: Fraction of the budget that the warm-up takes, in (0, 1]. The default, 5.5 %, is
            the value in AdaScale's baseline with linear scaling (arXiv 2007.05105).
        start: First factor, in [0, 1]; None for 1 / S of the current batch, so that there is no
            warm-up if S <= 1.
        over: Length that the fraction refers to, as an `lb.Budget`; None for the run's budget.

    Raises:
        ValueError: If `fraction` is outside (0, 1] or `start` is outside [0, 1]. If neither the run
            nor the warm-up has a length, the first step raises ValueError.

    Reference: Goyal et al., 2017, arXiv 1706.02677, section 2.2.
    """

    fraction: float = 0.055
    start: float | None = None
    over: Budget | None = None

    changes = frozenset({"lr"})
    references = ("goyal2017accurate",)
    forbids = frozenset({"WarmUp", "Legw"})

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0 or not 0.0 <= (self.start or 0.0) <= 1.0:
            raise ValueError(
                f"{self} was given, but fraction must be in (0, 1] and start in [0, 1]. "
                "Example: WarmUp(fraction=0.055, start=0.1)"
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.over is not None else frozenset({"budget"})

    def init(self) -> None:
        return None

    def update(self, state: None, seen: Measurement, proposed: Decision) -> tuple[None, Decision]:
        start = min(1.0 / seen.scale, 1.0) if self.start is None else self.start
        progress = seen.progress_of(self.over)
        factor = warmup_factor(progress=progress, fraction=self.fraction, start=start)
        why = f"warm-up: lr x{factor:.4g}" if factor != 1.0 else ""
        return state, proposed.scaled(factor, because=why)
