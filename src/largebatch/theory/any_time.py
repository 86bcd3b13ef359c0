"""The batch that suits every length of a run: bias and variance balanced in every step.

    b_t = c lr_t (lr_0 + ... + lr_t),      c = L variance_1 / (2 gap)

So a constant rate wants a batch that grows linearly in steps, as the square root in samples; a rate
that falls as 1 / sqrt(t) a constant batch. With c times a multiplier v the bound is

    2 gap / (2 - L lr_max) / S * (1 + (1 + ln(S / lr_0)) / v),      S the sum of rates,

a logarithm worse than what a batch chosen for this very length reaches: the price of not naming it.

Derived here.
"""

from __future__ import annotations

import math

from largebatch.theory.bound import Problem, stability_room
from largebatch.theory.checked import above_zero


def any_time_constant(problem: Problem) -> float:
    """c = L variance_1 / (2 gap), in samples / learning rate^2.

    >>> any_time_constant(Problem(smoothness=1.0, variance=3.0, gap=2.0))
    0.75

    Reference: derived here.
    """
    return problem.smoothness * problem.variance / (2.0 * problem.gap)


def any_time_batch_size(*, lr: float, lr_sum: float, constant: float) -> float:
    """The batch of a step, not rounded: c lr_t (lr_0 + ... + lr_t).

    >>> round(any_time_batch_size(lr=0.1, lr_sum=1.0, constant=50.0), 6)
    5.0

    Args:
        lr: learning rate of the step, above 0.
        lr_sum: of all rates up to it, its own included.
        constant: c, or a multiple of it, in samples / learning rate^2, above 0.

    Raises:
        ValueError: a number that is not above 0, or a sum below the step's own rate.

    Reference: derived here.
    """
    above_zero(
        "any_time_batch_size(lr=0.1, lr_sum=1.0, constant=50.0)",
        lr=lr,
        lr_sum=lr_sum,
        constant=constant,
    )
    if lr_sum < lr:
        raise ValueError(
            f"lr_sum has the step's own rate in it, so it is at least lr = {lr!r}; got {lr_sum!r}."
        )
    return constant * lr * lr_sum


def any_time_bound(
    problem: Problem, *, lr_sum: float, first_lr: float, max_lr: float, multiplier: float = 1.0
) -> float:
    """What the bound is at most when the batch follows the law, in units of a squared gradient.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> round(any_time_bound(one, lr_sum=100.0, first_lr=0.1, max_lr=0.1), 4)
    0.1875

    Args:
        problem: of the loss.
        lr_sum: of all steps.
        first_lr, max_lr: of the first step, and the largest.
        multiplier: v, on `any_time_constant`; a batch may be larger than this, never smaller.

    Raises:
        ValueError: a number outside its range, or a rate past 2 / smoothness.

    Reference: derived here.
    """
    above_zero(
        "any_time_bound(problem, lr_sum=100.0, first_lr=0.1, max_lr=0.1)",
        lr_sum=lr_sum,
        first_lr=first_lr,
        max_lr=max_lr,
        multiplier=multiplier,
    )
    if not first_lr <= min(max_lr, lr_sum):
        raise ValueError(
            "first_lr is at most max_lr and lr_sum, as in lr_sum=100.0, first_lr=0.1, max_lr=0.1; "
            f"got {first_lr!r}, {max_lr!r} and {lr_sum!r}."
        )
    room = stability_room(problem, lr=max_lr)
    noise = (1.0 + math.log(lr_sum / first_lr)) / multiplier
    return 2.0 * problem.gap / room / lr_sum * (1.0 + noise)
