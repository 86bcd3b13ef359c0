"""The bound on the gradient of plain SGD that the theory of growing batches rests on.

    min_t E|grad f|^2 <= bias + variance
    bias     = 2 gap / (2 - L lr_max) / sum lr_t
    variance = L variance_1 / (2 - L lr_max) * sum (lr_t^2 / b_t) / sum lr_t

for a loss f whose gradient is Lipschitz with constant L (`smoothness`), gap = f(start) - inf f, and
independent unbiased gradients whose variance is at most variance_1 for one sample, so variance_1 /
b for a batch of b. Learning rates are below 2 / L. Neither convexity nor momentum. It is the sum of

    E f_{t+1} <= E f_t - lr_t (1 - L lr_t / 2) E|grad f_t|^2 + L lr_t^2 variance_1 / (2 b_t)

over all steps. Umeda, Iiduka (2025, arXiv 2508.05302) split theirs into the same two terms; the
constants here are derived here.

Units: L is in 1 / learning rate, the gap in units of the loss, variance and bound in units of a
squared gradient, which is loss / learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from largebatch.theory.checked import above_zero, not_negative

Series = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What the bound has to know of a loss.

    Args:
        smoothness: L, the Lipschitz constant of the gradient, above 0.
        variance: of one sample's gradient, its largest value along the run (tr Sigma).
        gap: loss at the start less its infimum, above 0.

    Raises:
        ValueError: a number outside its range.
    """

    smoothness: float
    variance: float
    gap: float

    def __post_init__(self) -> None:
        example = "Problem(smoothness=1.0, variance=3.0, gap=2.0)"
        above_zero(example, smoothness=self.smoothness, gap=self.gap)
        not_negative(example, variance=self.variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps with one batch size and one learning rate.

    >>> Stage(steps=100, batch_size=64, lr=0.1).samples
    6400

    Args:
        steps: need not be whole.
        batch_size: samples over all ranks; need not be whole.
        lr: learning rate.

    Raises:
        ValueError: a number that is not above 0, or not finite.
    """

    steps: float
    batch_size: float
    lr: float

    def __post_init__(self) -> None:
        above_zero(
            "Stage(steps=100, batch_size=64, lr=0.1)",
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
        )

    @property
    def samples(self) -> float:
        """What the stage costs: gradients of single samples (SFO complexity)."""
        return self.steps * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The two terms of the bound, in units of a squared gradient.

    Args:
        bias: what is left of the start; falls with the sum of learning rates.
        variance: what the noise keeps up; falls with the batch.
    """

    bias: float
    variance: float

    @property
    def total(self) -> float:
        """The bound: the least expected squared gradient norm of all steps is at most this."""
        return self.bias + self.variance


def gradient_bound(problem: Problem, *, lrs: Series, batch_sizes: Series | float) -> Bound:
    """The bound after a number of steps, each with its learning rate and batch.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> bound = gradient_bound(one, lrs=[0.5, 0.5, 0.25], batch_sizes=[4, 4, 8])
    >>> round(bound.bias, 4), round(bound.variance, 4)
    (2.1333, 0.2125)

    Args:
        problem: of the loss.
        lrs: learning rate of each step, [T], not negative, below 2 / smoothness.
        batch_sizes: samples of each step, [T], or one number for all.

    Raises:
        ValueError: no steps, a rate past 2 / smoothness, or numbers outside their range.

    Reference: see the module; the constants are derived here.
    """
    rates = np.asarray(lrs, dtype=np.float64)
    batches = np.broadcast_to(np.asarray(batch_sizes, dtype=np.float64), rates.shape)
    if not (rates.ndim == 1 and rates.size and (rates >= 0.0).all() and rates.any()):
        raise ValueError(
            "lrs has a learning rate of at least 0 for each step, not all 0, as in "
            f"lrs=[0.1, 0.1]; got {lrs!r}."
        )
    if not (np.isfinite(batches) & (batches > 0.0)).all():
        raise ValueError(f"batch_sizes are numbers of samples above 0; got {batch_sizes!r}.")
    room = stability_room(problem, lr=float(rates.max()))
    travelled = float(rates.sum())
    return Bound(
        bias=2.0 * problem.gap / room / travelled,
        variance=problem.smoothness
        * problem.variance
        / room
        * float((rates**2 / batches).sum())
        / travelled,
    )


def bound_of_stages(problem: Problem, stages: Sequence[Stage]) -> Bound:
    """The bound after stages of constant batch and rate: `gradient_bound` in one term a stage.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> stages = Stage(steps=2, batch_size=4, lr=0.5), Stage(steps=1, batch_size=8, lr=0.25)
    >>> round(bound_of_stages(one, stages).total, 4)
    2.3458

    Raises:
        ValueError: no stage, or a rate past 2 / smoothness.
    """
    if not stages:
        raise ValueError("the bound is over stages; got none. Give [Stage(steps=..., ...)].")
    room = stability_room(problem, lr=max(stage.lr for stage in stages))
    travelled = math.fsum(stage.steps * stage.lr for stage in stages)
    noise = math.fsum(stage.steps * stage.lr**2 / stage.batch_size for stage in stages)
    return Bound(
        bias=2.0 * problem.gap / room / travelled,
        variance=problem.smoothness * problem.variance / room * noise / travelled,
    )


def stability_room(problem: Problem, *, lr: float) -> float:
    """2 - L lr, the factor that vanishes where a learning rate stops being stable.

    >>> stability_room(Problem(smoothness=4.0, variance=0.0, gap=1.0), lr=0.25)
    1.0

    Raises:
        ValueError: a learning rate of 2 / smoothness or more.
    """
    room = 2.0 - problem.smoothness * lr
    if not room > 0.0:
        cap = 2.0 / problem.smoothness
        raise ValueError(
            f"the bound holds for learning rates below 2 / smoothness = {cap:.6g}; got {lr:.6g}. "
            f"Cap the rate, for example lr=min(lr, {cap / 2:.6g})."
        )
    return room
