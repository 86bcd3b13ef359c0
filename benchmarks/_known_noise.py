"""Runs of a rule on gradients whose noise scale is known, without a model.

One sample's gradient has the mean G and Gaussian noise in `directions` equal directions, with the
variance V in total. The gradient of a batch of B samples therefore has the variance V / B, and the
noise scale is V / |G|^2 samples. The squared norm |G|^2 may move along the run.
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
"""The number of parts in which a batch of so many samples is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNoise:
    """The noise of one sample's gradient.

    Args:
        variance: in total; the noise scale in samples where the squared norm is 1.
        directions: number of directions with equal noise, at least 2.
    """

    variance: float
    directions: int

    def draw(
        self, rng: np.random.Generator, *, batch_size: int, parts: int, sqnorm: float = 1.0
    ) -> GradientMoments:
        """Draw the moments of one step from their exact distribution.

        The variance of the parts and the squared norm of their mean are independent.

        Args:
            rng: gives three random numbers.
            batch_size: samples of the step.
            parts: equal parts of the batch, at least 2.
            sqnorm: squared norm of the true gradient.
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
    """Measure every batch in so many parts."""
    return lambda batch_size: min(count, batch_size)


def micro_batches(size: int) -> Parts:
    """Measure a batch in micro-batches of at most `size` samples, and in at least two of them."""
    return lambda batch_size: max(math.ceil(batch_size / size), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What a rule decided, step by step.

    Args:
        batch_sizes: of each step, and the one wanted after the last step, [T + 1].
        gains: base steps that each step was worth, [T].
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
    """Run a rule over as many steps as there are squared norms.

    The loss is 1 and the base learning rate is 1. The preconditioned moments are those of the bare
    gradient. A step measures what the rule asked for.

    Args:
        rule: a rule or a chain.
        noise: of one sample's gradient.
        first: batch size of the first step.
        sqnorms: squared norm of the true gradient in each step.
        parts: how a batch is measured.
        seed: of the random numbers.
        base: the base batch size; None is the first batch.
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
    """Squared norms of 1."""
    return np.ones(steps)


def falling(steps: int) -> Array:
    """Squared norms that fall tenfold from the first step to the last one, exponentially."""
    return 10.0 ** -np.linspace(0.0, 1.0, steps)


def rising(steps: int) -> Array:
    """Squared norms that rise tenfold, exponentially, within the middle tenth of the run."""
    at = np.arange(steps) / steps
    return 10.0 ** np.clip((at - 0.45) / 0.1, 0.0, 1.0)


def jumping(steps: int) -> Array:
    """Squared norms that rise tenfold in one step, in the middle of the run."""
    return np.where(np.arange(steps) < steps // 2, 1.0, 10.0)


def first_at_least(values: Array, levels: Array) -> int | None:
    """Return the first index at which a value reaches its level; None if none does."""
    reached = np.flatnonzero(values >= levels)
    return int(reached[0]) if len(reached) else None
