"""A warm-up that reached its highest rate: whether the loss still fell there, and what to say."""

from __future__ import annotations

import numpy as np

from largebatch.rules.auto_warm_up.gaussian_process import Posterior

SINCE, END = 0.6, 0.8
"""Two length scales before now, and one: from END on a minimum is at the end of the curve, and the
loss has to have fallen since SINCE."""


def falls(curve: Posterior, *, confidence: float, floor: float) -> bool:
    """Whether a loss falls to the end of its curve.

    Its minimum is at the end, no point before is below the last one with the given probability, and
    with that probability the point at SINCE is above it. A constant loss and one of noise alone do
    not fall.

    >>> from largebatch.rules.auto_warm_up.gaussian_process import posterior_of
    >>> x = np.linspace(0.0, 1.0, 50)
    >>> [falls(posterior_of(x, y, np.ones(50)), confidence=0.95, floor=1e-4)
    ...     for y in (-x, (x - 0.6) ** 2, x)]
    [True, False, False]

    Args:
        curve: of the losses so far.
        confidence: in [0.5, 1).
        floor: as in `Posterior.risen`.
    """
    if curve.x[curve.lowest] < END or curve.risen(floor=floor) > confidence:
        return False
    since = int(np.searchsorted(curve.x, SINCE))
    return curve.fallen(since, floor=floor) > confidence


def met(high: float) -> str:
    """Why such a warm-up ended.

    >>> met(1.0)
    'the ceiling high=1 was met while the loss still fell'
    """
    return f"the ceiling high={high:.4g} was met while the loss still fell"


def notice(*, high: float, rate: float) -> str:
    """What the user is to know of such an end.

    Args:
        high: the highest rate of the warm-up.
        rate: the one that decays.
    """
    return (
        f"AutoWarmUp reached its highest learning rate, high={high:.4g}, while the loss still "
        f"fell. The best learning rate may be higher. This run decays from {rate:.4g}. To search "
        f"higher, start a new run with lb.AutoWarmUp(high={10.0 * high:.4g})."
    )
