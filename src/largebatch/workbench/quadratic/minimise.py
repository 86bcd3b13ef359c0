"""Minimize functions without derivatives and without random numbers.

    simplex_minimum     for few variables without bounds: the Nelder-Mead simplex method
    coordinate_search   for more variables with bounds: one coordinate after the other

Nelder, Mead: A Simplex Method for Function Minimization, 1965. The usual form of the method was
recalled, not compared with the paper's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from largebatch.workbench.quadratic.spectrum import Array

Function = Callable[[Array], float]


def simplex_minimum(
    function: Function, start: Sequence[float] | Array, *, size: float, rounds: int = 300
) -> tuple[Array, float]:
    """Return the position and the value of a local minimum near `start`.

    >>> bowl = lambda x: float((x[0] - 1) ** 2 + x[1] ** 2)
    >>> at, value = simplex_minimum(bowl, [0.0, 3.0], size=1)
    >>> at.round(4).tolist(), round(value, 6)
    ([1.0, 0.0], 0.0)

    Args:
        function: Function of an array [P]. The function returns infinity at forbidden points.
        start: Starting point, [P].
        size: Length of the first simplex along each axis.
        rounds: Largest number of iterations. The search ends earlier once the simplex is small.
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
    """Return the best point that was found and its cost, which is at most the cost of the start.

    Each coordinate in turn moves up or down by one step if the move lowers the cost. The step of a
    coordinate doubles while moves along the coordinate lower the cost. If moves along no coordinate
    lower the cost, the steps of all coordinates are halved.

    >>> x, y = coordinate_search(
    ...     lambda v: float(((v - 0.3) ** 2).sum()), np.zeros(2), low=np.full(2, -1.0),
    ...     high=np.ones(2), least=1e-4)
    >>> x.round(3).tolist()
    [0.3, 0.3]

    Args:
        cost: Function to minimize.
        start: Starting point within the bounds, [D].
        low: Lower bounds, [D].
        high: Upper bounds, [D].
        step: First step of every coordinate.
        least: Step size at which the search ends.
        sweeps: Largest number of rounds, each of which moves every coordinate once.
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
    """Return a better point than the worst corner, or None if the simplex must shrink.

    The candidates are the reflection of the worst corner, its expansion and its contraction.
    """

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
