"""Measure how closely the batch size follows a known noise scale that changes during the run.

    python benchmarks/growth_moving.py [--seeds 10] [--only adasgd]

A run has 1500 steps. The squared norm of the gradient changes by a factor of 10: it falls along the
whole run, rises within the middle tenth of the run, or rises in one step. The variance of one
sample's gradient is constant. The moments of each step are drawn at random (`_known_noise`).

Goal: After the batch size has first reached half the noise scale, 90 % of the steps have a batch
size between 0.5 and 2 noise scales, averaged over the seeds. A run that never reaches half the
noise scale counts as 0 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import largebatch as lb
from _known_noise import (
    Array,
    KnownNoise,
    Parts,
    equal_parts,
    falling,
    first_at_least,
    jumping,
    micro_batches,
    rising,
    simulate,
)

STEPS, FIRST = 1500, 16
NOISE_SCALES = (200.0, 2000.0)
"""Smallest and largest noise scale of a run, in samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Describe a squared norm that changes during the run.

    Args:
        sqnorms: Function from the number of steps to the squared norm of each step. The first
            squared norm is 1.
        variance: Variance of one sample's gradient.
    """

    sqnorms: Callable[[int], Array]
    variance: float


MOTIONS = {
    "falls tenfold": Motion(sqnorms=falling, variance=NOISE_SCALES[0]),
    "rises tenfold": Motion(sqnorms=rising, variance=NOISE_SCALES[1]),
    "jumps tenfold": Motion(sqnorms=jumping, variance=NOISE_SCALES[1]),
}
WAYS: dict[str, Parts] = {
    "micro-batches of 8": micro_batches(8),
    "micro-batches of 64": micro_batches(64),
    "micro-batches of 512": micro_batches(512),
    "2 parts": equal_parts(2),
}
RULES: dict[str, lb.Rule] = {
    "adasgd": lb.methods.adasgd(),
    "adadam": lb.methods.adadam(),
    "adaptive_growth": lb.methods.adaptive_growth(),
    "noise_scale_control": lb.Averaged(lb.methods.noise_scale_control()),
}


def within(batch_sizes: Array, noise_scales: Array) -> float:
    """Return the fraction of steps with a batch size of 0.5 to 2 noise scales.

    The steps are counted from the first step with a batch size of at least 0.5 noise scales. The
    result is 0 if no step has a batch size of at least 0.5 noise scales.
    """
    start = first_at_least(batch_sizes, 0.5 * noise_scales)
    if start is None:
        return 0.0
    ratio = batch_sizes[start:] / noise_scales[start:]
    return float(np.mean((ratio >= 0.5) & (ratio <= 2.0)))


def followed(
    rule: lb.Rule, motion: Motion, parts: Parts, *, directions: int, seeds: int
) -> tuple[Array, Array]:
    """Run the rule with each seed.

    Returns:
        The fraction of steps with a batch size of 0.5 to 2 noise scales, [seeds], and the ratio of
        batch size and noise scale after the last step, [seeds].
    """
    noise = KnownNoise(variance=motion.variance, directions=directions)
    sqnorms = motion.sqnorms(STEPS)
    scales = motion.variance / sqnorms
    fractions, ends = [], []
    for seed in range(seeds):
        run = simulate(
            rule, noise, first=FIRST, sqnorms=sqnorms, parts=parts, seed=(seed, directions)
        )
        fractions.append(within(run.batch_sizes[:-1], scales))
        ends.append(run.batch_sizes[-1] / scales[-1])
    return np.array(fractions), np.array(ends)


def print_rule(name: str, *, seeds: int) -> None:
    """Print the table of one rule."""
    print(
        f"\n{name}, {seeds} seeds per row; fraction of steps with a batch size of 0.5 to 2 noise "
        "scales"
    )
    for motion_name, motion in MOTIONS.items():
        for directions in (20, 100):
            for label, parts in WAYS.items():
                fractions, ends = followed(
                    RULES[name], motion, parts, directions=directions, seeds=seeds
                )
                print(
                    f"  {f'{motion_name}, {directions} directions, {label}':54} "
                    f"mean {fractions.mean():6.1%}  10 % quantile "
                    f"{np.quantile(fractions, 0.1):6.1%}  last batch / noise scale: median "
                    f"{np.median(ends):5.2f}, max {ends.max():6.2f}",
                    flush=True,
                )


def main() -> None:
    """Print a table for each rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=tuple(RULES), action="append")
    arguments = parser.parse_args()
    for name in RULES if arguments.only is None else arguments.only:
        print_rule(name, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
