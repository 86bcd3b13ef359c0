"""Test that AdaScale's gain does not depend on the number of parts in which a batch is measured.

    python benchmarks/gain_doors.py [--seeds 40] [--only steady]

A batch has 1024 samples, which are 16 base batches of 64 samples. The batch is measured in 4 ways:
by single examples, in parts of 8 samples, in parts of 64 samples, or in 2 parts. The moments of
each step are drawn at random with a known noise scale (`_known_noise`).

1. `steady`: mean and standard deviation of the gain on stationary problems. Goals: each mean is
   within 2 % of the true gain, the means are within 2 % of each other, and the standard deviations
   are within a factor of 1.5 of each other. Fewer parts give less information and may therefore
   have a larger standard deviation (`expected_deviation`).
2. `clock`: bias of the gain at several steps, and bias of the base steps of the whole run.
3. `lag`: delay of the gain compared with the true gain if the squared norm changes, in base
   batches. The delay is compared with that of the paper's average, which keeps the fraction
   1 - S / 1000 of the past in each step.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np

import largebatch as lb
from _known_noise import (
    Array,
    KnownNoise,
    Parts,
    equal_parts,
    falling,
    jumping,
    micro_batches,
    rising,
    simulate,
    steady,
)

BATCH, BASE, DIRECTIONS = 1024, 64, 100
SCALE = BATCH // BASE
NOISE_SCALES = (8000.0, 800.0)
WINDOW = 1000.0
"""Averaging window of the paper, in base batches."""

WAYS: dict[str, Parts] = {
    "single examples": micro_batches(1),
    "parts of 8": micro_batches(8),
    "parts of 64": micro_batches(64),
    "2 parts": equal_parts(2),
}
MOTIONS: dict[str, Callable[[int], Array]] = {
    "falls tenfold": falling,
    "rises tenfold": rising,
    "jumps tenfold": jumping,
}
SECTIONS = ("steady", "clock", "lag")


def gain_of(variance: Array | float, sqnorm: Array | float, *, scale: float, base: int) -> Array:
    """Return AdaScale's gain for the variance of one sample and the squared norm, elementwise."""
    of_base = np.asarray(variance, dtype=np.float64) / base
    return (of_base + sqnorm) / (of_base / scale + sqnorm)


def gains_of(
    parts: Parts,
    *,
    variance: float,
    sqnorms: Array,
    seeds: int,
    scale: int = SCALE,
    directions: int = DIRECTIONS,
) -> Array:
    """Run AdaScale with each seed; return the gains, [seeds, T]."""
    noise = KnownNoise(variance=variance, directions=directions)
    rule = lb.AdaScale()
    runs = [
        simulate(
            rule,
            noise,
            first=scale * BASE,
            base=BASE,
            sqnorms=sqnorms,
            parts=parts,
            seed=(seed, scale, int(variance)),
        ).gains
        for seed in range(seeds)
    ]
    return np.stack(runs)


def paper_gains(*, variance: float, sqnorms: Array, seeds: int) -> Array:
    """Return the gains with the paper's average over parts of one base batch, [seeds, T].

    Each step keeps the fraction 1 - S / 1000 of the past. This function is a simple reference
    implementation, with which the library's averages are compared.
    """
    noise = KnownNoise(variance=variance, directions=DIRECTIONS)
    keep, gains = 1.0 - SCALE / WINDOW, np.empty((seeds, len(sqnorms)))
    for seed in range(seeds):
        rng = np.random.default_rng((seed, SCALE, int(variance)))
        sums = np.zeros(3)
        for step, sqnorm in enumerate(sqnorms):
            m = noise.draw(rng, batch_size=BATCH, parts=SCALE, sqnorm=float(sqnorm))
            sums = keep * sums + (1.0 - keep) * np.array([m.variance, m.sqnorm, 1.0])
            mean = sums / sums[2]
            gains[seed, step] = gain_of(
                max(mean[0], 0.0), max(mean[1], 0.0), scale=SCALE, base=BASE
            )
    return gains


def gain_error(
    *,
    variance: float,
    parts: int,
    measured: float,
    scale: int = SCALE,
    base: int = BASE,
    directions: int = DIRECTIONS,
    same_batches: bool = False,
) -> float:
    """Return the standard error of a gain that is computed from the mean of several steps.

    The formula is a linear approximation. One step's variance estimate has the relative variance
    2 / ((parts - 1) D). The squared norm of the batch's gradient has the variance
    4 e + 2 D e^2 with e = V / (B D). The two are independent.

    Args:
        variance: Variance V of one sample's gradient. The squared norm is 1.
        parts: Number of parts in which a step is measured.
        measured: Number of measured steps.
        scale: Scale S = B / B0.
        base: Base batch size B0, in samples.
        directions: Number D of directions.
        same_batches: Whether to leave out the error of the squared norm. Two ways of measuring the
            same batches share this error.
    """
    batch = scale * base
    each = variance / batch / directions
    of_variance = 2.0 * variance**2 / ((parts - 1) * directions)
    of_batch_sqnorm = 0.0 if same_batches else 4.0 * each + 2.0 * directions * each**2
    # gain = (V / B0 + q) / (V / B + q) with q = |g_B|^2 - V / B, so the denominator is |g_B|^2.
    by_variance = 1.0 / base - 1.0 / batch
    by_batch_sqnorm = 1.0 - float(gain_of(variance, 1.0, scale=scale, base=base))
    total = by_variance**2 * of_variance + by_batch_sqnorm**2 * of_batch_sqnorm
    return math.sqrt(total / measured) / (1.0 + variance / batch)


