"""Compute the bound on the gradient of plain SGD that the theory of growing batches uses.

    min_t E|grad f|^2 <= bias + variance
    bias     = 2 * gap / (2 - L * lr_max) / sum lr_t
    variance = L * variance_1 / (2 - L * lr_max) * sum (lr_t^2 / b_t) / sum lr_t

The gradient of the loss f has the Lipschitz constant L (`smoothness`), and gap = f(start) - inf f.
Gradients are independent and unbiased. One sample's gradient has a variance of at most variance_1,
so the gradient of a batch of b samples has a variance of at most variance_1 / b. Learning rates are
below 2 / L. The bound needs no convexity and does not cover momentum. The bound follows from the
sum over all steps of the inequality

    E f_{t+1} <= E f_t - lr_t * (1 - L * lr_t / 2) * E|grad f_t|^2
                 + L * lr_t^2 * variance_1 / (2 * b_t).

Umeda and Iiduka (2025, arXiv 2508.05302) split their bound into the same two terms. The constants
in this module were derived for largebatch.

Units: L is in 1 / learning rate. The gap is in units of the loss. Variance and bound are in units
of a squared gradient, which is loss / learning rate.
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
    """Hold the constants of a loss that the bound needs.

    >>> Problem(smoothness=1.0, variance=3.0, gap=2.0).gap
    2.0

    Args:
        smoothness: Lipschitz constant L of the gradient, above 0.
        variance: Largest variance of one sample's gradient (tr Sigma) during the run, at least 0.
        gap: Loss at the start minus the infimum of the loss, above 0.

    Raises:
        ValueError: An argument is outside its range.
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
    """Describe training steps with one batch size and one learning rate.

    >>> Stage(steps=100, batch_size=64, lr=0.1).samples
    6400

    Args:
        steps: Number of training steps, not necessarily whole.
        batch_size: Number of samples over all ranks, not necessarily whole.
        lr: Learning rate.

    Raises:
        ValueError: A number is not finite or not above 0.
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
        """Return the cost of the stage: the number of single-sample gradients (SFO complexity)."""
        return self.steps * self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Hold the two terms of the bound, in units of a squared gradient.

    >>> Bound(bias=0.5, variance=0.25).total
    0.75

    Args:
        bias: Term that comes from the loss gap at the start. The bias falls as the sum of learning
            rates grows.
        variance: Term that comes from gradient noise. The variance falls as the batch size grows.
    """

    bias: float
    variance: float

    @property
    def total(self) -> float:
        """Return the bound on the smallest expected squared gradient norm of all steps."""
        return self.bias + self.variance


def gradient_bound(problem: Problem, *, lrs: Series, batch_sizes: Series | float) -> Bound:
    """Return the bound after a number of steps, each with its own learning rate and batch size.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> bound = gradient_bound(one, lrs=[0.5, 0.5, 0.25], batch_sizes=[4, 4, 8])
    >>> round(bound.bias, 4), round(bound.variance, 4)
    (2.1333, 0.2125)

    Args:
        problem: Constants of the loss.
        lrs: Learning rate of each step, of shape [T], at least 0 and below 2 / smoothness.
        batch_sizes: Number of samples in each step, of shape [T], or one number for all steps.

    Raises:
        ValueError: There are no steps, a learning rate is 2 / smoothness or more, or a number is
            outside its range.

    Reference: see the docstring of the module. The constants were derived for largebatch.
    """
    rates = np.asarray(lrs, dtype=np.float64)
    batches = np.broadcast_to(np.asarray(batch_sizes, dtype=np.float64), rates.shape)
    if not (rates.ndim == 1 and rates.size and (rates >= 0.0).all() and rates.any()):
        raise ValueError(
            f"lrs={lrs!r} was given, but lrs must have a learning rate of at least 0 for each "
            "step, and at least one learning rate must be above 0. Pass lrs=[0.1, 0.1]."
        )
    if not (np.isfinite(batches) & (batches > 0.0)).all():
        raise ValueError(
            f"batch_sizes={batch_sizes!r} was given, but each batch size must be a finite number "
            "of samples above 0. Pass batch_sizes=64."
        )
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
    """Return the bound after stages that each have a constant batch size and learning rate.

    The result equals the result of `gradient_bound`, but the sums have only one term per stage.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> stages = Stage(steps=2, batch_size=4, lr=0.5), Stage(steps=1, batch_size=8, lr=0.25)
    >>> round(bound_of_stages(one, stages).total, 4)
    2.3458

    Args:
        problem: Constants of the loss.
        stages: Stages of the run, at least one.

    Raises:
        ValueError: There is no stage, or a learning rate is 2 / smoothness or more.
    """
    if not stages:
        raise ValueError(
            "stages is empty, but the bound needs at least one stage. Pass "
            "[Stage(steps=100, batch_size=64, lr=0.1)]."
        )
    room = stability_room(problem, lr=max(stage.lr for stage in stages))
    travelled = math.fsum(stage.steps * stage.lr for stage in stages)
    noise = math.fsum(stage.steps * stage.lr**2 / stage.batch_size for stage in stages)
    return Bound(
        bias=2.0 * problem.gap / room / travelled,
        variance=problem.smoothness * problem.variance / room * noise / travelled,
    )


def stability_room(problem: Problem, *, lr: float) -> float:
    """Return 2 - L * lr, which is positive for stable learning rates.

    >>> stability_room(Problem(smoothness=4.0, variance=0.0, gap=1.0), lr=0.25)
    1.0

    Args:
        problem: Constants of the loss.
        lr: Learning rate.

    Raises:
        ValueError: The learning rate is 2 / smoothness or more.
    """
    room = 2.0 - problem.smoothness * lr
    if not room > 0.0:
        cap = 2.0 / problem.smoothness
        raise ValueError(
            f"The learning rate {lr:.6g} was given, but the bound holds only for learning rates "
            f"below 2 / smoothness = {cap:.6g}. Pass a smaller learning rate: "
            f"lr=min(lr, {cap / 2:.6g})."
        )
    return room
