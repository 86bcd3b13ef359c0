"""Compute the batch size that reaches a target with the least work, for known losses and constants.

The loss f is the mean of n losses f_i. The loss f is mu-strongly convex and L-smooth, and each f_i
is convex and at most L_max-smooth. A batch has T different samples, drawn uniformly (tau-nice
sampling).

    smoothness(T) = (n * (T - 1) * L + (n - T) * L_max) / (T * (n - 1))
    variance(T)   = (n - T) / (T * (n - 1)) * h,        h = mean |grad f_i|^2
    work(T)       ~ T * max(2 * smoothness(T) / mu, 4 * variance(T) / (eps * mu^2))

The formula for the variance is exact at the optimum. The formula for the smoothness is a weighted
mean of L and L_max. The work is least where the two terms of the maximum are equal, or at a batch
of one sample. Constants such as mu and L are not known for deep networks, so the formulas are only
for comparisons.

Reference: Alfarra, Hanzely, Albasyoni, Ghanem, Richtarik: Adaptive Learning of the Optimal Batch
Size of SGD, 2020, arXiv 2005.01097. The formulas were recalled, were not compared with the paper's
text, and were derived for largebatch. The tests check the formulas by enumerating batches and by
searching all batch sizes for the least work.
"""

from __future__ import annotations

from largebatch.theory.checked import above_zero, not_negative


def tau_nice_smoothness(
    *, batch_size: float, dataset_size: int, smoothness: float, max_smoothness: float
) -> float:
    """Return the expected smoothness of a batch: L_max at one sample, and L at all samples.

    >>> tau_nice_smoothness(batch_size=4, dataset_size=10, smoothness=1.0, max_smoothness=7.0)
    2.0

    Args:
        batch_size: Batch size T in samples, in [1, dataset_size].
        dataset_size: Number of samples n, at least 2.
        smoothness: Lipschitz constant L of the mean loss's gradient, above 0.
        max_smoothness: Largest Lipschitz constant L_max of a single loss's gradient, at least L.

    Raises:
        ValueError: An argument is outside its range.

    Reference: arXiv 2005.01097. The formula was recalled, was not compared with the paper's text,
    and was derived for largebatch.
    """
    _check_batch(batch_size, dataset_size)
    _check_smoothness(smoothness, max_smoothness)
    whole = dataset_size * (batch_size - 1.0) * smoothness
    single = (dataset_size - batch_size) * max_smoothness
    return (whole + single) / (batch_size * (dataset_size - 1.0))


def tau_nice_variance(*, batch_size: float, dataset_size: int, mean_sqnorm: float) -> float:
    """Return the expected squared norm of a batch's gradient if the mean of all gradients is 0.

    >>> tau_nice_variance(batch_size=4, dataset_size=10, mean_sqnorm=6.0)
    1.0

    Args:
        batch_size: Batch size T in samples, in [1, dataset_size].
        dataset_size: Number of samples n, at least 2.
        mean_sqnorm: Mean h of the single gradients' squared norms, at least 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: arXiv 2005.01097. The formula was recalled, was not compared with the paper's text,
    and was derived for largebatch.
    """
    _check_batch(batch_size, dataset_size)
    not_negative("tau_nice_variance(..., mean_sqnorm=6.0)", mean_sqnorm=mean_sqnorm)
    return (dataset_size - batch_size) / (batch_size * (dataset_size - 1.0)) * mean_sqnorm


def tau_nice_work(
    *,
    batch_size: float,
    dataset_size: int,
    smoothness: float,
    max_smoothness: float,
    mean_sqnorm: float,
    curvature: float,
    target: float,
) -> float:
    """Return the number of single-sample gradients to the target, up to a constant factor.

    The constant factor does not depend on the batch size.

    >>> round(tau_nice_work(batch_size=4, dataset_size=10, smoothness=1.0, max_smoothness=7.0,
    ...     mean_sqnorm=6.0, curvature=0.5, target=1.0))
    64

    Args:
        batch_size: Batch size T in samples, in [1, dataset_size].
        dataset_size: Number of samples n, at least 2.
        smoothness: Lipschitz constant L of the mean loss's gradient, above 0.
        max_smoothness: Largest Lipschitz constant L_max of a single loss's gradient, at least L.
        mean_sqnorm: Mean h of the single gradients' squared norms, at least 0.
        curvature: Strong convexity mu of the mean loss, above 0.
        target: Squared distance eps to the optimum that is to be reached, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: arXiv 2005.01097. The formula was recalled, was not compared with the paper's text,
    and was derived for largebatch.
    """
    above_zero("tau_nice_work(..., curvature=0.5, target=0.1)", curvature=curvature, target=target)
    expected = tau_nice_smoothness(
        batch_size=batch_size,
        dataset_size=dataset_size,
        smoothness=smoothness,
        max_smoothness=max_smoothness,
    )
    variance = tau_nice_variance(
        batch_size=batch_size, dataset_size=dataset_size, mean_sqnorm=mean_sqnorm
    )
    return batch_size * max(2.0 * expected / curvature, 4.0 * variance / (target * curvature**2))


