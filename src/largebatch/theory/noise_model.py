"""Where larger batches and longer delays stop paying when the noise grows with the gradient.

    variance of one sample's gradient <= M |grad f|^2 + v
    steps to |grad f|^2 <= eps  ~  L gap (v / (B eps^2) + (1 + M / B + delay) / eps)
    critical batch and delay    M + v / eps
    learning rate               at most 1 / (L (1 + M / B + delay))

up to constants, for an L-smooth loss, a batch of B and gradients that are `delay` steps old. With
|grad f|^2 = eps the critical batch B* is the noise scale. Without delay the steps are proportional
to 1 + B* / B: those at B* are twice those of an infinite batch, and 4/3 of those at 2 B* (derived
here). Below B = M the rate can grow with the batch, above it cannot.

Stich, Mohtashami, Jaggi: Critical Parameters for Scalable Distributed Learning with Large Batches
and Asynchronous Updates, 2021, arXiv 2103.02351. The paper states that one number of the data
decides where both batch and delay stop paying. Without delay the formulas are derived here. With
delay they are recalled from memory. No constant was compared with the paper's text.
"""

from __future__ import annotations

from largebatch.theory.checked import above_zero, not_negative

EXAMPLE = "relative_variance=50.0, variance_floor=4.0, target_sqnorm=0.1"


def noise_model_variance(
    *, sqnorm: float, relative_variance: float, variance_floor: float
) -> float:
    """The variance of one sample's gradient in the model: M |grad f|^2 + v.

    A line through measured pairs (squared norm, variance) of a run has slope M and intercept v.

    >>> noise_model_variance(sqnorm=0.1, relative_variance=50.0, variance_floor=4.0)
    9.0

    Args:
        sqnorm: |grad f|^2, at least 0.
        relative_variance: M, in samples, at least 0.
        variance_floor: v, what is left where the gradient vanishes, at least 0.

    Raises:
        ValueError: a number outside its range.

    Reference: Stich et al., 2021, arXiv 2103.02351.
    """
    not_negative(
        f"noise_model_variance(sqnorm=0.1, {EXAMPLE.rpartition(',')[0]})",
        sqnorm=sqnorm,
        relative_variance=relative_variance,
        variance_floor=variance_floor,
    )
    return relative_variance * sqnorm + variance_floor


def noise_model_critical_batch_size(
    *, relative_variance: float, variance_floor: float, target_sqnorm: float
) -> float:
    """The batch, and the delay, up to which more costs hardly any samples: M + v / eps.

    >>> noise_model_critical_batch_size(
    ...     relative_variance=50.0, variance_floor=4.0, target_sqnorm=0.1)
    90.0

    Args:
        relative_variance, variance_floor: M and v, at least 0.
        target_sqnorm: eps, the squared gradient norm to reach, above 0.

    Raises:
        ValueError: a number outside its range.

    Reference: Stich et al., 2021, arXiv 2103.02351; derived here up to constants.
    """
    _check(relative_variance, variance_floor, target_sqnorm)
    return relative_variance + variance_floor / target_sqnorm


def noise_model_steps(
    *,
    batch_size: float,
    relative_variance: float,
    variance_floor: float,
    target_sqnorm: float,
    smoothness: float,
    gap: float,
    delay: float = 0.0,
) -> float:
    """Steps to the target, up to a constant: L gap (v / (B eps^2) + (1 + M / B + delay) / eps).

    >>> round(noise_model_steps(batch_size=90, relative_variance=50.0, variance_floor=4.0,
    ...     target_sqnorm=0.1, smoothness=2.0, gap=10.0))
    400

    Args:
        batch_size: B, in samples, above 0.
        relative_variance, variance_floor, target_sqnorm: M, v and eps.
        smoothness: L, above 0.
        gap: loss at the start less its infimum, above 0.
        delay: by how many steps gradients are old, at least 0.

    Raises:
        ValueError: a number outside its range.

    Reference: Stich et al., 2021, arXiv 2103.02351; derived here without delay, recalled with it.
    """
    _check(relative_variance, variance_floor, target_sqnorm)
    example = f"noise_model_steps(batch_size=90, {EXAMPLE}, smoothness=2.0, gap=10.0)"
    above_zero(example, batch_size=batch_size, smoothness=smoothness, gap=gap)
    not_negative(example, delay=delay)
    noise = variance_floor / (batch_size * target_sqnorm**2)
    descent = (1.0 + relative_variance / batch_size + delay) / target_sqnorm
    return smoothness * gap * (noise + descent)


def noise_model_max_rate(
    *, batch_size: float, relative_variance: float, smoothness: float, delay: float = 0.0
) -> float:
    """The largest learning rate, up to a constant: 1 / (L (1 + M / B + delay)).

    >>> noise_model_max_rate(batch_size=50, relative_variance=50.0, smoothness=2.0)
    0.25

    Arguments and errors are those of `noise_model_steps`.

    Reference: Stich et al., 2021, arXiv 2103.02351; derived here without delay, recalled with it.
    """
    example = "noise_model_max_rate(batch_size=50, relative_variance=50.0, smoothness=2.0)"
    above_zero(example, batch_size=batch_size, smoothness=smoothness)
    not_negative(example, relative_variance=relative_variance, delay=delay)
    return 1.0 / (smoothness * (1.0 + relative_variance / batch_size + delay))


def _check(relative_variance: float, variance_floor: float, target_sqnorm: float) -> None:
    example = f"noise_model_critical_batch_size({EXAMPLE})"
    not_negative(example, relative_variance=relative_variance, variance_floor=variance_floor)
    above_zero(example, target_sqnorm=target_sqnorm)
