"""AdaScale's gain at a known noise scale does not depend on how the batch is measured.

    python benchmarks/gain_doors.py [--seeds 40] [--only steady]

The batch is 1024 samples, 16 base batches of 64. It is measured by single examples, in parts of 8,
in parts of 64, or in 2 parts. The moments of each step are drawn (`_known_noise`).

1. `steady`: mean and standard deviation of the gain on stationary problems. Goals: each mean within
   2 % of the true gain, the means within 2 % of each other, and the standard deviations within a
   factor of 1.5 of each other, unless fewer parts know less (`expected_deviation`).
2. `clock`: the bias of the gain at several steps, and of the whole run's base steps.
3. `lag`: by how many base batches the gain's curve comes after the true one where the squared norm
   moves, compared with the paper's average, which keeps 1 - S / 1000 in each step.
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
"""Of the paper's average, in base batches."""

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
    """Return the gain of AdaScale for a variance of one sample and a squared norm, elementwise."""
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
    """Return the gains of the paper's average over parts of one base batch, [seeds, T].

    Each step keeps 1 - S / 1000 of the past. This is a naive twin of the library's averages.
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
    """Return the standard error of a gain from the mean of so many measured steps.

    A linear approximation. One step's variance estimate has the relative variance
    2 / ((parts - 1) D). The squared norm of the batch's gradient has the variance
    4 e + 2 D e^2 with e = V / (B D), and is independent of it.

    Args:
        variance: V of one sample; the squared norm is 1.
        parts: in which a step is measured.
        measured: steps.
        scale, base: S = B / B0, and B0 in samples.
        directions: D.
        same_batches: leave out the part that two ways to measure the same batches share.
    """
    batch = scale * base
    each = variance / batch / directions
    of_variance = 2.0 * variance**2 / ((parts - 1) * directions)
    of_batch_sqnorm = 0.0 if same_batches else 4.0 * each + 2.0 * directions * each**2
    # gain = (V / B0 + q) / (V / B + q) with q = |g_B|^2 - V / B, so the denominator is |g_B|^2
    by_variance = 1.0 / base - 1.0 / batch
    by_batch_sqnorm = 1.0 - float(gain_of(variance, 1.0, scale=scale, base=base))
    total = by_variance**2 * of_variance + by_batch_sqnorm**2 * of_batch_sqnorm
    return math.sqrt(total / measured) / (1.0 + variance / batch)


def expected_deviation(*, variance: float, parts: int) -> float:
    """Return the standard deviation of the gain that the paper's average has in the long run.

    An average that keeps a fraction k of the past is worth (1 + k) / (1 - k) steps.
    """
    keep = 1.0 - SCALE / WINDOW
    worth = (1.0 + keep) / (1.0 - keep)
    return gain_error(variance=variance, parts=parts, measured=worth)


def lag_of(gains: Array, true: Array, *, skip: int = 150, most: int = 400) -> int:
    """Return the delay in steps at which the true curve is closest to the measured one.

    The squared distance of the logarithms is least. Before its start the true curve is constant.

    Args:
        gains: mean over the seeds, [T].
        true: gains without noise and without memory, [T].
        skip: first steps that are left out.
        most: longest delay that is tried, in steps.
    """
    steps = np.arange(skip, len(true))

    def distance(delay: int) -> float:
        late = true[np.maximum(steps - delay, 0)]
        return float(((np.log(gains[skip:]) - np.log(late)) ** 2).sum())

    return min(range(most), key=distance)


def print_steady(*, seeds: int, steps: int = 400) -> None:
    """Print the mean and the standard deviation of the gain for each way of measuring."""
    print(f"\ngains on stationary problems, S = {SCALE}, {seeds} seeds x the last 3/4 of {steps}")
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
    print(f"\nbias of the gain at steps 1, 5, 20, 100, {steps} and of the clock, 20 directions")
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
    """Print the delay of the gain for each way of measuring, where the squared norm moves."""
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
            print(f"  noise scale {n:g} at first, {label}: " + ", ".join(lags), flush=True)


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
