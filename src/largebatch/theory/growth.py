"""Compute how fast the bound falls if batch size, learning rate and steps grow at each stage.

    batch b * d^m,   learning rate lr * g^m,   steps K * k^m      in stage m = 0, 1, ...
    sum of lr ~ (g * k)^M,   sum of lr^2 / batch ~ (g^2 * k / d)^M,   samples N ~ (d * k)^M
    bound ~ N^(-s),   s = ln(g * k) / ln(d * k) if g^2 * k <= d,   else ln(d / g) / ln(d * k)

The exponent s is at most 1/2. The exponent s is exactly 1/2 on the growth relation d = g^2 * k
(delta = gamma^2 * kappa), where the bound also has a factor equal to the number of stages. If the
batch size doubles per stage and all stages have equally many steps, the learning rate should grow
by sqrt(2) per stage. If the batch size and the number of steps double per stage, the learning rate
should stay constant. The growth relation is asymptotic and holds for learning rates far below 2 /
L, so a growing learning rate cannot follow the growth relation forever. Growth saves samples if the
target is not known in advance. For one fixed target, no schedule needs fewer samples than a
schedule whose batch sizes are proportional to its learning rates. In a schedule with a constant
batch size and a constant learning rate, batch sizes are proportional to learning rates, too.

The formulas were derived for largebatch. Iiduka and Umeda (Optimal Growth Schedules for Batch Size
and Learning Rate in SGD that Reduce SFO Complexity, 2025, arXiv 2508.05297) also ask how fast batch
size and learning rate should grow. The text of Iiduka and Umeda's theorems was not available. The
program of Iiduka and Umeda for a follow-up paper uses d ~ g^2 as its guideline.
"""

from __future__ import annotations

import math

from largebatch.theory.checked import above_zero

LARGEST = 709.0
"""Largest x for which exp(x) is a finite float."""


def batch_growth_on_relation(*, lr_growth: float, steps_growth: float = 1.0) -> float:
    """Return the growth factor of the batch size on the growth relation: d = g^2 * k.

    >>> batch_growth_on_relation(lr_growth=1.0, steps_growth=2.0)
    2.0

    Args:
        lr_growth: Factor g of the learning rate from stage to stage, above 0.
        steps_growth: Factor k of the number of optimizer steps from stage to stage, above 0.

    Raises:
        ValueError: A factor is not above 0.

    Reference: see the docstring of the module. The formula was derived for largebatch.
    """
    above_zero("growth(lr_growth=1.4)", lr_growth=lr_growth, steps_growth=steps_growth)
    return lr_growth**2 * steps_growth


def lr_growth_on_relation(*, batch_growth: float, steps_growth: float = 1.0) -> float:
    """Return the growth factor of the learning rate on the growth relation: g = sqrt(d / k).

    Arguments and errors are the same as for `bound_exponent`.

    >>> round(lr_growth_on_relation(batch_growth=2.0), 4)
    1.4142
    """
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, steps_growth=steps_growth)
    return math.sqrt(batch_growth / steps_growth)


def steps_growth_on_relation(*, batch_growth: float, lr_growth: float = 1.0) -> float:
    """Return the growth factor of a stage's steps on the growth relation: k = d / g^2.

    On the growth relation, the samples (or epochs) of a stage grow by (d / g)^2. Arguments and
    errors are the same as for `bound_exponent`.

    >>> steps_growth_on_relation(batch_growth=2.0)
    2.0
    """
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, lr_growth=lr_growth)
    return batch_growth / lr_growth**2


