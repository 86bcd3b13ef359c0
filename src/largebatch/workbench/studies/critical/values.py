"""What the methods for the critical batch found: plain values, which `core.codec` writes and reads.

A range says what is known: `high` is infinite where nothing bounds it, `low` is 0 where it is only
known that the critical batch is below `high`.
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
    """A critical batch, or the reason why it is unknown; exactly one of the two is set.

    >>> print(CriticalBatch(where="0 to 20 %", batch=Range(value=64.0, low=32.0, high=128.0)))
    64 [32, 128]
    >>> print(CriticalBatch(where="0 to 20 %", batch=Range(value=32.0, low=0.0, high=64.0)))
    32, surely below 64

    Args:
        where: of the run, or the curve it is read from.
        start, stop: where, as fractions of the run; None where it holds for a whole run.
        loss: there.
        batch: in samples.
        missing: what is needed for a number.
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
            return f"{number(self.batch.value)}, surely below {number(self.batch.high)}"
        return interval(self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Branches of one batch from one point of the run.

    Args:
        start: samples of the base run at the fork.
        batch_size: k B, in samples.
        base_losses: of each seed, at the end of the base branch's window.
        losses: of each seed, at the end of this one's; infinite where it diverged.
    """

    start: int
    batch_size: int
    base_losses: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def excess(self) -> tuple[float, ...]:
        """Each seed's loss over that of its base branch, as a share of it."""
        pairs = zip(self.losses, self.base_losses, strict=True)
        return tuple(loss / base - 1.0 for loss, base in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsToTarget:
    """Runs of one batch and rate towards the target.

    Args:
        batch_size: in samples.
        lr: learning rate, constant.
        steps: of each seed that was run; None where the target was not reached.
        lowest: the lowest loss that any of them showed.
        best: whether this rate is the one that counts for its batch.
    """

    batch_size: int
    lr: float
    steps: tuple[int | None, ...]
    lowest: float
    best: bool = False

    @property
    def known(self) -> tuple[int, ...]:
        """Steps of the runs that reached it."""
        return tuple(steps for steps in self.steps if steps is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of one method.

    Args:
        method: its name.
        findings: along the run, or one for each curve.
        assumes: what has to be true for it, in a line.
        samples, steps: of training that were spent on it; judging the loss comes on top.
        seconds: that it took.
        notes: what else there is to know, such as runs left out.
        trials: the branches.
        runs: the sweep's.
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
