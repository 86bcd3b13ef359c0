"""Compute the largest useful batch size and gradient delay if noise grows with the gradient.

    variance of one sample's gradient <= M * |grad f|^2 + v
    steps to |grad f|^2 <= eps  ~  L * gap * (v / (B * eps^2) + (1 + M / B + delay) / eps)
    critical batch and delay    M + v / eps
    learning rate               at most 1 / (L * (1 + M / B + delay))

The formulas hold up to constants, for an L-smooth loss, a batch of B samples, and gradients that
are `delay` steps old. If |grad f|^2 = eps, the critical batch size B* equals the noise scale.
Without delay the number of steps is proportional to 1 + B* / B. So a batch of B* samples needs
twice the steps of an infinite batch, and 4/3 of the steps of a batch of 2 * B* samples (derived for
largebatch). If B is below M, the learning rate can grow with the batch size. If B is above M, the
learning rate cannot grow further.

Reference: Stich, Mohtashami, Jaggi: Critical Parameters for Scalable Distributed Learning with
Large Batches and Asynchronous Updates, 2021, arXiv 2103.02351. Stich et al. state that one number,
a property of the data, determines both the largest useful batch size and the largest useful delay.
The formulas without delay were derived for largebatch. The formulas with delay were recalled. No
constant was compared with the paper's text.
"""

from __future__ import annotations

from largebatch.theory.checked import above_zero, not_negative

EXAMPLE = "relative_variance=50.0, variance_floor=4.0, target_sqnorm=0.1"


def noise_model_variance(
    *, sqnorm: float, relative_variance: float, variance_floor: float
) -> float:
    """Return the variance of one sample's gradient in the model: M * |grad f|^2 + v.

    A line through measured pairs (squared norm, variance) of a run has slope M and intercept v.

    >>> noise_model_variance(sqnorm=0.1, relative_variance=50.0, variance_floor=4.0)
    9.0

    Args:
        sqnorm: Squared gradient norm |grad f|^2, at least 0.
        relative_variance: Constant M in samples, at least 0.
        variance_floor: Variance v that remains if the gradient is zero, at least 0.

    Raises:
        ValueError: An argument is outside its range.

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
    """Return the largest batch size, or delay, that needs only few additional samples: M + v / eps.

    >>> noise_model_critical_batch_size(
    ...     relative_variance=50.0, variance_floor=4.0, target_sqnorm=0.1)
    90.0

    Args:
        relative_variance: Constant M in samples, at least 0.
        variance_floor: Variance v that remains if the gradient is zero, at least 0.
        target_sqnorm: Squared gradient norm eps to reach, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: Stich et al., 2021, arXiv 2103.02351. The formula was derived for largebatch, up to
    constants.
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
    """Return the number of steps to the target, up to a constant factor.

    The formula is L * gap * (v / (B * eps^2) + (1 + M / B + delay) / eps).

    >>> round(noise_model_steps(batch_size=90, relative_variance=50.0, variance_floor=4.0,
    ...     target_sqnorm=0.1, smoothness=2.0, gap=10.0))
    400

    Args:
        batch_size: Batch size B in samples, above 0.
        relative_variance: Constant M in samples, at least 0.
        variance_floor: Variance v that remains if the gradient is zero, at least 0.
        target_sqnorm: Squared gradient norm eps to reach, above 0.
        smoothness: Lipschitz constant L of the gradient, above 0.
        gap: Loss at the start minus the infimum of the loss, above 0.
        delay: Age of the gradients in steps, at least 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: Stich et al., 2021, arXiv 2103.02351. The formula without delay was derived for
    largebatch; the term with delay was recalled and not compared with the paper's text.
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
    """Return the largest learning rate, up to a constant factor: 1 / (L * (1 + M / B + delay)).

    Arguments and errors are the same as for `noise_model_steps`.

    >>> noise_model_max_rate(batch_size=50, relative_variance=50.0, smoothness=2.0)
    0.25

    Reference: Stich et al., 2021, arXiv 2103.02351. The formula without delay was derived for
    largebatch; the term with delay was recalled and not compared with the paper's text.
    """
    example = "noise_model_max_rate(batch_size=50, relative_variance=50.0, smoothness=2.0)"
    above_zero(example, batch_size=batch_size, smoothness=smoothness)
    not_negative(example, relative_variance=relative_variance, delay=delay)
    return 1.0 / (smoothness * (1.0 + relative_variance / batch_size + delay))


def _check(relative_variance: float, variance_floor: float, target_sqnorm: float) -> None:
    example = f"noise_model_critical_batch_size({EXAMPLE})"
    not_negative(example, relative_variance=relative_variance, variance_floor=variance_floor)
    above_zero(example, target_sqnorm=target_sqnorm)