def tau_nice_optimal_batch_size(
    *,
    dataset_size: int,
    smoothness: float,
    max_smoothness: float,
    mean_sqnorm: float,
    curvature: float,
    target: float,
) -> float:
    """Return the batch size with the least work, in [1, dataset_size], not rounded.

    The formula is n * (q + L - L_max) / (q + n * L - L_max) with q = 2 * h / (eps * mu). The result
    is 1 if the formula is below 1. Arguments and errors are the same as for `tau_nice_work`.

    >>> round(tau_nice_optimal_batch_size(dataset_size=10, smoothness=1.0, max_smoothness=7.0,
    ...     mean_sqnorm=6.0, curvature=0.5, target=1.0), 4)
    6.6667

    Reference: arXiv 2005.01097. The formula was recalled, was not compared with the paper's text,
    and was derived for largebatch.
    """
    _check_batch(1.0, dataset_size)
    _check_smoothness(smoothness, max_smoothness)
    not_negative("tau_nice_optimal_batch_size(..., mean_sqnorm=6.0)", mean_sqnorm=mean_sqnorm)
    above_zero(
        "tau_nice_optimal_batch_size(..., curvature=0.5, target=0.1)",
        curvature=curvature,
        target=target,
    )
    noise = 2.0 * mean_sqnorm / (target * curvature)
    above = noise + smoothness - max_smoothness
    if above <= 0.0:
        return 1.0  # the noise of one sample is already below the target
    # The divisor is at least (n - 1) * L, because noise is above L_max - L here.
    crossing = dataset_size * above / (noise + dataset_size * smoothness - max_smoothness)
    return min(max(crossing, 1.0), float(dataset_size))


def tau_nice_rate(
    *, expected_smoothness: float, variance: float, curvature: float, target: float
) -> float:
    """Return the learning rate for a batch of T samples: min(1 / smoothness(T), eps * mu / (2 *
    variance(T))) / 2.

    >>> tau_nice_rate(expected_smoothness=2.0, variance=1.0, curvature=0.5, target=1.0)
    0.125

    Args:
        expected_smoothness: Result of `tau_nice_smoothness`, above 0.
        variance: Result of `tau_nice_variance`, at least 0.
        curvature: Strong convexity mu of the mean loss, above 0.
        target: Squared distance eps to the optimum that is to be reached, above 0.

    Raises:
        ValueError: An argument is outside its range.

    Reference: arXiv 2005.01097. The formula was recalled and was not compared with the paper's
    text.
    """
    example = "tau_nice_rate(expected_smoothness=2.0, variance=1.0, curvature=0.5, target=1.0)"
    above_zero(example, smoothness=expected_smoothness, curvature=curvature, target=target)
    not_negative(example, variance=variance)
    stable = 1.0 / expected_smoothness
    return 0.5 * (min(stable, target * curvature / (2.0 * variance)) if variance else stable)


def _check_batch(batch_size: float, dataset_size: int) -> None:
    if dataset_size < 2 or not 1.0 <= batch_size <= dataset_size:
        raise ValueError(
            f"batch_size={batch_size!r} and dataset_size={dataset_size!r} were given, but "
            "batch_size must be between 1 and dataset_size, and dataset_size must be at least 2. "
            "Pass batch_size=4, dataset_size=10."
        )


def _check_smoothness(smoothness: float, max_smoothness: float) -> None:
    above_zero("tau_nice_smoothness(..., smoothness=1.0)", smoothness=smoothness)
    if not max_smoothness >= smoothness:
        raise ValueError(
            f"smoothness={smoothness!r} and max_smoothness={max_smoothness!r} were given, but "
            "max_smoothness must be at least smoothness. Pass smoothness=1.0, max_smoothness=7.0."
        )
