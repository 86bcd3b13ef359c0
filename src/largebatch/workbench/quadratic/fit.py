"""A noisy quadratic from a recorded run: power laws that match its losses and its noise scales.

    lambda = curvature i^-p,   e = start i^-q,   c = noise i^-p,   loss + floor

Searched: curvature, p, q, from a grid of starts; start, noise and floor follow by least squares.
The run is taken for plain SGD; with momentum m give lr / (1 - m). There the measured variance of
one sample's gradient says how large the noise is. Of an optimizer that divides the gradient only
the noise scale is in units of the model's. Derived here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from largebatch.core.not_enough import NotEnough
from largebatch.workbench.quadratic.curves import NOISE_WEIGHT, RecordedRun, Scales, best_scales
from largebatch.workbench.quadratic.minimise import simplex_minimum
from largebatch.workbench.quadratic.spectrum import Array, Spectrum

FEWEST_POINTS = 10
"""Five numbers and a floor from fewer losses are no test of the model."""

FEWEST_NOISE_SCALES = 2
LARGEST_SPREAD = 0.2
"""Losses further from the curve than a fifth do not follow it."""

BINS = 200
POINTS = 64
"""A longer record is read at so many points, evenly in the logarithm of the step."""

Series = Sequence[float] | Array


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticFit:
    """A spectrum that behaves like the recorded run.

    Args:
        spectrum: at the start of the run.
        curvature_exponent, start_exponent: p and q.
        loss_spread: root mean square of loss / fitted - 1.
        noise_spread: the same of the noise scale's logarithm.
        points: losses that were used.
    """

    spectrum: Spectrum
    curvature_exponent: float
    start_exponent: float
    loss_spread: float
    noise_spread: float
    points: int

    def __str__(self) -> str:
        return (
            f"lambda ~ i^-{self.curvature_exponent:.3g}, e ~ i^-{self.start_exponent:.3g}, "
            f"floor {self.spectrum.floor:.3g}; losses within {100 * self.loss_spread:.2g} %, "
            f"noise scales within {100 * self.noise_spread:.2g} % ({self.points} points)"
        )


def fit_quadratic(
    *,
    steps: Series,
    samples: Series,
    losses: Series,
    batch_sizes: Series,
    lrs: Series,
    noise_scales: Series,
    variance: float | None = None,
    dimensions: int = 100_000,
) -> QuadraticFit | NotEnough:
    """The power law nearest to a recorded run, or what is missing for one.

    Entry t is the state after `steps[t]` steps and `samples[t]` samples. Between two entries the
    batch is that of the samples over the steps, and the rate that of the later entry.

    >>> print(fit_quadratic(steps=[1, 2], samples=[8, 16], losses=[2.0, 1.0], batch_sizes=[8, 8],
    ...     lrs=[0.1, 0.1], noise_scales=[10.0, 20.0]))
    not enough signal yet: 2 losses; needed: at least 10, over all of the run

    Args:
        steps, samples: [T], so far, rising, above 0.
        losses: [T], above 0, best of a validation split or smoothed.
        batch_sizes, lrs: [T], of the entry's last step; batches are compared with the samples.
        noise_scales: [T], in samples; not a number where it was not measured.
        variance: of one sample's gradient, tr Sigma, in the mean over the run, above 0; None where
            the optimizer is not SGD, or nothing measured it.
        dimensions: of the weights.

    Raises:
        ValueError: series of different lengths, numbers outside their range, or batch sizes that
            are not the samples of a step.
    """
    if variance is not None and not 0.0 < variance < np.inf:
        raise ValueError(f"variance is above 0, or None; got {variance!r}.")
    run = replace(
        _recorded(steps, samples, losses, batch_sizes, lrs, noise_scales), variance=variance
    )
    missing = _missing(run)
    if missing is not None:
        return missing
    at, scales = _searched(run, dimensions)
    if scales is None or scales.loss_spread > LARGEST_SPREAD:
        return NotEnough(
            reason="no power law of curvature and start lies near the losses",
            needed="a run that only falls, smoothed losses, and the rates of plain SGD",
        )
    law = _law(at, dimensions)
    spectrum = Spectrum(
        curvature=law.curvature,
        noise=scales.noise * law.noise,
        second_moment=scales.start * law.second_moment,
        weight=law.weight,
        floor=scales.floor,
    )
    return QuadraticFit(
        spectrum=spectrum,
        curvature_exponent=float(at[1]),
        start_exponent=float(at[2]),
        loss_spread=scales.loss_spread,
        noise_spread=scales.noise_spread,
        points=len(run.losses),
    )


def _law(at: Array, dimensions: int) -> Spectrum:
    return Spectrum.power_law(
        dimensions,
        curvature=float(np.exp(at[0])),
        curvature_exponent=float(at[1]),
        start_exponent=float(at[2]),
        noise_exponent=float(at[1]),
        bins=BINS,
    )


def _searched(run: RecordedRun, dimensions: int) -> tuple[Array, Scales | None]:
    """(ln curvature, p, q) and the scales there."""

    def distance(at: Array) -> float:
        if not (0.0 <= at[1] <= 4.0 and -2.0 <= at[2] <= 4.0):
            return np.inf
        scales = best_scales(_law(at, dimensions), run)
        if scales is None:
            return np.inf
        return float(
            np.log(scales.loss_spread**2 + (NOISE_WEIGHT * scales.noise_spread) ** 2 + 1e-24)
        )

    limit = np.log(2.0 / run.lrs.max())
    grid = product(limit - np.array([0.5, 2.0, 4.0]), (0.8, 1.2, 1.8), (0.0, 0.5, 1.0))
    starts = sorted((np.array(at) for at in grid), key=distance)[:3]
    found = [simplex_minimum(distance, start, size=0.3) for start in starts]
    best = min(found, key=lambda pair: pair[1])
    best = simplex_minimum(distance, best[0], size=0.1)
    return best[0], best_scales(_law(best[0], dimensions), run) if best[1] < np.inf else None


def _missing(run: RecordedRun) -> NotEnough | None:
    count, measured = len(run.losses), int(np.isfinite(run.noise_scales).sum())
    if count < FEWEST_POINTS:
        return NotEnough(
            reason=f"{count} losses", needed=f"at least {FEWEST_POINTS}, over all of the run"
        )
    if measured < FEWEST_NOISE_SCALES:
        return NotEnough(
            reason=f"{measured} measured noise scales",
            needed=f"at least {FEWEST_NOISE_SCALES}, far apart in the run",
        )
    scatter = float(np.median(np.abs(np.diff(run.losses, n=2)))) / 2.0
    third = count // 3
    fall = float(run.losses[:third].mean() - run.losses[-third:].mean())
    if fall <= 3.0 * scatter or fall <= 0.0:
        return NotEnough(
            reason="the loss falls by no more than it scatters",
            needed="a longer run, or losses that are smoothed or of a validation split",
        )
    return None


def _recorded(*series: Series) -> RecordedRun:
    names = ("steps", "samples", "losses", "batch_sizes", "lrs", "noise_scales")
    arrays = dict(zip(names, (np.asarray(x, dtype=np.float64) for x in series), strict=True))
    if len({x.shape for x in arrays.values()}) != 1 or arrays["steps"].ndim != 1:
        shapes = {name: x.shape for name, x in arrays.items()}
        raise ValueError(f"fit_quadratic takes one number of each for a point; got {shapes}.")
    for name in names[:5]:
        if not (np.isfinite(arrays[name]) & (arrays[name] > 0.0)).all():
            raise ValueError(f"{name} are finite numbers above 0; leave out points that are not.")
    measured = arrays["noise_scales"][np.isfinite(arrays["noise_scales"])]
    if not (measured > 0.0).all():
        raise ValueError("noise_scales are above 0; give math.nan where none was measured.")
    between = [np.diff(arrays[name], prepend=0.0) for name in ("steps", "samples")]
    if not all((x > 0.0).all() for x in between):
        raise ValueError("steps and samples rise from point to point, from above 0 on.")
    batches = between[1] / between[0]
    before = np.concatenate([arrays["batch_sizes"][:1], arrays["batch_sizes"][:-1]])
    low = 0.99 * np.minimum(before, arrays["batch_sizes"])
    high = 1.01 * np.maximum(before, arrays["batch_sizes"])
    if not ((low <= batches) & (batches <= high)).all():
        t = int(np.flatnonzero(~((low <= batches) & (batches <= high)))[0])
        raise ValueError(
            f"between points {t - 1} and {t} a step had {batches[t]:.6g} samples, and batch_sizes "
            f"say {before[t]:.6g} to {arrays['batch_sizes'][t]:.6g}. Give the samples of all ranks."
        )
    run = RecordedRun(
        losses=arrays["losses"],
        noise_scales=np.where(np.isfinite(arrays["noise_scales"]), arrays["noise_scales"], np.nan),
        batch_sizes=batches,
        lrs=arrays["lrs"],
        between=between[0],
    )
    return run if len(batches) <= POINTS else _thinned(run)


def _thinned(run: RecordedRun) -> RecordedRun:
    """The same at `POINTS` points; batch, rate and noise scale are means over the steps between."""
    last = np.unique(np.geomspace(1, len(run.losses), POINTS).round().astype(int)) - 1
    first = np.concatenate([[0], last[:-1] + 1])
    seen = np.isfinite(run.noise_scales)

    def total(values: Array) -> Array:
        return np.add.reduceat(values.astype(np.float64), first)

    steps, count = total(run.between), total(seen)
    with np.errstate(invalid="ignore"):
        noise_scales = total(np.where(seen, run.noise_scales, 0.0)) / count
    return RecordedRun(
        losses=run.losses[last],
        noise_scales=noise_scales,
        batch_sizes=total(run.between * run.batch_sizes) / steps,
        lrs=total(run.between * run.lrs) / steps,
        between=steps,
    )
