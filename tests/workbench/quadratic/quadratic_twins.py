"""Compute the noisy quadratic with loops: expected moments step by step, and random runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from largebatch.workbench.quadratic import Phase, Spectrum
from largebatch.workbench.quadratic.spectrum import Array


def transition(
    curvature: float, lr: float, *, momentum: float = 0.0, decay: float = 0.0
) -> tuple[Array, Array]:
    """(A, u) of one step of (theta, v, average): z' = A z + u noise, from the update's own lines.

    v' = momentum v + g, theta' = theta - lr v', average' = decay average + (1 - decay) theta'.
    """
    columns = []
    for theta, v, average, noise in [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        v_next = momentum * v + curvature * theta + noise
        theta_next = theta - lr * v_next
        columns.append([theta_next, v_next, decay * average + (1.0 - decay) * theta_next])
    whole = np.array(columns, dtype=np.float64).T
    return whole[:, :3], whole[:, 3]


def by_steps(
    spectrum: Spectrum, phases: Sequence[Phase], *, momentum: float = 0.0, decay: float = 0.0
) -> Array:
    """Return the expected squared average after each phase, [M, D], computed step by step.

    With decay 0, the average equals the weights.
    """
    dimensions = len(spectrum.curvature)
    reached = np.empty((len(phases), dimensions))
    for i in range(dimensions):
        start = spectrum.second_moment[i]
        covariance = np.array([[start, 0, start], [0, 0, 0], [start, 0, start]])
        for m, phase in enumerate(phases):
            a, u = transition(spectrum.curvature[i], phase.lr, momentum=momentum, decay=decay)
            added = spectrum.noise[i] / phase.batch_size * np.outer(u, u)
            for _ in range(round(phase.steps)):
                covariance = a @ covariance @ a.T + added
            reached[m, i] = covariance[2, 2]
    return reached


def by_chance(
    spectrum: Spectrum,
    phases: Sequence[Phase],
    *,
    runs: int,
    momentum: float = 0.0,
    decay: float = 0.0,
    seed: int = 0,
) -> Array:
    """Return the mean loss at the average of the weights after each phase, [M], over random runs.

    The start is drawn from a normal distribution with the spectrum's second moment.
    """
    generator = np.random.default_rng(seed)
    shape = (runs, len(spectrum.curvature))
    theta = generator.standard_normal(shape) * np.sqrt(spectrum.second_moment)
    v, average = np.zeros(shape), theta.copy()
    losses = []
    for phase in phases:
        spread = np.sqrt(spectrum.noise / phase.batch_size)
        for _ in range(round(phase.steps)):
            gradient = spectrum.curvature * theta + spread * generator.standard_normal(shape)
            v = momentum * v + gradient
            theta = theta - phase.lr * v
            average = decay * average + (1.0 - decay) * theta
        weighed = spectrum.weight * spectrum.curvature
        losses.append(spectrum.floor + 0.5 * float((average**2 @ weighed).mean()))
    return np.array(losses)


def losses_of(spectrum: Spectrum, second_moments: Array) -> Array:
    """Return the loss of each row of second moments."""
    weighed = spectrum.weight * spectrum.curvature
    return np.array([spectrum.floor + 0.5 * float(row @ weighed) for row in second_moments])