def expected_deviation(*, variance: float, parts: int) -> float:
    """Return the standard deviation of the gain with the paper's average after many steps.

    An average that keeps a fraction k of the past is as accurate as a mean over (1 + k) / (1 - k)
    steps.
    """
    keep = 1.0 - SCALE / WINDOW
    worth = (1.0 + keep) / (1.0 - keep)
    return gain_error(variance=variance, parts=parts, measured=worth)


def lag_of(gains: Array, true: Array, *, skip: int = 150, most: int = 400) -> int:
    """Return the delay in steps with which the true gains are closest to the measured gains.

    The distance is the sum of the squared differences of the logarithms. Before the first step, the
    true gain is taken to be constant.

    Args:
        gains: Measured gains, averaged over the seeds, [T].
        true: True gains, without noise and without averaging, [T].
        skip: Number of first steps to leave out.
        most: Limit of the delays that are tried, in steps.
    """
    steps = np.arange(skip, len(true))

    def distance(delay: int) -> float:
        late = true[np.maximum(steps - delay, 0)]
        return float(((np.log(gains[skip:]) - np.log(late)) ** 2).sum())

    return min(range(most), key=distance)


def print_steady(*, seeds: int, steps: int = 400) -> None:
    """Print the mean and the standard deviation of the gain for each way of measuring."""
    print(f"\ngains on stationary problems, S = {SCALE}, {seeds} seeds, last 3/4 of {steps} steps")
    for n in NOISE_SCALES:
        true = float(gain_of(n, 1.0, scale=SCALE, base=BASE))
        print(f"  noise scale {n:g}: true gain {true:.4f}")
        for label, parts in WAYS.items():
            late = gains_of(parts, variance=n, sqnorms=steady(steps), seeds=seeds)[:, steps // 4 :]
            expected = expected_deviation(variance=n, parts=parts(BATCH))
            print(
                f"    {label:16} mean {late.mean():.4f} ({late.mean() / true - 1:+.2%})  "
                f"standard deviation {late.std():.4f}, expected {expected:.4f}",
                flush=True,
            )


def print_clock(*, seeds: int, steps: int = 200) -> None:
    """Print the bias of the gain along a run, for several scales and noise scales."""
    shown = (0, 4, 19, 99, steps - 1)
    print(
        f"\nbias of the gain at the steps 1, 5, 20, 100 and {steps}, and bias of the base steps; "
        "20 directions"
    )
    for scale, n in ((2, 640.0), (8, 640.0), (8, 5000.0), (32, 5000.0)):
        true = float(gain_of(n, 1.0, scale=scale, base=BASE))
        for parts in sorted({2, max(scale, 4)}):
            gains = gains_of(
                equal_parts(parts),
                variance=n,
                sqnorms=steady(steps),
                seeds=3 * seeds,
                scale=scale,
                directions=20,
            )
            bias = gains.mean(axis=0) / true - 1.0
            error = gains.mean(axis=1).std() / true / math.sqrt(len(gains))
            print(
                f"  S {scale:2} noise scale {n:4.0f} gain {true:5.2f} parts {parts:2}: "
                + " ".join(f"{bias[at]:+6.1%}" for at in shown)
                + f"   clock {bias.mean():+.2%} (standard error {error:.2%})",
                flush=True,
            )


def print_lag(*, seeds: int, steps: int = 1500) -> None:
    """Print the delay of the gain for each way of measuring if the squared norm changes."""
    print(f"\ndelay of the gain in base batches, S = {SCALE}, mean of {seeds} seeds")
    for n in NOISE_SCALES:
        for label, sqnorms in MOTIONS.items():
            moving = sqnorms(steps)
            true = gain_of(n, moving, scale=SCALE, base=BASE)
            paper = paper_gains(variance=n, sqnorms=moving, seeds=seeds).mean(axis=0)
            row = {"the paper's average": paper}
            for way, parts in WAYS.items():
                gains = gains_of(parts, variance=n, sqnorms=moving, seeds=seeds)
                row[way] = gains.mean(axis=0)
            lags = [f"{way} {lag_of(mean, true) * SCALE}" for way, mean in row.items()]
            start = f"  noise scale {n:g} at the start, squared norm {label}: "
            print(start + ", ".join(lags), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--only", choices=SECTIONS, action="append")
    given = parser.parse_args(arguments)
    parts = {"steady": print_steady, "clock": print_clock, "lag": print_lag}
    for name in SECTIONS if given.only is None else given.only:
        parts[name](seeds=given.seeds)


if __name__ == "__main__":
    main()
