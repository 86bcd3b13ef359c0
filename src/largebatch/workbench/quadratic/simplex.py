"""The least value of a function of a few numbers, by a simplex that walks and shrinks.

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
    """(where, value) of a local minimum near `start`; the same on every call.

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
