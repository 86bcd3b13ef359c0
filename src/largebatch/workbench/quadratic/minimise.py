"""Minimisation without derivatives, the same result on every call and machine.

    simplex_minimum     few numbers without bounds: a simplex that walks and shrinks
    coordinate_search   more numbers within bounds: one coordinate after the other

Nelder, Mead: A Simplex Method for Function Minimization, 1965, in its usual form, as recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from largebatch.workbench.quadratic.spectrum import Array

Function = Callable[[Array], float]


def simplex_minimum(
    function: Function, start: Sequence[float] | Array, *, size: float, rounds: int = 300
) -> tuple[Array, float]:
    """Return (where, value) of a local minimum near `start`.

    >>> bowl = lambda x: float((x[0] - 1) ** 2 + x[1] ** 2)
    >>> at, value = simplex_minimum(bowl, [0.0, 3.0], size=1)
    >>> at.round(4).tolist(), round(value, 6)
    ([1.0, 0.0], 0.0)

    Args:
        function: of an array [P]; infinite where it is not to go.
        start: [P].
        size: of the first simplex along each axis.
        rounds: at most so many; it ends sooner where the simplex is small and flat.
    """
    corners = [np.asarray(start, dtype=np.float64)]
    corners += [corners[0] + size * axis for axis in np.eye(len(corners[0]))]
    ranked = sorted(((function(x), tuple(x)) for x in corners), key=lambda pair: pair[0])
    for _ in range(rounds):
        points = np.array([x for _, x in ranked])
        if np.ptp(points, axis=0).max() < 1e-6 * size and np.isfinite(ranked[0][0]):
            break
        worst, middle = points[-1], points[:-1].mean(axis=0)
        moved = _moved(function, ranked, middle, worst)
        if moved is None:
            best = points[0]
            halves = [0.5 * (best + x) for x in points[1:]]
            ranked = [ranked[0], *((function(x), tuple(x)) for x in halves)]
        else:
            ranked[-1] = moved
        ranked.sort(key=lambda pair: pair[0])
    return np.array(ranked[0][1]), ranked[0][0]


def coordinate_search(
    cost: Callable[[Array], float],
    start: Array,
    *,
    low: Array,
    high: Array,
    step: float = 0.7,
    least: float = 0.02,
    sweeps: int = 60,
) -> tuple[Array, float]:
    """Return (the best point found, its cost), never worse than the start.

    Each coordinate in turn goes by a step up or down where that is better, and twice as far while
    it stays so. When none is better, the steps halve.

    >>> x, y = coordinate_search(
    ...     lambda v: float(((v - 0.3) ** 2).sum()), np.zeros(2), low=np.full(2, -1.0),
    ...     high=np.ones(2), least=1e-4)
    >>> x.round(3).tolist()
    [0.3, 0.3]

    Args:
        cost: the function to make small.
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


Ranked = tuple[float, tuple[float, ...]]


def _moved(function: Function, ranked: list[Ranked], middle: Array, worst: Array) -> Ranked | None:
    """The worst corner reflected, stretched or drawn in; None if the simplex has to shrink."""

    def at(factor: float) -> Ranked:
        x = middle + factor * (middle - worst)
        return function(x), tuple(x)

    reflected = at(1.0)
    if reflected[0] < ranked[0][0]:
        return min(reflected, at(2.0), key=lambda pair: pair[0])
    if reflected[0] < ranked[-2][0]:
        return reflected
    drawn = at(0.5 if reflected[0] < ranked[-1][0] else -0.5)
    return drawn if drawn[0] < min(reflected[0], ranked[-1][0]) else None
