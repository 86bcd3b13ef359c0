"""A stage of a schedule, and what an optimizer has to tell to be followed through it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from largebatch.workbench.quadratic.spectrum import Array, Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """So many steps at one batch size and one learning rate.

    >>> Phase(batch_size=64, lr=0.1, steps=1000).samples
    64000.0

    Args:
        batch_size: in samples, above 0; `math.inf` is the gradient without noise.
        lr: learning rate, finite, at least 0.
        steps: above 0; optimizers that do not say otherwise take whole numbers alone.

    Raises:
        ValueError: a number outside its range.
    """

    batch_size: float
    lr: float
    steps: float

    def __post_init__(self) -> None:
        good = self.batch_size > 0.0 and 0.0 <= self.lr < math.inf and 0.0 < self.steps < math.inf
        if not good:
            raise ValueError(
                "A phase has a batch above 0, a finite rate of at least 0 and a finite number of "
                f"steps above 0, as in Phase(batch_size=64, lr=0.1, steps=1000); got {self}."
            )

    @property
    def samples(self) -> float:
        """Batch size times steps."""
        return float(self.batch_size) * float(self.steps)


class Dynamics(Protocol):
    """How steps move second moments; one row of [D] for each moment that the optimizer keeps.

    What overflows is infinite or not a number, and `forecast` takes it for a run that diverged.
    """

    def start(self, spectrum: Spectrum) -> Array:
        """The moments before the first step, [rows, D]."""
        ...

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        """The moments after a phase, [rows, D]; nothing of what is given changes."""
        ...

    def second_moment(self, moments: Array) -> Array:
        """E theta^2, [D], of the weights that the loss is taken at."""
        ...

    def max_lr(self, spectrum: Spectrum) -> float:
        """The rate from which on the run diverges; `inf` if there is none."""
        ...


def whole_steps(phase: Phase, *, who: str) -> int:
    """The steps of a phase for an optimizer that has no part of a step.

    >>> whole_steps(Phase(batch_size=1, lr=0.1, steps=3.0), who="HeavyBall")
    3

    Raises:
        ValueError: not a whole number.
    """
    if phase.steps != round(phase.steps):
        raise ValueError(
            f"{who} takes whole steps; got {phase.steps!r}. Round them: "
            f"Phase(batch_size={phase.batch_size:g}, lr={phase.lr:g}, steps={phase.steps:.0f})."
        )
    return round(phase.steps)
