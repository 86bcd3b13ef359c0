"""Define a phase of a schedule, and the interface of an optimizer model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from largebatch.workbench.quadratic.spectrum import Array, Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Describe a number of steps at one batch size and one learning rate.

    >>> Phase(batch_size=64, lr=0.1, steps=1000).samples
    64000.0

    Args:
        batch_size: Batch size in samples, above 0. Batch size `math.inf` means a gradient without
            noise.
        lr: Learning rate, finite and at least 0.
        steps: Number of steps, above 0. `HeavyBall` and `AveragedWeights` need a whole number of
            steps.

    Raises:
        ValueError: A number is outside its range.
    """

    batch_size: float
    lr: float
    steps: float

    def __post_init__(self) -> None:
        good = self.batch_size > 0.0 and 0.0 <= self.lr < math.inf and 0.0 < self.steps < math.inf
        if not good:
            raise ValueError(
                f"{self} was given, but a phase needs a batch size above 0, a finite learning rate "
                "of at least 0 and a finite number of steps above 0. Example: "
                "Phase(batch_size=64, lr=0.1, steps=1000)"
            )

    @property
    def samples(self) -> float:
        """Return the number of samples of the phase: batch size times steps."""
        return float(self.batch_size) * float(self.steps)


class Dynamics(Protocol):
    """Define how the steps of an optimizer change the second moments of the weights.

    The moments are an array [rows, D] with one row for each moment that the optimizer needs. A
    value that overflows is infinite or NaN, and `forecast` reports such a run as diverged.

    >>> from largebatch.workbench.quadratic import SGD
    >>> dynamics: Dynamics = SGD()
    >>> spectrum = Spectrum(curvature=[4.0], noise=[0.0], second_moment=[1.0])
    >>> dynamics.max_lr(spectrum)
    0.5
    """

    def start(self, spectrum: Spectrum) -> Array:
        """Return the moments before the first step, [rows, D]."""
        ...

    def advance(self, spectrum: Spectrum, moments: Array, phase: Phase) -> Array:
        """Return the moments after a phase, [rows, D], without changing the arguments."""
        ...

    def second_moment(self, moments: Array) -> Array:
        """Return E theta^2, [D], of the weights at which the loss is computed."""
        ...

    def max_lr(self, spectrum: Spectrum) -> float:
        """Return the smallest learning rate at which a run diverges; `inf` if no run diverges."""
        ...


def whole_steps(phase: Phase, *, who: str) -> int:
    """Return the number of steps of a phase as a whole number.

    >>> whole_steps(Phase(batch_size=1, lr=0.1, steps=3.0), who="HeavyBall")
    3

    Args:
        phase: Phase of a schedule.
        who: Name of the optimizer model, for the error message.

    Raises:
        ValueError: The number of steps is not whole.
    """
    if phase.steps != round(phase.steps):
        raise ValueError(
            f"steps={phase.steps!r} was given, but {who} needs a whole number of steps. Round the "
            f"number: Phase(batch_size={phase.batch_size:g}, lr={phase.lr:g}, "
            f"steps={phase.steps:.0f})"
        )
    return round(phase.steps)