def bound_exponent(*, batch_growth: float, lr_growth: float, steps_growth: float) -> float:
    """Return the exponent s of bound ~ samples^(-s), which is 1/2 only on the growth relation.

    The exponent is 0 if the bound stays constant, and negative if noise makes the bound grow.

    >>> round(bound_exponent(batch_growth=2.0, lr_growth=2**0.5, steps_growth=1.0), 6)
    0.5
    >>> round(bound_exponent(batch_growth=2.0, lr_growth=1.3, steps_growth=1.0), 3)
    0.379
    >>> round(bound_exponent(batch_growth=2.0, lr_growth=1.7, steps_growth=1.0), 3)
    0.234

    Args:
        batch_growth: Factor d of the batch size from stage to stage, above 0.
        lr_growth: Factor g of the learning rate from stage to stage, above 0.
        steps_growth: Factor k of the number of optimizer steps from stage to stage, above 0.

    Raises:
        ValueError: A factor is not above 0, or the samples per stage do not grow (d * k <= 1).

    Reference: see the docstring of the module. The formula was derived for largebatch.
    """
    samples = _samples_growth(batch_growth, steps_growth)
    above_zero("growth(lr_growth=1.4)", lr_growth=lr_growth)
    travelled = max(math.log(lr_growth * steps_growth), 0.0)
    noise = max(math.log(lr_growth**2 * steps_growth / batch_growth), 0.0)
    return (travelled - noise) / math.log(samples)


def steps_exponent(*, batch_growth: float, steps_growth: float) -> float:
    """Return the exponent u of steps ~ samples^u: ln k / ln(d * k).

    The exponent is 0 if the steps grow logarithmically or stay constant. Arguments and errors are
    the same as for `bound_exponent`.

    >>> steps_exponent(batch_growth=2.0, steps_growth=2.0)
    0.5
    """
    samples = _samples_growth(batch_growth, steps_growth)
    return max(math.log(steps_growth), 0.0) / math.log(samples)


def contraction_batch_growth(
    *, curvature: float, smoothness: float, lr: float, steps: float
) -> float:
    """Return the batch growth per stage with which the loss keeps falling geometrically.

    The growth factor is (1 - mu * lr * (2 - L * lr))^(-steps). The growth factor holds for losses
    with |grad f|^2 >= 2 * mu * (f - inf f), such as strongly convex losses. The growth factor
    follows from gap_{t+1} <= (1 - mu * lr * (2 - L * lr)) * gap_t + L * lr^2 * variance_1 / (2 *
    b_t), where the batch size must grow as the gap falls.

    >>> round(contraction_batch_growth(curvature=0.5, smoothness=1.0, lr=1.0, steps=3), 6)
    8.0

    Args:
        curvature: Constant mu, above 0 and at most the smoothness.
        smoothness: Lipschitz constant L of the gradient, above 0.
        lr: Learning rate, in (0, 2 / smoothness).
        steps: Number of steps in one stage, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: none. The formula was derived for largebatch.
    """
    example = "contraction_batch_growth(curvature=0.1, smoothness=1.0, lr=0.5, steps=100)"
    above_zero(example, curvature=curvature, smoothness=smoothness, lr=lr, steps=steps)
    kept = 1.0 - curvature * lr * (2.0 - smoothness * lr)
    if not 0.0 < kept < 1.0 or curvature > smoothness:
        raise ValueError(
            f"curvature={curvature:.6g}, smoothness={smoothness:.6g} and lr={lr:.6g} were given, "
            f"which multiply the loss gap by {kept:.6g} per step. The formula requires curvature "
            f"<= smoothness and a factor in (0, 1). Example: {example}."
        )
    exponent = -steps * math.log(kept)
    return math.exp(exponent) if exponent < LARGEST else math.inf


def _samples_growth(batch_growth: float, steps_growth: float) -> float:
    above_zero("growth(batch_growth=2.0)", batch_growth=batch_growth, steps_growth=steps_growth)
    samples = batch_growth * steps_growth
    if not samples > 1.0:
        raise ValueError(
            f"batch_growth x steps_growth is {samples!r}, but it must be above 1, because a stage "
            "must have more samples than the stage before it. Pass batch_growth=2.0, "
            "steps_growth=1.0."
        )
    return samples
