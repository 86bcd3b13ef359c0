"""What the bound gains where batch, rate and steps grow by a factor from stage to stage.

    batch b d^m,   learning rate lr g^m,   steps K k^m      in stage m = 0, 1, ...
    sum of lr ~ (g k)^M,   sum of lr^2 / batch ~ (g^2 k / d)^M,   samples N ~ (d k)^M
    bound ~ N^-s,   s = ln(g k) / ln(d k) where g^2 k <= d,   ln(d / g) / ln(d k) where g^2 k >= d

s is at most 1/2, reached exactly on the growth relation d = g^2 k (delta = gamma^2 kappa), on which
the bound loses a factor of the number of stages. So a batch that doubles wants the rate times
sqrt(2) at stages of equally many steps, or a constant rate at stages of twice the steps. The
relation is asymptotic and for rates far below 2 / L, which no growing rate stays for ever. Growth
pays where the target is not known beforehand: for one target no schedule needs fewer samples than
a batch in proportion to the rate, a constant pair of them among these.

Derived here. Iiduka and Umeda: Optimal Growth Schedules for Batch Size and Learning Rate in SGD
that Reduce SFO Complexity, 2025, arXiv 2508.05297, ask the same question; the text of their
theorems was not at hand. The authors' program for a follow-up names d ~ g^2 as its guideline.
"""

from __future__ import annotations

import math

from largebatch.theory.checked import above_zero

LARGEST = 709.0
"""Exponent of e up to which a float is finite."""


def batch_growth_on_relation(*, lr_growth: float, steps_growth: float = 1.0) -> float:
    """The factor on the batch that suits the factors on rate and steps: d = g^2 k.

    >>> batch_growth_on_relation(lr_growth=1.0, steps_growth=2.0)
    2.0

    Args:
        lr_growth: g, from stage to stage, above 0.
        steps_growth: k, of optimizer steps a stage, above 0.

    Raises:
        ValueError: a factor that is not above 0.

    Reference: derived here; see the module.
    """
    above_zero("growth(lr_growth=1.4)", lr_growth=lr_growth, steps_growth=steps_growth)
    return lr_growth**2 * steps_growth


def lr_growth_on_relation(*, batch_growth: float, steps_growth: float = 1.0) -> float:
    """The factor on the learning rate that suits those on batch and steps: sqrt(d / k).

    >>> round(lr_growth_on_relation(batch_growth=2.0), 4)
    1.4142

    Arguments and errors are those of `bound_exponent`.
    """
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, steps_growth=steps_growth)
    return math.sqrt(batch_growth / steps_growth)


def steps_growth_on_relation(*, batch_growth: float, lr_growth: float = 1.0) -> float:
    """The factor on a stage's steps that suits those on batch and rate: d / g^2.

    A stage's samples, or epochs, then grow by (d / g)^2.

    >>> steps_growth_on_relation(batch_growth=2.0)
    2.0

    Arguments and errors are those of `bound_exponent`.
    """
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, lr_growth=lr_growth)
    return batch_growth / lr_growth**2


def bound_exponent(*, batch_growth: float, lr_growth: float, steps_growth: float) -> float:
    """s of bound ~ samples^-s: 1/2 on the growth relation, less on both sides of it.

    0 where the bound stays, below 0 where the noise grows it.

    >>> round(bound_exponent(batch_growth=2.0, lr_growth=2**0.5, steps_growth=1.0), 6)
    0.5
    >>> round(bound_exponent(batch_growth=2.0, lr_growth=1.3, steps_growth=1.0), 3)
    0.379
    >>> round(bound_exponent(batch_growth=2.0, lr_growth=1.7, steps_growth=1.0), 3)
    0.234

    Args:
        batch_growth: d, from stage to stage, above 0.
        lr_growth: g, above 0.
        steps_growth: k, of optimizer steps a stage, above 0.

    Raises:
        ValueError: a factor that is not above 0, or stages that shrink, d k <= 1.

    Reference: derived here; see the module.
    """
    samples = _samples_growth(batch_growth, steps_growth)
    above_zero("growth(lr_growth=1.4)", lr_growth=lr_growth)
    travelled = max(math.log(lr_growth * steps_growth), 0.0)
    noise = max(math.log(lr_growth**2 * steps_growth / batch_growth), 0.0)
    return (travelled - noise) / math.log(samples)


def steps_exponent(*, batch_growth: float, steps_growth: float) -> float:
    """u of steps ~ samples^u: ln k / ln(d k); 0 where steps grow as the logarithm, or stay.

    >>> steps_exponent(batch_growth=2.0, steps_growth=2.0)
    0.5

    Arguments and errors are those of `bound_exponent`.
    """
    samples = _samples_growth(batch_growth, steps_growth)
    return max(math.log(steps_growth), 0.0) / math.log(samples)


def contraction_batch_growth(
    *, curvature: float, smoothness: float, lr: float, steps: float
) -> float:
    """The factor on the batch from stage to stage with which the loss keeps falling geometrically.

    (1 - mu lr (2 - L lr))^-steps, for losses with |grad f|^2 >= 2 mu (f - inf f), as strongly
    convex ones: from gap_{t+1} <= (1 - mu lr (2 - L lr)) gap_t + L lr^2 variance_1 / (2 b_t), where
    the batch has to grow as the gap falls.

    >>> round(contraction_batch_growth(curvature=0.5, smoothness=1.0, lr=1.0, steps=3), 6)
    8.0

    Args:
        curvature: mu, above 0, at most the smoothness.
        smoothness: L, above 0.
        lr: in (0, 2 / smoothness).
        steps: of a stage, above 0.

    Raises:
        ValueError: a number outside its range.

    Reference: derived here.
    """
    example = "contraction_batch_growth(curvature=0.1, smoothness=1.0, lr=0.5, steps=100)"
    above_zero(example, curvature=curvature, smoothness=smoothness, lr=lr, steps=steps)
    kept = 1.0 - curvature * lr * (2.0 - smoothness * lr)
    if not 0.0 < kept < 1.0 or curvature > smoothness:
        raise ValueError(
            "the loss contracts where curvature <= smoothness and lr < 2 / smoothness, short of "
            f"being solved in one step, as in {example}; got a factor {kept:.6g} a step."
        )
    exponent = -steps * math.log(kept)
    return math.exp(exponent) if exponent < LARGEST else math.inf


def _samples_growth(batch_growth: float, steps_growth: float) -> float:
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, steps_growth=steps_growth)
    samples = batch_growth * steps_growth
    if not samples > 1.0:
        raise ValueError(
            "batch_growth x steps_growth, by which a stage's samples grow, is above 1, as in "
            f"batch_growth=2.0, steps_growth=1.0; got {samples!r}: such stages use no budget up."
        )
    return samples
