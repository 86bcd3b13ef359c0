"""Make synthetic training losses of a warm-up with a known minimum.

    loss(u) = scale (shape(u) + level noise),    u in [0, 1) is the fraction of the warm-up

Scale, length, noise level and shape depend on the seed. With many seeds, the losses test a rule
that detects a rise of the loss: how often it detects a true rise, and how often it raises a false
alarm.
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
"""Function from a generator and a number of steps to noise whose variance is 1 at the start."""

LENGTHS = (100, 300, 1000)
"""Numbers of steps of a warm-up."""

LEVELS = (0.05, 0.15, 0.45)
"""Standard deviations of the noise. The loss falls by 1.8 in total."""

CHECKS = 50
"""Length of the longest warm-up, in epochs."""

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
"""Shapes of the rise, as functions of the fraction of the way from the minimum to the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """Hold the losses of a warm-up.

    Args:
        losses: Loss of each step.
        minimum: Fraction of the warm-up at which the loss without noise starts to rise; None if
            the loss does not rise.
    """

    losses: tuple[float, ...]
    minimum: float | None = None


def white(generator: np.random.Generator, steps: int) -> Row:
    """Return independent noise."""
    return generator.standard_normal(steps)


def sluggish(generator: np.random.Generator, steps: int) -> Row:
    """Return noise with an autocorrelation of 0.9 between successive steps."""
    noise = generator.standard_normal(steps)
    for step in range(1, steps):
        noise[step] = 0.9 * noise[step - 1] + (1.0 - 0.9**2) ** 0.5 * noise[step]
    return noise


def growing(generator: np.random.Generator, steps: int) -> Row:
    """Return noise whose standard deviation grows by a factor of 5 along the warm-up."""
    return generator.standard_normal(steps) * np.linspace(1.0, 5.0, steps)


def plateau(seed: int, *, noise: Noise = white) -> LossCurve:
    """Return a constant loss with noise.

    >>> plateau(1).minimum is None, len(plateau(1).losses) in LENGTHS
    (True, True)
    """
    generator, steps = _begin(seed, kind=0)
    return _curve(np.full(steps, 2.3), generator, seed=seed, noise=noise)


def falling(seed: int, *, noise: Noise = white) -> LossCurve:
    """Return a falling loss with noise, in one of the shapes of FALLS."""
    generator, steps = _begin(seed, kind=1)
    fall = FALLS[seed // len(LEVELS) % len(FALLS)]
    return _curve(fall(np.arange(steps) / steps), generator, seed=seed, noise=noise)


def valley(seed: int, *, noise: Noise = white) -> LossCurve:
    """Return a loss with noise that falls and then rises, in one of the shapes of RISES.

    The minimum is at 30 to 80 % of the warm-up.

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
    """Yield the decisions of a rule for given losses, which do not depend on the learning rate.

    The run has twice as many steps as the warm-up, and the base learning rate is 1.

    Args:
        rule: Rule or chain of rules.
        losses: Loss of each step.
        warm_up: Number of steps of the longest warm-up, which lasts CHECKS epochs.
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
