"""The batch that reaches a target with least work where loss and constants are known.

For f = mean of n losses f_i, mu-strongly convex and L-smooth, each f_i convex and at most
L_max-smooth, and batches of T different samples drawn uniformly (tau-nice sampling):

    smoothness(T) = n (T - 1) / (T (n - 1)) L + (n - T) / (T (n - 1)) L_max
    variance(T)   = (n - T) / (T (n - 1)) h,        h = mean |grad f_i|^2
    work(T)       ~ T max(2 smoothness(T) / mu, 4 variance(T) / (eps mu^2))

The variance is exact at the optimum, smoothness follows from L and L_max in the same way; the least
work is where the two terms meet, or at a batch of one. Constants of this kind are not known for
deep networks: these are formulas to compare with, no rule.

Alfarra, Hanzely, Albasyoni, Ghanem, Richtarik: Adaptive Learning of the Optimal Batch Size of SGD,
2020, arXiv 2005.01097. Recalled: the formulas were written from memory of the paper and not
compared with its text. They are derived here, and the tests check them by enumerating batches and
by searching all of them for the least work.
"""

from __future__ import annotations

from largebatch.theory.checked import above_zero, not_negative


def tau_nice_smoothness(
    *, batch_size: float, dataset_size: int, smoothness: float, max_smoothness: float
) -> float:
    """The expected smoothness of a batch: from L_max at one sample to L at all of them.

    >>> tau_nice_smoothness(batch_size=4, dataset_size=10, smoothness=1.0, max_smoothness=7.0)
    2.0

    Args:
        batch_size: T, in [1, dataset_size].
        dataset_size: n, at least 2.
        smoothness: L, of the mean of all losses, above 0.
        max_smoothness: L_max, the largest of a single one, at least L.

    Raises:
        ValueError: a number outside its range.

    Reference: recalled from arXiv 2005.01097, not compared with its text; derived here.
    """
    _check_batch(batch_size, dataset_size)
    _check_smoothness(smoothness, max_smoothness)
    whole = dataset_size * (batch_size - 1.0) * smoothness
    single = (dataset_size - batch_size) * max_smoothness
    return (whole + single) / (batch_size * (dataset_size - 1.0))


def tau_nice_variance(*, batch_size: float, dataset_size: int, mean_sqnorm: float) -> float:
    """The expected squared norm of a batch's gradient where the mean of all gradients is 0.

    >>> tau_nice_variance(batch_size=4, dataset_size=10, mean_sqnorm=6.0)
    1.0

    Args:
        batch_size: T, in [1, dataset_size].
        dataset_size: n, at least 2.
        mean_sqnorm: h, the mean of the single gradients' squared norms, at least 0.

    Raises:
        ValueError: a number outside its range.

    Reference: recalled from arXiv 2005.01097, not compared with its text; derived here.
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
    """Gradients of single samples to the target, up to a factor that no batch changes.

    >>> round(tau_nice_work(batch_size=4, dataset_size=10, smoothness=1.0, max_smoothness=7.0,
    ...     mean_sqnorm=6.0, curvature=0.5, target=1.0))
    64

    Args:
        batch_size, dataset_size, smoothness, max_smoothness, mean_sqnorm: as above.
        curvature: mu, of the mean of all losses, above 0.
        target: eps, the squared distance to the optimum that is wanted, above 0.

    Raises:
        ValueError: a number outside its range.

    Reference: recalled from arXiv 2005.01097, not compared with its text; derived here.
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
    """The batch with least work, not rounded, in [1, dataset_size].

    n (q + L - L_max) / (q + n L - L_max) with q = 2 h / (eps mu), or 1 where that is below 1.

    >>> round(tau_nice_optimal_batch_size(dataset_size=10, smoothness=1.0, max_smoothness=7.0,
    ...     mean_sqnorm=6.0, curvature=0.5, target=1.0), 4)
    6.6667

    Arguments and errors are those of `tau_nice_work`.

    Reference: recalled from arXiv 2005.01097, not compared with its text; derived here.
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
        return 1.0  # one sample's noise is below the target already
    # the divisor is at least (n - 1) L, since noise is above L_max - L here
    crossing = dataset_size * above / (noise + dataset_size * smoothness - max_smoothness)
    return min(max(crossing, 1.0), float(dataset_size))


def tau_nice_rate(
    *, expected_smoothness: float, variance: float, curvature: float, target: float
) -> float:
    """The learning rate that goes with it: min(1 / smoothness(T), eps mu / (2 variance(T))) / 2.

    >>> tau_nice_rate(expected_smoothness=2.0, variance=1.0, curvature=0.5, target=1.0)
    0.125

    Args:
        expected_smoothness: of `tau_nice_smoothness`, above 0.
        variance: of `tau_nice_variance`, at least 0.
        curvature, target: as in `tau_nice_work`.

    Raises:
        ValueError: a number outside its range.

    Reference: recalled from arXiv 2005.01097, not compared with its text.
    """
    example = "tau_nice_rate(expected_smoothness=2.0, variance=1.0, curvature=0.5, target=1.0)"
    above_zero(example, smoothness=expected_smoothness, curvature=curvature, target=target)
    not_negative(example, variance=variance)
    stable = 1.0 / expected_smoothness
    return 0.5 * (min(stable, target * curvature / (2.0 * variance)) if variance else stable)


def _check_batch(batch_size: float, dataset_size: int) -> None:
    if dataset_size < 2 or not 1.0 <= batch_size <= dataset_size:
        raise ValueError(
            "a batch has 1 to dataset_size different samples, of at least 2, as in batch_size=4, "
            f"dataset_size=10; got {batch_size!r} of {dataset_size!r}."
        )


def _check_smoothness(smoothness: float, max_smoothness: float) -> None:
    above_zero("tau_nice_smoothness(..., smoothness=1.0)", smoothness=smoothness)
    if not max_smoothness >= smoothness:
        raise ValueError(
            "max_smoothness, of the roughest loss, is at least that of their mean, as in "
            f"smoothness=1.0, max_smoothness=7.0; got {smoothness!r} and {max_smoothness!r}."
        )
