"""Count how often the confidence interval of the noise scale contains the true noise scale.

    python benchmarks/noise_coverage.py [--runs 300]

Each run is a series of estimates from equal parts of a batch of 32 samples, whose gradients have
known noise. The true gradient has the squared norm 1 and the direction with the most noise. Goal: a
95 % interval contains the true noise scale in at least 92 % of 300 runs, for each kind of noise,
noise scale, number of parts and length of the series. An interval without an upper bound contains
the true noise scale more often.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np

from _known_noise import Array
from largebatch.analysis.noise import NoiseEstimate, estimate_noise

BATCH = 32
NOISE_SCALES, PARTS, LENGTHS = (10.0, 300.0, 3000.0), (2, 4), (16, 64, 400)


def equal(directions: int) -> Array:
    """Return the fractions of the variance for equal directions, [D]."""
    return np.full(directions, 1.0 / directions)


def power_law(exponent: float, directions: int = 200) -> Array:
    """Return fractions of the variance that are proportional to i ** -exponent, [D]."""
    shares = np.arange(1, directions + 1, dtype=np.float64) ** -exponent
    return shares / shares.sum()


SPECTRA = {
    "20 equal directions": equal(20),
    "1 direction": equal(1),
    "2 equal directions": equal(2),
    "200 directions, 1 / i": power_law(1.0),
    "200 directions, 1 / i^2": power_law(2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Summarize the confidence intervals of many runs.

    Args:
        covered: Fraction of the intervals that contain the true noise scale.
        answered: Fraction of the runs that have an interval.
        unbounded: Fraction of the intervals without an upper bound.
        width: Median ratio of upper and lower bound, for intervals with both; NaN if there is none.
    """

    covered: float
    answered: float
    unbounded: float
    width: float

    def __str__(self) -> str:
        return (
            f"covered {self.covered:.3f}  answered {self.answered:.2f}  "
            f"without an upper bound {self.unbounded:.2f}  median high / low {self.width:.2f}"
        )


def series(
    rng: np.random.Generator, *, steps: int, parts: int, noise_scale: float, shares: Array
) -> Array:
    """Draw variance and squared norm of each step from their exact distribution, [T, 2].

    Args:
        rng: Random generator.
        steps: Number of steps T.
        parts: Number of equal parts of the batch, at least 2.
        noise_scale: Noise scale, which is the variance of one sample because the squared norm is 1.
        shares: Fraction of the variance in each direction; the sum is 1.
    """
    variances = noise_scale * shares
    gradient = rng.standard_normal((steps, len(shares))) * np.sqrt(variances / BATCH)
    gradient[:, 0] += 1.0
    freedom = parts - 1
    variance = rng.chisquare(freedom, size=gradient.shape) @ variances / freedom
    return np.stack([variance, (gradient**2).sum(axis=1) - variance / BATCH], axis=1)


def coverage_of(
    *, steps: int, parts: int, noise_scale: float, shares: Array, runs: int
) -> Coverage:
    """Return the summary of the confidence intervals of `runs` runs."""
    estimates = []
    for run in range(runs):
        rng = np.random.default_rng((run, steps, parts, int(noise_scale)))
        pairs = series(rng, steps=steps, parts=parts, noise_scale=noise_scale, shares=shares)
        estimates.append(estimate_noise(pairs))
    found = [each for each in estimates if isinstance(each, NoiseEstimate)]
    both = [each.high / each.low for each in found if math.isfinite(each.high) and each.low > 0.0]
    return Coverage(
        covered=float(np.mean([each.low <= noise_scale <= each.high for each in found])),
        answered=len(found) / runs,
        unbounded=float(np.mean([math.isinf(each.high) for each in found])),
        width=float(np.median(both)) if both else math.nan,
    )


def main() -> None:
    """Print one line per cell of the grid, and the smallest and the largest coverage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    covered = []
    for name, shares in SPECTRA.items():
        for noise_scale in NOISE_SCALES:
            for parts in PARTS:
                for steps in LENGTHS:
                    cell = coverage_of(
                        steps=steps, parts=parts, noise_scale=noise_scale, shares=shares, runs=runs
                    )
                    covered.append(cell.covered)
                    label = f"{name}, noise scale {noise_scale:g}, {parts} parts, {steps} steps"
                    print(f"{label:62} {cell}", flush=True)
    print(f"{len(covered)} cells: coverage from {min(covered):.3f} to {max(covered):.3f}")


if __name__ == "__main__":
    main()
