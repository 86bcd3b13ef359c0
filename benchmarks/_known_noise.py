"""Run a rule on random gradients with a known noise scale, without a model.

One sample's gradient has the mean G and Gaussian noise of total variance V, spread equally over
`directions` directions. The gradient of a batch of B samples therefore has the variance V / B, and
the noise scale is V / |G|^2 samples. The squared norm |G|^2 can change along the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch import GradientMoments, Rule
from largebatch.core.decider import Decider
from largebatch.core.measurement import Reading

DATASET_SIZE = 60_000
MOMENTS = ("moments", "preconditioned_moments")

Array = NDArray[np.float64]
Parts = Callable[[int], int]
"""Function from a batch size to the number of parts that are measured separately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNoise:
    """Describe the noise of one sample's gradient.

    Args:
        variance: Total variance of one sample's gradient. The variance equals the noise scale in
            samples if the squared norm is 1.
        directions: Number of directions with equal noise, at least 2.
    """

    variance: float
    directions: int

    def draw(
        self, rng: np.random.Generator, *, batch_size: int, parts: int, sqnorm: float = 1.0
    ) -> GradientMoments:
        """Draw the moments of one step from their exact distribution.

        The variance of the parts and the squared norm of their mean are independent.

        Args:
            rng: Random generator, from which three numbers are drawn.
            batch_size: Number of samples of the step.
            parts: Number of equal parts of the batch, at least 2.
            sqnorm: Squared norm of the true gradient.
        """
        freedom = (parts - 1) * self.directions
        each = self.variance / batch_size / self.directions
        along = math.sqrt(sqnorm) + math.sqrt(each) * rng.standard_normal()
        across = each * rng.chisquare(self.directions - 1)
        return GradientMoments(
            batch_size=batch_size,
            parts=parts,
            batch_sqnorm=along * along + across,
            variance=self.variance * rng.chisquare(freedom) / freedom,
        )


def equal_parts(count: int) -> Parts:
    """Return a function that divides every batch into `count` parts."""
    return lambda batch_size: min(count, batch_size)


def micro_batches(size: int) -> Parts:
    """Return a function that divides a batch into at least 2 parts of at most `size` samples."""
    return lambda batch_size: max(math.ceil(batch_size / size), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """Hold the decisions of a rule in every step.

    Args:
        batch_sizes: Batch size of each step, and the batch size decided after the last, [T + 1].
        gains: Number of base steps that each step counted as, [T].
    """

    batch_sizes: Array
    gains: Array


def simulate(
    rule: Rule,
    noise: KnownNoise,
    *,
    first: int,
    sqnorms: Sequence[float] | Array,
    parts: Parts,
    seed: Sequence[int],
    base: int | None = None,
) -> SimulatedRun:
    """Run a rule for as many steps as there are squared norms.

    The loss and the base learning rate are 1. The preconditioned moments equal those of the raw
    gradient. A step measures the statistics that the rule requested.

    Args:
        rule: Rule or chain of rules.
        noise: Noise of one sample's gradient.
        first: Batch size of the first step.
        sqnorms: Squared norm of the true gradient in each step.
        parts: Function from a batch size to the number of parts.
        seed: Seed of the random generator.
        base: Base batch size. By default, the base batch size is the batch size of the first step.
    """
    rng = np.random.default_rng(seed)
    decider = Decider.start(
        rule, base_batch_size=base or first, batch_size=first, dataset_size=DATASET_SIZE
    )
    sizes, gains = [first], []
    for sqnorm in sqnorms:
        size = decider.batch_size
        asked = [name for name in MOMENTS if name in decider.measure]
        moments = (
            noise.draw(rng, batch_size=size, parts=parts(size), sqnorm=float(sqnorm))
            if asked
            else None
        )
        reading = Reading(samples=size, loss=1.0, **dict.fromkeys(asked, moments))
        decider, decision = decider.decide(decider.see(reading, base_lr=1.0))
        sizes.append(decider.batch_size)
        gains.append(decision.base_steps)
    return SimulatedRun(
        batch_sizes=np.array(sizes, dtype=np.float64), gains=np.array(gains, dtype=np.float64)
    )


def steady(steps: int) -> Array:
    """Return squared norms of 1 for every step."""
    return np.ones(steps)


def falling(steps: int) -> Array:
    """Return squared norms that fall exponentially by a factor of 10 along the run."""
    return 10.0 ** -np.linspace(0.0, 1.0, steps)


def rising(steps: int) -> Array:
    """Return squared norms that rise exponentially by a factor of 10 in the middle of the run.

    The rise takes a tenth of the run.
    """
    at = np.arange(steps) / steps
    return 10.0 ** np.clip((at - 0.45) / 0.1, 0.0, 1.0)


def jumping(steps: int) -> Array:
    """Return squared norms that rise by a factor of 10 in one step in the middle of the run."""
    return np.where(np.arange(steps) < steps // 2, 1.0, 10.0)


def first_at_least(values: Array, levels: Array) -> int | None:
    """Return the first index at which a value is at least its level; None if there is none."""
    reached = np.flatnonzero(values >= levels)
    return int(reached[0]) if len(reached) else None
