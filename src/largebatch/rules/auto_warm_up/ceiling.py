"""A warm-up that reached its highest rate: whether the loss still fell there or never moved, and
what to say."""

from __future__ import annotations

import numpy as np

from largebatch.rules.auto_warm_up.gaussian_process import Posterior

SINCE, END = 0.6, 0.8
"""Two length scales before now, and one: from END on a minimum is at the end of the curve, and the
loss has to have fallen since SINCE."""


def falls(curve: Posterior, *, confidence: float, floor: float) -> bool:
    """Whether a loss falls to the end of its curve.

    Its minimum is at the end, no point before is below the last one with the given probability, and
    with that probability the points at SINCE and at END are above it. A constant loss and one of
    noise alone do not fall, and neither does one that fell and came to rest.

    >>> from largebatch.rules.auto_warm_up.gaussian_process import posterior_of
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> [falls(posterior_of(x, y, np.ones(50)), confidence=0.95, floor=1e-4)
    ...     for y in (-x, (x - 0.6) ** 2, x, np.maximum(0.75 - x, 0.0))]
    [True, False, False, False]

    Args:
        curve: of the losses so far.
        confidence: in [0.5, 1).
        floor: as in `Posterior.risen`.
    """
    if curve.x[curve.lowest] < END or curve.risen(floor=floor) > confidence:
        return False
    points = np.searchsorted(curve.x, (SINCE, END))
    return all(curve.fallen(int(point), floor=floor) > confidence for point in points)


def is_flat(curve: Posterior, *, confidence: float, certain: float, floor: float) -> bool:
    """Whether a loss neither rose nor fell over its whole curve.

    No point before is below the last one with the given probability, and no two points differ by
    more than `certain` standard deviations. A constant loss is flat.

    >>> from largebatch.rules.auto_warm_up.gaussian_process import posterior_of
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> [is_flat(posterior_of(x, y, np.ones(50)), confidence=0.95, certain=3.0, floor=1e-4)
    ...     for y in (0.0 * x, (-1.0) ** np.arange(50), -x, np.maximum(0.3 - x, 0.0))]
    [True, True, False, False]

    Args:
        curve: of the losses so far.
        confidence: in [0.5, 1).
        certain: above 0.
        floor: as in `Posterior.risen`.
    """
    return curve.risen(floor=floor) <= confidence and curve.moved(floor=floor) <= certain


def met(high: float) -> str:
    """Why a warm-up ended whose loss still fell.

    >>> met(1.0)
    'the ceiling high=1 was met while the loss still fell'
    """
    return f"the ceiling high={high:.4g} was met while the loss still fell"


def met_flat(high: float) -> str:
    """Why a warm-up ended whose loss never moved.

    >>> met_flat(0.01)
    'the ceiling high=0.01 was met and the loss has hardly moved'
    """
    return f"the ceiling high={high:.4g} was met and the loss has hardly moved"


def notice(why: str, *, high: float, rate: float) -> str:
    """What the user is to know of such an end; empty for any other.

    Args:
        why: the reason of the decision, at whose end one of the two above may be.
        high: the highest rate of the warm-up.
        rate: the one that decays.
    """
    reached = f"AutoWarmUp reached its highest learning rate, high={high:.4g}"
    then = (
        f"This run decays from {rate:.4g}. To search higher, start a new run with "
        f"lb.AutoWarmUp(high={10.0 * high:.4g})."
    )
    if why.endswith(met(high)):
        return f"{reached}, while the loss still fell. The best learning rate may be higher. {then}"
    if why.endswith(met_flat(high)):
        return (
            f"{reached}, and the loss has hardly moved. The learning rates that were tried are "
            f"probably too small. {then}"
        )
    return ""
