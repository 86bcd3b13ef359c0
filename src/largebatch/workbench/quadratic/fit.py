"""Fit a noisy quadratic to a recorded run, with power laws that match its losses and noise scales.

    lambda = curvature * i^-p,   e = start * i^-q,   c = noise * i^-p,   loss + floor

The curvature and the exponents p and q are searched from a grid of starting points. For each
curvature and pair of exponents, a least-squares fit gives start, noise and floor. The model assumes
plain SGD. For SGD with momentum m, pass lr / (1 - m) as the learning rate. The measured variance of
one sample's gradient sets the size of the noise. For an optimizer that divides the gradient, do not
pass the variance, because only the noise scale has the units of the model. The formulas in this
file are this library's own derivation.
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
"""Smallest number of losses for a fit. The fit determines five numbers and a floor."""

FEWEST_NOISE_SCALES = 2
LARGEST_SPREAD = 0.2
"""Largest accepted root mean square of the relative error of the fitted losses."""

BINS = 200
POINTS = 64
"""Largest number of points of a record that are used.

The points are spaced evenly in the logarithm of the step.
"""

Series = Sequence[float] | Array


@dataclass(frozen=True, slots=True, kw_only=True)
class QuadraticFit:
    """Hold a spectrum that is fitted to a recorded run.

    >>> spectrum = Spectrum.power_law(4, curvature_exponent=1.0, start_exponent=0.5)
    >>> fit = QuadraticFit(spectrum=spectrum, curvature_exponent=1.0, start_exponent=0.5,
    ...     loss_spread=0.01, noise_spread=0.2, points=20)
    >>> print(fit)  # doctest: +ELLIPSIS
    lambda ~ i^-1, e ~ i^-0.5, floor 0; losses within 1 %, ... (20 points)

    Args:
        spectrum: Spectrum at the start of the run.
        curvature_exponent: Exponent p of the curvature.
        start_exponent: Exponent q of the weights at the start.
        loss_spread: Root mean square of loss / fitted loss - 1.
        noise_spread: Root mean square of ln(noise scale / fitted noise scale).
        points: Number of losses that were used.
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
    """Return the power law that is nearest to a recorded run, or the reason why no power law fits.

    Entry t of each series describes the run after `steps[t]` steps and `samples[t]` samples.
    Between two entries, the batch size is the number of samples divided by the number of steps, and
    the learning rate equals the learning rate of the later entry.

    >>> print(fit_quadratic(steps=[1, 2], samples=[8, 16], losses=[2.0, 1.0], batch_sizes=[8, 8],
    ...     lrs=[0.1, 0.1], noise_scales=[10.0, 20.0]))
    not enough signal yet: 2 losses; needed: at least 10 losses over the whole run

    Args:
        steps: [T], numbers of optimizer steps since the start, increasing and above 0.
        samples: [T], numbers of training samples since the start, increasing and above 0.
        losses: [T], losses above 0. Use losses of a validation split, or smoothed losses.
        batch_sizes: [T], batch size of the last step before each entry, in samples. The batch size
            is checked against the numbers of samples.
        lrs: [T], learning rate of the last step before each entry.
        noise_scales: [T], noise scales in samples; NaN if not measured.
        variance: Mean variance of one sample's gradient over the run, tr Sigma, above 0. Pass None
            if the variance is unknown or the optimizer is not SGD.
        dimensions: Number of weights of the model.

    Raises:
        ValueError: The series have different lengths, a number is outside its range, or the batch
            sizes do not match the numbers of samples per step.
    """
    if variance is not None and not 0.0 < variance < np.inf:
        raise ValueError(
            f"variance={variance!r} was given, but the variance must be finite and above 0. Pass "
            "variance=None if it is unknown."
        )
    run = replace(
        _recorded(steps, samples, losses, batch_sizes, lrs, noise_scales), variance=variance
    )
    missing = _missing(run)
    if missing is not None:
        return missing
    at, scales = _searched(run, dimensions)
    if scales is None or scales.loss_spread > LARGEST_SPREAD:
        return NotEnough(
            reason="no power law is near the losses",
            needed="a loss that never rises, smoothed losses, and the learning rates of plain SGD",
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
    """Return the best point (ln curvature, p, q) and the scales at the best point."""

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
            reason=f"{count} losses", needed=f"at least {FEWEST_POINTS} losses over the whole run"
        )
    if measured < FEWEST_NOISE_SCALES:
        return NotEnough(
            reason=f"{measured} measured noise scales",
            needed=f"at least {FEWEST_NOISE_SCALES} noise scales, far apart in the run",
        )
    scatter = float(np.median(np.abs(np.diff(run.losses, n=2)))) / 2.0
    third = count // 3
    fall = float(run.losses[:third].mean() - run.losses[-third:].mean())
    if fall <= 3.0 * scatter or fall <= 0.0:
        return NotEnough(
            reason="the fall of the loss is not larger than its scatter",
            needed="a longer run, smoothed losses, or losses of a validation split",
        )
    return None


def _recorded(*series: Series) -> RecordedRun:
    names = ("steps", "samples", "losses", "batch_sizes", "lrs", "noise_scales")
    arrays = dict(zip(names, (np.asarray(x, dtype=np.float64) for x in series), strict=True))
    if len({x.shape for x in arrays.values()}) != 1 or arrays["steps"].ndim != 1:
        shapes = {name: x.shape for name, x in arrays.items()}
        raise ValueError(
            "fit_quadratic needs six one-dimensional series of the same length, but the shapes "
            f"{shapes} were given. Pass one value per point in each series."
        )
    for name in names[:5]:
        if not (np.isfinite(arrays[name]) & (arrays[name] > 0.0)).all():
            raise ValueError(
                f"{name} holds a number that is not finite and above 0. Remove the points with "
                f"such a number from all series."
            )
    measured = arrays["noise_scales"][np.isfinite(arrays["noise_scales"])]
    if not (measured > 0.0).all():
        raise ValueError(
            "noise_scales holds a number that is not above 0. Replace it by math.nan, which means "
            "that the noise scale was not measured."
        )
    between = [np.diff(arrays[name], prepend=0.0) for name in ("steps", "samples")]
    if not all((x > 0.0).all() for x in between):
        raise ValueError(
            "steps and samples must be above 0 and increase from point to point. Sort the points "
            "and remove duplicates."
        )
    batches = between[1] / between[0]
    before = np.concatenate([arrays["batch_sizes"][:1], arrays["batch_sizes"][:-1]])
    low = 0.99 * np.minimum(before, arrays["batch_sizes"])
    high = 1.01 * np.maximum(before, arrays["batch_sizes"])
    if not ((low <= batches) & (batches <= high)).all():
        t = int(np.flatnonzero(~((low <= batches) & (batches <= high)))[0])
        raise ValueError(
            f"The steps before point {t} had {batches[t]:.6g} samples per step, but batch_sizes "
            f"holds {before[t]:.6g} to {arrays['batch_sizes'][t]:.6g} for these steps. Pass "
            "samples and batch_sizes that count the samples of all ranks."
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
    """Return the run at `POINTS` points, with means of batch size, learning rate and noise scale.

    The means are taken over the steps between two points.
    """
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
