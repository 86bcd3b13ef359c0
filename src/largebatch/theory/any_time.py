"""Compute the batch size that balances bias and variance in each step, for runs of any length.

    b_t = c * lr_t * (lr_0 + ... + lr_t),      c = L * variance_1 / (2 * gap)

With a constant learning rate, b_t grows linearly with the steps, so it grows as the square root of
the number of samples. With a learning rate that falls as 1 / sqrt(t), b_t is nearly constant. If c
is multiplied by v, the bound on the squared gradient norm is

    2 * gap / (2 - L * lr_max) / S * (1 + (1 + ln(S / lr_0)) / v),

where S is the sum of the learning rates.

The bound is larger, by a logarithmic factor, than the bound for a run of known length with the best
batch size. The logarithmic factor is the price of not fixing the length in advance.

The formulas were derived for largebatch.
"""

from __future__ import annotations

import math

from largebatch.theory.bound import Problem, stability_room
from largebatch.theory.checked import above_zero


def any_time_constant(problem: Problem) -> float:
    """Return the constant c = L * variance_1 / (2 * gap), in samples / learning rate^2.

    >>> any_time_constant(Problem(smoothness=1.0, variance=3.0, gap=2.0))
    0.75

    Args:
        problem: Constants of the loss.

    Reference: none. The formula was derived for largebatch.
    """
    return problem.smoothness * problem.variance / (2.0 * problem.gap)


def any_time_batch_size(*, lr: float, lr_sum: float, constant: float) -> float:
    """Return the batch size of one training step in samples: c * lr_t * (lr_0 + ... + lr_t).

    The result is not rounded.

    >>> round(any_time_batch_size(lr=0.1, lr_sum=1.0, constant=50.0), 6)
    5.0

    Args:
        lr: Learning rate of the training step, above 0.
        lr_sum: Sum of the learning rates of all training steps up to and including this training
            step.
        constant: Constant c, or a multiple of c, in samples / learning rate^2, above 0.

    Raises:
        ValueError: A number is not above 0, or the sum is below the step's own learning rate.

    Reference: none. The formula was derived for largebatch.
    """
    above_zero(
        "any_time_batch_size(lr=0.1, lr_sum=1.0, constant=50.0)",
        lr=lr,
        lr_sum=lr_sum,
        constant=constant,
    )
    if lr_sum < lr:
        raise ValueError(
            f"lr_sum={lr_sum!r} was given, but it must be at least lr={lr!r}, because the sum "
            f"includes the step's own learning rate. Pass lr_sum={lr!r} for the first step."
        )
    return constant * lr * lr_sum


def any_time_bound(
    problem: Problem, *, lr_sum: float, first_lr: float, max_lr: float, multiplier: float = 1.0
) -> float:
    """Return the bound on the squared gradient norm for the batch sizes of `any_time_batch_size`.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> round(any_time_bound(one, lr_sum=100.0, first_lr=0.1, max_lr=0.1), 4)
    0.1875

    Args:
        problem: Constants of the loss.
        lr_sum: Sum of the learning rates of all training steps.
        first_lr: Learning rate of the first training step.
        max_lr: Largest learning rate.
        multiplier: Factor v on `any_time_constant`. The bound also holds for larger batch sizes
            than those of `any_time_batch_size`, but not for smaller batch sizes.

    Raises:
        ValueError: An argument is outside its range, or a learning rate is 2 / smoothness or more.

    Reference: none. The formula was derived for largebatch.
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
            f"first_lr={first_lr!r}, max_lr={max_lr!r} and lr_sum={lr_sum!r} were given, but "
            "first_lr must not be above max_lr or lr_sum. Pass lr_sum=100.0, first_lr=0.1, "
            "max_lr=0.1."
        )
    room = stability_room(problem, lr=max_lr)
    noise = (1.0 + math.log(lr_sum / first_lr)) / multiplier
    return 2.0 * problem.gap / room / lr_sum * (1.0 + noise)
