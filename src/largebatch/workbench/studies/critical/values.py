"""Define the results of the critical-batch methods as values that `core.codec` can store.

A result is a range. The upper bound `high` is infinite if the critical batch size has no known
upper bound. The lower bound `low` is 0 if the critical batch size has no known lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.analysis.efficiency import Range
from largebatch.analysis.noise import NotEnough
from largebatch.studies.report_text import interval, number
from largebatch.workbench.studies.critical.settings import CriticalMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticalBatch:
    """Hold a critical batch size, or the reason why it is unknown.

    Exactly one of `batch` and `missing` is set.

    >>> print(CriticalBatch(where="0 to 20 %", batch=Range(value=64.0, low=32.0, high=128.0)))
    64 [32, 128]
    >>> print(CriticalBatch(where="0 to 20 %", batch=Range(value=32.0, low=0.0, high=64.0)))
    32, below 64

    Args:
        where: Part of the run that the result describes, or name of the fitted curve.
        start: First point of the described part, as a fraction of the run; None for a whole run.
        stop: Last point of the described part, as a fraction of the run; None for a whole run.
        loss: Loss in the described part of the run, or target loss of a sweep.
        batch: Critical batch size with its confidence interval, in samples.
        missing: Reason why the critical batch size is unknown, and what is needed to find the
            critical batch size.
    """

    where: str
    start: float | None = None
    stop: float | None = None
    loss: float | None = None
    batch: Range | None = None
    missing: NotEnough | None = None

    def __str__(self) -> str:
        if self.batch is None:
            return str(self.missing)
        if self.batch.low <= 0.0 and math.isfinite(self.batch.high):
            return f"{number(self.batch.value)}, below {number(self.batch.high)}"
        return interval(self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Hold the losses of the branches with one batch size from one point of the run.

    Args:
        start: Number of samples that the base run took before the branches start.
        batch_size: Batch size k * B of the branches, in samples.
        base_losses: Loss of the base run at the end of the window, for each seed.
        losses: Loss of the branch at the end of the window, for each seed; infinite if the branch
            diverged.
    """

    start: int
    batch_size: int
    base_losses: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def excess(self) -> tuple[float, ...]:
        """Return the excess loss of each seed, as a fraction of the base run's loss."""
        pairs = zip(self.losses, self.base_losses, strict=True)
        return tuple(loss / base - 1.0 for loss, base in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsToTarget:
    """Hold the number of steps to the target loss at one batch size and learning rate.

    Args:
        batch_size: Number of samples per optimizer step.
        lr: Constant learning rate.
        steps: Number of optimizer steps to the target loss, for each seed that was run; None if
            the run did not reach the target loss.
        lowest: Lowest loss of all runs.
        best: Whether the learning rate is the best one that was tried for the batch size.
    """

    batch_size: int
    lr: float
    steps: tuple[int | None, ...]
    lowest: float
    best: bool = False

    @property
    def known(self) -> tuple[int, ...]:
        """Return the numbers of steps of the runs that reached the target loss."""
        return tuple(steps for steps in self.steps if steps is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Hold the result of one method.

    Args:
        method: Name of the method.
        findings: Critical batch sizes at points along the run, or one for each fitted curve.
        assumes: Description of the result and of what the method assumes, without a final period.
        samples: Number of samples that the method trained on, without evaluation of the loss.
        steps: Number of optimizer steps of the method.
        seconds: Duration of the method in seconds.
        notes: Further remarks without a final period, such as which runs are left out.
        trials: Losses of the branches, for the method "branches".
        runs: Numbers of steps to the target loss, for the method "sweep".
    """

    method: CriticalMethod
    findings: tuple[CriticalBatch, ...]
    assumes: str
    samples: int
    steps: int
    seconds: float
    notes: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    runs: tuple[StepsToTarget, ...] = ()
