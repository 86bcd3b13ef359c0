"""A search along coordinates: no derivative, no chance, the same result on each machine.

Each coordinate in turn goes by a step up or down where that is better, twice as far while it stays
so; when none is, the steps halve.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


def coordinate_search(
    cost: Callable[[Vector], float],
    start: Vector,
    *,
    low: Vector,
    high: Vector,
    step: float = 0.7,
    least: float = 0.02,
    sweeps: int = 60,
) -> tuple[Vector, float]:
    """(the best point found, its cost), never worse than the start.

    >>> x, y = coordinate_search(
    ...     lambda v: float(((v - 0.3) ** 2).sum()), np.zeros(2), low=np.full(2, -1.0),
    ...     high=np.ones(2), least=1e-4)
    >>> x.round(3).tolist()
    [0.3, 0.3]

    Args:
        cost: what to make small.
        start: a point within the bounds, [D].
        low, high: bounds, [D].
        step: the first one, on every coordinate.
        least: the step below which it ends.
        sweeps: over all coordinates, at most.
    """
    best, value = start.copy(), cost(start)
    for _ in range(sweeps):
        before = value
        for i in range(len(best)):
            for sign in (step, -step):
                moved, stride = False, sign
                while True:
                    trial = best.copy()
                    trial[i] = min(max(best[i] + stride, low[i]), high[i])
                    found = cost(trial) if trial[i] != best[i] else value
                    if not found < value:
                        break
                    best, value, moved, stride = trial, found, True, 2.0 * stride
                if moved:
                    break
        if before - value < 1e-4:
            if step <= least:
                break
            step *= 0.5
    return best, value
