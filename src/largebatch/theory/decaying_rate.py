"""Compute steps and samples at a constant batch size if the learning rate falls as lr / t^a.

The symbol t is the number of the training step.

    bound after T steps <= (bias + noise / b) / T^q,      q = min(a, 1 - a)
    steps T(b) = ((bias + noise / b) / target)^(1 / q)
    critical batch b* = (1 / q - 1) * noise / bias, for every target

In the exact bound, the bias term falls as T^(a - 1). The noise term falls as T^(-a) if a is below
1/2, and as T^(a - 1) if a is above 1/2. This module uses the slower of the two powers for both
terms, so b* is the critical batch size of a looser bound than the exact bound. At a = 1/2 the noise
term has a factor log T, and b* has no closed form.

The formulas and their constants were derived for largebatch. Imaizumi and Iiduka (2024, arXiv
2402.15344) state that decaying learning rates have a critical batch size, which needs the fewest
samples. The constants in the paper may differ from the constants in this module.
"""

from __future__ import annotations

import math

from largebatch.theory.bound import Problem
from largebatch.theory.checked import above_zero
from largebatch.theory.constant_rate import RateTerms, rate_terms

LARGEST = 709.0
"""Largest x for which exp(x) is a finite float. Numbers of steps above exp(709) count as infinite.
"""


def decaying_rate_terms(problem: Problem, *, lr: float, decay: float) -> RateTerms:
    """Return the constants of the bound for the learning rate lr / t^decay in step t = 1, 2, ...

    The constants follow from two facts: sum t^(-a) >= T^(1 - a), and sum t^(-2 * a) is at most T^(1
    - 2 * a) / (1 - 2 * a) for a < 1/2, or 2 * a / (2 * a - 1) for a > 1/2.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> decaying_rate_terms(one, lr=0.5, decay=0.25).noise
    2.0

    Args:
        problem: Constants of the loss.
        lr: Learning rate of the first step, in (0, 2 / smoothness).
        decay: Exponent a, in (0, 1) but not 1/2.

    Raises:
        ValueError: The learning rate or the exponent is outside its range.

    Reference: none. The formula was derived for largebatch.
    """
    slowest_power(decay)
    terms = rate_terms(problem, lr=lr)
    factor = 1.0 / (1.0 - 2.0 * decay) if decay < 0.5 else 2.0 * decay / (2.0 * decay - 1.0)
    return RateTerms(bias=terms.bias, noise=terms.noise * factor)


def slowest_power(decay: float) -> float:
    """Return q = min(a, 1 - a): the bound falls as the number of steps to the power -q.

    >>> slowest_power(0.75)
    0.25

    Args:
        decay: Exponent a, in (0, 1) but not 1/2.

    Raises:
        ValueError: The exponent is outside (0, 1), or it is 1/2.
    """
    if not 0.0 < decay < 1.0 or decay == 0.5:
        raise ValueError(
            f"decay={decay!r} was given, but the exponent of lr / t^decay must be in (0, 1) and "
            "must not be 0.5. Pass decay=0.25. For 0.5, use gradient_bound(problem, lrs=...)."
        )
    return min(decay, 1.0 - decay)


def decaying_steps_needed(
    terms: RateTerms, *, decay: float, batch_size: float, target_sqnorm: float
) -> float:
    """Return the number of steps until the bound of this module reaches the target.

    Every batch size reaches the target.

    >>> round(decaying_steps_needed(
    ...     RateTerms(bias=40.0, noise=6.0), decay=1 / 3, batch_size=0.3, target_sqnorm=0.25))
    13824000

    Args:
        terms: Constants of the bound, with floor 0.
        decay: Exponent a, in (0, 1) but not 1/2.
        batch_size: Batch size b in samples, above 0.
        target_sqnorm: Squared gradient norm to reach, above 0.

    Raises:
        ValueError: An argument is outside its range, or the floor is not 0.

    Reference: see the docstring of the module. The formula was derived for largebatch.
    """
    above_zero(
        "decaying_steps_needed(terms, decay=0.25, batch_size=64, target_sqnorm=0.25)",
        batch_size=batch_size,
        target_sqnorm=target_sqnorm,
    )
    excess = (terms.bias + terms.noise / batch_size) / target_sqnorm
    exponent = math.log(excess) / _power_of(terms, decay)
    return math.exp(exponent) if exponent < LARGEST else math.inf


def decaying_critical_batch_size(terms: RateTerms, *, decay: float) -> float:
    """Return the batch size that needs the fewest samples: (1 / q - 1) * noise / bias.

    Arguments and errors are the same as for `decaying_steps_needed`.

    >>> round(decaying_critical_batch_size(RateTerms(bias=40.0, noise=6.0), decay=0.25), 6)
    0.45
    """
    return (1.0 / _power_of(terms, decay) - 1.0) * terms.noise / terms.bias


def decaying_fewest_samples(terms: RateTerms, *, decay: float, target_sqnorm: float) -> float:
    """Return the number of samples to the target at the critical batch size, or 0 without noise.

    Arguments and errors are the same as for `decaying_steps_needed`.

    >>> terms = RateTerms(bias=40.0, noise=6.0)
    >>> round(decaying_fewest_samples(terms, decay=1 / 3, target_sqnorm=0.25))
    4147200
    """
    batch = decaying_critical_batch_size(terms, decay=decay)
    if batch == 0.0:
        return 0.0
    return batch * decaying_steps_needed(
        terms, decay=decay, batch_size=batch, target_sqnorm=target_sqnorm
    )


def _power_of(terms: RateTerms, decay: float) -> float:
    if terms.floor:
        raise ValueError(
            f"{terms} was given, but the formulas for a decaying learning rate require floor=0. "
            "Pass decaying_rate_terms(problem, lr=0.1, decay=0.25)."
        )
    return slowest_power(decay)
