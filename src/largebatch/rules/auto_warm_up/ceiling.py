"""Explain why a warm-up reached its highest learning rate without a detected rise of the loss.

At the highest learning rate, the loss may still have been falling, or it may hardly have changed
during the whole warm-up. The module also writes the reason and the warning for the user.
"""

from __future__ import annotations

import numpy as np

from largebatch.rules.auto_warm_up.gaussian_process import Posterior

SINCE, END = 0.6, 0.8
"""Two points of the loss curve on [0, 1]: two length scales and one length scale before the end of
the curve. A minimum after END counts as being at the end of the curve. Since the point SINCE, the
loss must have fallen."""


def falls(curve: Posterior, *, confidence: float, floor: float) -> bool:
    """Return whether a loss still falls at the end of its curve.

    The minimum of the curve must be at the end of the curve, and no earlier point may be below the
    last point with a probability above `confidence`. The points at SINCE and END must be above the
    last point with a probability above `confidence`. A constant loss does not fall, and neither
    does a loss of noise alone, or a loss that fell earlier and then stayed constant.

    >>> from largebatch.rules.auto_warm_up.gaussian_process import posterior_of
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> [falls(posterior_of(x, y, np.ones(50)), confidence=0.95, floor=1e-4)
    ...     for y in (-x, (x - 0.6) ** 2, x, np.maximum(0.75 - x, 0.0))]
    [True, False, False, False]

    Args:
        curve: Posterior of the losses so far.
        confidence: Probability in [0.5, 1).
        floor: Variance added to the variance of each difference between two points, as in
            `Posterior.risen`.
    """
    if curve.x[curve.lowest] < END or curve.risen(floor=floor) > confidence:
        return False
    points = np.searchsorted(curve.x, (SINCE, END))
    return all(curve.fallen(int(point), floor=floor) > confidence for point in points)


def is_flat(curve: Posterior, *, confidence: float, certain: float, floor: float) -> bool:
    """Return whether a loss neither rose nor fell over its whole curve.

    No earlier point may be below the last point with a probability above `confidence`, and no two
    points may differ by more than `certain` standard deviations. A constant loss is flat.

    >>> from largebatch.rules.auto_warm_up.gaussian_process import posterior_of
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> [is_flat(posterior_of(x, y, np.ones(50)), confidence=0.95, certain=3.0, floor=1e-4)
    ...     for y in (0.0 * x, (-1.0) ** np.arange(50), -x, np.maximum(0.3 - x, 0.0))]
    [True, True, False, False]

    Args:
        curve: Posterior of the losses so far.
        confidence: Probability in [0.5, 1).
        certain: Number of standard deviations, above 0.
        floor: Variance added to the variance of each difference between two points, as in
            `Posterior.risen`.
    """
    return curve.risen(floor=floor) <= confidence and curve.moved(floor=floor) <= certain


def met(high: float) -> str:
    """Return the reason why a warm-up ended at its highest learning rate while the loss still fell.

    >>> met(1.0)
    'the highest learning rate, high=1, was reached while the loss still fell'
    """
    return f"the highest learning rate, high={high:.4g}, was reached while the loss still fell"


def met_flat(high: float) -> str:
    """Return the reason why a warm-up ended at its highest learning rate although the loss hardly
    changed.

    >>> met_flat(0.01)
    'the highest learning rate, high=0.01, was reached and the loss has hardly changed'
    """
    return (
        f"the highest learning rate, high={high:.4g}, was reached and the loss has hardly changed"
    )


def notice(why: str, *, high: float, rate: float) -> str:
    """Return the warning for a warm-up that reached its highest learning rate, or "" for any other
    end.

    Args:
        why: Reason of the decision; it may end with the text of `met` or `met_flat`.
        high: Highest learning rate of the warm-up.
        rate: Learning rate at which the decay starts.
    """
    reached = f"AutoWarmUp reached its highest learning rate, high={high:.4g}"
    then = (
        f"In this run, the decay starts at the learning rate {rate:.4g}. To try higher learning "
        f"rates, start a new run with lb.AutoWarmUp(high={10.0 * high:.4g})."
    )
    if why.endswith(met(high)):
        return f"{reached}, while the loss still fell. The best learning rate may be higher. {then}"
    if why.endswith(met_flat(high)):
        return (
            f"{reached}, and the loss has hardly changed. All learning rates up to this one are "
            f"probably too small. {then}"
        )
    return ""
