"""Made-up training losses of a warm-up, of which it is known whether and where they turn.

    loss(u) = scale (shape(u) + level noise),    u in [0, 1) the part of the warm-up

Units, lengths, levels and shapes vary with the seed, so that many seeds try a rule that listens to
the loss: how often it hears a rise that is none, and how often one that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Reading
from largebatch.core.rule import Rule

Row = npt.NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], Row]
"""From a generator and a number of steps; its variance is 1 at the start."""

LENGTHS = (100, 300, 1000)
"""Steps of a warm-up."""

LEVELS = (0.05, 0.15, 0.45)
"""Standard deviations of the noise, where the loss falls by 1.8 in all."""

CHECKS = 50
"""Epochs that a warm-up is said to be long."""

FALLS: tuple[Callable[[Row], Row], ...] = (
    lambda u: 0.1 + 2.2 * np.exp(-3.0 * u),
    lambda u: 2.3 - 1.8 * u,
    lambda u: 2.3 - 1.8 * np.minimum(2.0 * u, 1.0),
    lambda u: 2.3 - 1.8 / (1.0 + np.exp(-12.0 * (u - 0.5))),
)
RISES: tuple[Callable[[Row], Row], ...] = (
    lambda u: 3.0 * u,
    lambda u: np.expm1(np.minimum(20.0 * u, 10.0)),
    lambda u: 3.0 * u**2,
)
"""From 0 at the minimum, of the part of the way to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """The losses of a warm-up.

    Args:
        losses: of its steps.
        minimum: the part of the warm-up at which the loss behind the noise turns; None where it
            does not rise.
    """

    losses: tuple[float, ...]
    minimum: float | None = None


def white(generator: np.random.Generator, steps: int) -> Row:
    """Noise without a memory."""
    return generator.standard_normal(steps)


def sluggish(generator: np.random.Generator, steps: int) -> Row:
    """Noise with an autocorrelation of 0.9 from step to step."""
    noise = generator.standard_normal(steps)
    for step in range(1, steps):
        noise[step] = 0.9 * noise[step - 1] + (1.0 - 0.9**2) ** 0.5 * noise[step]
    return noise


def growing(generator: np.random.Generator, steps: int) -> Row:
    """Noise that is five times as large at the end."""
    return generator.standard_normal(steps) * np.linspace(1.0, 5.0, steps)


def plateau(seed: int, *, noise: Noise = white) -> LossCurve:
    """Noise around a loss that stays.

    >>> plateau(1).minimum is None, len(plateau(1).losses) in LENGTHS
    (True, True)
    """
    generator, steps = _begin(seed, kind=0)
    return _curve(np.full(steps, 2.3), generator, seed=seed, noise=noise)


def falling(seed: int, *, noise: Noise = white) -> LossCurve:
    """Noise around a loss that never rises, in the shapes of FALLS."""
    generator, steps = _begin(seed, kind=1)
    fall = FALLS[seed // len(LEVELS) % len(FALLS)]
    return _curve(fall(np.arange(steps) / steps), generator, seed=seed, noise=noise)


def valley(seed: int, *, noise: Noise = white) -> LossCurve:
    """Noise around a loss that turns at 30 to 80 % of the warm-up and rises as RISES.

    >>> 0.3 <= valley(1).minimum <= 0.8
    True
    """
    generator, steps = _begin(seed, kind=2)
    minimum = float(generator.uniform(0.3, 0.8))
    u = np.arange(steps) / steps
    rise = RISES[seed // len(LEVELS) % len(RISES)]
    shape = 2.3 - 1.8 * np.minimum(u / minimum, 1.0)
    shape += rise(np.maximum(u - minimum, 0.0) / (1.0 - minimum))
    return _curve(shape, generator, seed=seed, noise=noise, minimum=minimum)


def open_loop(rule: Rule, losses: Iterable[float], *, warm_up: int) -> Iterator[Decision]:
    """What a rule says about losses that do not heed it, step by step, in a run of twice the
    warm-up's steps; the base rate is 1.

    Args:
        rule: a rule or a chain.
        losses: one a step.
        warm_up: steps of the longest warm-up, of CHECKS epochs.
    """
    decider = Decider.start(
        rule,
        base_batch_size=CHECKS,
        batch_size=CHECKS,
        dataset_size=warm_up,
        budget=Budget(steps=2 * warm_up),
    )
    for loss in losses:
        seen = decider.see(Reading(samples=CHECKS, loss=loss), base_lr=1.0)
        decider, decision = decider.decide(seen)
        yield decision


def _begin(seed: int, *, kind: int) -> tuple[np.random.Generator, int]:
    generator = np.random.default_rng([seed, kind])
    return generator, int(generator.choice(LENGTHS))


def _curve(
    shape: Row,
    generator: np.random.Generator,
    *,
    seed: int,
    noise: Noise,
    minimum: float | None = None,
) -> LossCurve:
    scale = 10.0 ** generator.uniform(-2.0, 2.0)
    losses = shape + LEVELS[seed % len(LEVELS)] * noise(generator, len(shape))
    return LossCurve(losses=tuple((scale * losses).tolist()), minimum=minimum)
