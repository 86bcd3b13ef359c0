"""Steps and samples at a constant batch where the rate falls as lr / t^a in step t.

    bound after T steps <= (bias + noise / b) / T^q,      q = min(a, 1 - a)
    steps T(b) = ((bias + noise / b) / target)^(1 / q)
    critical batch b* = (1 / q - 1) noise / bias, whatever the target

The bound's two terms fall as T^(a - 1) and T^-a (or T^(a - 1) both, for a above 1/2); the slower of
the two powers is written for both, so b* is that of this looser bound. At a = 1/2 the noise has a
factor log T and no closed form.

Derived here, constants included. That the critical batch of decaying rates exists and minimises the
samples is what Imaizumi and Iiduka state (2024, arXiv 2402.15344); their constants may differ.
"""

from __future__ import annotations

import math

from largebatch.theory.bound import Problem
from largebatch.theory.checked import above_zero
from largebatch.theory.constant_rate import RateTerms, rate_terms

LARGEST = 709.0
"""Exponent of e up to which a float is finite; more steps than that count as infinite."""


def decaying_rate_terms(problem: Problem, *, lr: float, decay: float) -> RateTerms:
    """The constants of the bound for the rate lr / t^decay in step t = 1, 2, ...

    From sum t^-a >= T^(1 - a), and sum t^-2a <= T^(1 - 2a) / (1 - 2a) for a < 1/2, or at most
    2a / (2a - 1) for a > 1/2.

    >>> one = Problem(smoothness=1.0, variance=3.0, gap=2.0)
    >>> decaying_rate_terms(one, lr=0.5, decay=0.25).noise
    2.0

    Args:
        problem: of the loss.
        lr: of the first step, in (0, 2 / smoothness).
        decay: a, in (0, 1) but not 1/2.

    Raises:
        ValueError: a rate or a decay outside its range.

    Reference: derived here.
    """
    slowest_power(decay)
    terms = rate_terms(problem, lr=lr)
    factor = 1.0 / (1.0 - 2.0 * decay) if decay < 0.5 else 2.0 * decay / (2.0 * decay - 1.0)
    return RateTerms(bias=terms.bias, noise=terms.noise * factor)


def slowest_power(decay: float) -> float:
    """q = min(a, 1 - a), with which power of the steps the bound falls.

    >>> slowest_power(0.75)
    0.25

    Raises:
        ValueError: a decay outside (0, 1), or 1/2.
    """
    if not 0.0 < decay < 1.0 or decay == 0.5:
        raise ValueError(
            "decay is the exponent of lr / t^decay, in (0, 1) but not 0.5, where a factor log T "
            f"appears: take gradient_bound(problem, lrs=...) there; got {decay!r}."
        )
    return min(decay, 1.0 - decay)


def decaying_steps_needed(
    terms: RateTerms, *, decay: float, batch_size: float, target_sqnorm: float
) -> float:
    """Steps until the looser bound is at the target; every batch reaches it.

    >>> round(decaying_steps_needed(
    ...     RateTerms(bias=40.0, noise=6.0), decay=1 / 3, batch_size=0.3, target_sqnorm=0.25))
    13824000

    Args:
        terms: constants of the bound, without a floor.
        decay: a, in (0, 1) but not 1/2.
        batch_size: b, in samples, above 0.
        target_sqnorm: the squared gradient norm to reach, above 0.

    Raises:
        ValueError: a number outside its range, or terms with a floor.

    Reference: see the module; derived here.
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
    """The batch with fewest samples: (1 / q - 1) noise / bias.

    >>> round(decaying_critical_batch_size(RateTerms(bias=40.0, noise=6.0), decay=0.25), 6)
    0.45

    Arguments and errors are those of `decaying_steps_needed`.
    """
    return (1.0 / _power_of(terms, decay) - 1.0) * terms.noise / terms.bias


def decaying_fewest_samples(terms: RateTerms, *, decay: float, target_sqnorm: float) -> float:
    """Samples to the target at the critical batch; 0 without noise.

    >>> terms = RateTerms(bias=40.0, noise=6.0)
    >>> round(decaying_fewest_samples(terms, decay=1 / 3, target_sqnorm=0.25))
    4147200

    Arguments and errors are those of `decaying_steps_needed`.
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
            "the formulas of a decaying rate are for terms without a floor, as those of "
            f"decaying_rate_terms(problem, lr=0.1, decay=0.25); got {terms}."
        )
    return slowest_power(decay)
