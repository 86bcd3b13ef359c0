"""The losses and noise scales that a power law gives along a recorded schedule.

    loss_t = floor + start F_t + noise G_t
    noise scale_t = noise C / (start F2_t + noise G2_t)

For given curvatures and exponents the three scales enter linearly, also the second line once it is
multiplied out. So they are found by least squares, and only the rest is searched for. Where the
variance of one sample's gradient is known, noise = variance / C, and two are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from largebatch.workbench.quadratic.sgd import decay
from largebatch.workbench.quadratic.spectrum import Array, Spectrum

NOISE_WEIGHT = 0.1
"""Of a noise scale's relative error beside a loss's: one is known to a factor, one to percents."""

FAR = 1e-3
"""Squared norms this far below what a noise scale asks for weigh no more than those that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """A run at points of time, [T], with what lay between: [T] batches, rates, numbers of steps.

    A noise scale that was not measured is not a number. `variance` is that of one sample's gradient
    in units of SGD's rates, None where it is not known in them.
    """

    losses: Array
    noise_scales: Array
    batch_sizes: Array
    lrs: Array
    between: Array
    variance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What multiplies a spectrum, and how far from the record it then is.

    `loss_spread` is the root mean square of loss / fitted - 1, `noise_spread` that of the noise
    scale's logarithm.
    """

    start: float
    noise: float
    floor: float
    loss_spread: float
    noise_spread: float


def moments_along(spectrum: Spectrum, run: RecordedRun) -> tuple[Array, Array]:
    """E theta^2 at the points of the record, [T, D]: of the start alone, and of the noise alone."""
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
    """The scales on start and noise, and the floor, that come nearest; None if none is positive."""
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
    """Least squares in three numbers of at least 0, by trying which of them are 0; the second may
    be known."""
    size = np.abs(rows).max(axis=0)
    size = np.where(size > 0.0, size, 1.0)
    rows = rows / size  # or the largest column hides the others
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
