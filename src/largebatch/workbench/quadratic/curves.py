"""Compute the losses and noise scales of a power law along a recorded schedule.

    loss_t = floor + start * F_t + noise * G_t
    noise scale_t = noise * C / (start * F2_t + noise * G2_t)

For given curvatures and exponents, both equations are linear in the three scales floor, start and
noise, once the second equation is multiplied by its denominator. The scales are therefore found by
least squares, and only the curvature and the exponents are searched. If the variance of one
sample's gradient is known, noise = variance / C, and only two scales are unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.workbench.quadratic.sgd import decay
from largebatch.workbench.quadratic.spectrum import Array, Spectrum

NOISE_WEIGHT = 0.1
"""Weight of a relative error of a noise scale, compared with a relative error of a loss.

The relative error of a measured noise scale is much larger than the relative error of a measured
loss.
"""

FAR = 1e-3
"""Lower bound of a modeled squared norm, as a fraction of the norm that the noise scale implies.

Without the bound, a point with a tiny squared norm would dominate the least squares.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """Hold a recorded run at T points in time.

    Args:
        losses: [T], losses at the points.
        noise_scales: [T], noise scales in samples; NaN if not measured.
        batch_sizes: [T], mean batch size between a point and the previous one, in samples.
        lrs: [T], learning rate between a point and the previous one.
        between: [T], number of steps between a point and the previous one.
        variance: Variance of one sample's gradient; None if unknown or if the optimizer is not SGD.
    """

    losses: Array
    noise_scales: Array
    batch_sizes: Array
    lrs: Array
    between: Array
    variance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Hold the scales that multiply a spectrum, and the error of the fitted curves.

    Args:
        start: Factor on the second moments of the weights at the start.
        noise: Factor on the gradient noise.
        floor: Loss at the minimum.
        loss_spread: Root mean square of loss / fitted loss - 1.
        noise_spread: Root mean square of ln(noise scale / fitted noise scale).
    """

    start: float
    noise: float
    floor: float
    loss_spread: float
    noise_spread: float


def moments_along(spectrum: Spectrum, run: RecordedRun) -> tuple[Array, Array]:
    """Return the two terms of E theta^2 at the points of the record, each [T, D].

    The first term comes from the start, and the second term comes from the noise.
    """
    left, total = decay(run.lrs[:, None] * spectrum.curvature, run.between[:, None])
    added = (run.lrs**2 / run.batch_sizes)[:, None] * spectrum.noise * total
    with np.errstate(over="ignore", invalid="ignore"):
        bias = np.cumprod(left, axis=0) * spectrum.second_moment
        noise, kept = np.zeros_like(bias), np.zeros_like(spectrum.noise)
        for t in range(len(left)):
            kept = left[t] * kept + added[t]
            noise[t] = kept
    return bias, noise


@np.errstate(over="ignore", invalid="ignore")
def best_scales(spectrum: Spectrum, run: RecordedRun, *, rounds: int = 3) -> Scales | None:
    """Return the scales whose curves are nearest to the record; None if a scale is not positive."""
    bias, noise = moments_along(spectrum, run)
    weighed = spectrum.weight * spectrum.curvature
    f, g = 0.5 * bias @ weighed, 0.5 * noise @ weighed
    seen = np.isfinite(run.noise_scales)
    f2, g2 = (part[seen] @ (weighed * spectrum.curvature) for part in (bias, noise))
    ratio, total = run.noise_scales[seen], spectrum.variance
    rows = np.stack([f, g, np.ones_like(f)], axis=1) / run.losses[:, None]
    if not all(np.isfinite(values).all() for values in (rows, f2, g2)):
        return None
    share = NOISE_WEIGHT * np.sqrt(len(f) / max(1, len(ratio)))
    known = None if run.variance is None else run.variance / total
    found = _not_negative(rows, np.ones(len(f)), second=known)
    for _ in range(rounds):
        signal = found[0] * f2 + found[1] * g2
        expected = (found[1] * total or float(np.median(ratio * signal))) / ratio
        signal = np.maximum(signal, FAR * expected)
        if not (signal > 0.0).all():
            return None
        more = np.stack([-ratio * f2, total - ratio * g2, 0.0 * f2], axis=1)
        more /= (ratio * signal)[:, None]
        if not np.isfinite(more).all():
            return None
        found = _not_negative(
            np.concatenate([rows, share * more]),
            np.concatenate([np.ones(len(f)), 0.0 * ratio]),
            second=known,
        )
    start, level, floor = (float(x) for x in found)
    if start <= 0.0 or level <= 0.0:
        return None
    off = run.losses / (start * f + level * g + floor) - 1.0
    far = np.log(level * total / (start * f2 + level * g2) / ratio)
    return Scales(
        start=start,
        noise=level,
        floor=floor,
        loss_spread=float(np.sqrt(np.mean(off**2))),
        noise_spread=float(np.sqrt(np.mean(far**2))),
    )


def _not_negative(rows: Array, values: Array, *, second: float | None) -> Array:
    """Solve a least-squares problem in three numbers that must be at least 0.

    The function solves the problem for each set of numbers that can be 0 and keeps the best
    solution.

    Args:
        rows: Matrix of the problem, [N, 3].
        values: Right-hand side, [N].
        second: Value of the second number, if it is known.
    """
    size = np.abs(rows).max(axis=0)
    size = np.where(size > 0.0, size, 1.0)
    rows = rows / size  # Otherwise the largest column would hide the others in rounding.
    best, free = np.zeros(3), _SUBSETS
    if second is not None:
        best[1], free = second * size[1], _WITHOUT_SECOND
        values = values - best[1] * rows[:, 1]
    least, found = float(values @ values), best
    for used in free if least < math.inf else ():
        some, *_ = np.linalg.lstsq(rows[:, used], values, rcond=None)
        error = float(np.sum((rows[:, used] @ some - values) ** 2))
        if (some >= 0.0).all() and error < least:
            found, least = best.copy(), error
            found[used] = some
    return found / size


_SUBSETS: tuple[list[int], ...] = ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2])
_WITHOUT_SECOND: tuple[list[int], ...] = ([0, 2], [0], [2])
