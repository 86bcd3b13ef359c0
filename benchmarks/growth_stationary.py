"""Measure the final batch size of runs whose batch grows to a known and constant noise scale.

    python benchmarks/growth_stationary.py [--seeds 20] [--only adasgd] [--real 4]

The first part draws the moments of each step at random (`_known_noise`). The second part trains a
model on data with a known noise scale (`_real_noise`), with `Controller`, `BatchLoader` and
`adasgd()`.

Goals for adasgd(): At most 2 % of all runs and at most 4 % of the runs in each row end above 2
noise scales, and no run ends above 4 noise scales. The median final batch size of each row is
between 0.7 and 1.3 noise scales. The median number of steps to half the noise scale is at most 1.5
times that of version 0.1.0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import largebatch as lb
from _known_noise import (
    Array,
    KnownNoise,
    Parts,
    equal_parts,
    first_at_least,
    simulate,
    steady,
)
from _real_noise import RealNoise, grown_batches

EIGHT_AND_TWO: dict[str, Parts] = {"8 parts": equal_parts(8), "2 parts": equal_parts(2)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Describe a problem with a constant noise scale.

    Args:
        first: Batch size of the first step, which is also the base batch size.
        noise_scale: Noise scale, in samples.
        directions: Number of directions with equal noise.
        half: Median number of steps that adasgd() of version 0.1.0 took to half the noise scale.
        steps: Number of steps of a run.
    """

    first: int
    noise_scale: int
    directions: int
    half: int
    steps: int = 1500

    def __str__(self) -> str:
        return (
            f"first batch {self.first}, noise scale {self.noise_scale}, "
            f"{self.directions} directions"
        )


PROBLEMS = (
    Problem(first=16, noise_scale=200, directions=100, half=21),
    Problem(first=16, noise_scale=1000, directions=20, half=41),
    Problem(first=16, noise_scale=1000, directions=100, half=41),
    Problem(first=16, noise_scale=1000, directions=1000, half=41),
    Problem(first=16, noise_scale=4000, directions=100, half=61),
    Problem(first=16, noise_scale=4000, directions=1000, half=61),
    Problem(first=64, noise_scale=4000, directions=100, half=41),
    Problem(first=16, noise_scale=72, directions=14, half=11, steps=800),
    Problem(first=16, noise_scale=200, directions=20, half=21, steps=800),
    Problem(first=16, noise_scale=400, directions=20, half=31, steps=800),
)

RULES: dict[str, lb.Rule] = {
    "adasgd": lb.methods.adasgd(),
    "adadam": lb.methods.adadam(),
    "adaptive_growth": lb.methods.adaptive_growth(),
    "noise_scale_control": lb.Averaged(lb.methods.noise_scale_control()),
    "gradient_diversity": lb.Averaged(lb.methods.gradient_diversity(delta=1.0)),
    "cosine_test": lb.Averaged(lb.methods.cosine_test(target=1 / 3)),
    "CABS": lb.rules.CABS(),
}
"""Rules that propose a batch size of one noise scale; gradient diversity proposes one sample more.

CABS is among them because the learning rate and the loss of a simulated run are 1.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Hold the batch sizes of the runs of one row, in noise scales.

    Args:
        final: Batch size after the last step, [seeds].
        largest: Largest batch size of each run, [seeds].
        half: Number of steps to half the noise scale, [seeds]; infinite if it was never reached.
    """

    final: Array
    largest: Array
    half: Array

    def above(self, factor: float) -> float:
        """Return the fraction of runs that ended above `factor` noise scales."""
        return float(np.mean(self.final > factor))

    @property
    def median_half(self) -> float:
        """Return the median number of steps to half the noise scale."""
        return float(np.median(self.half))

    def __str__(self) -> str:
        return (
            f"median {np.median(self.final):5.2f}  >2n {self.above(2.0):6.1%}  "
            f">4n {self.above(4.0):6.1%}  max {self.final.max():5.1f}  "
            f"ever >2n {np.mean(self.largest > 2.0):6.1%}  steps to n/2 {self.median_half:.0f}"
        )


def ends_of(rule: lb.Rule, problem: Problem, parts: Parts, *, seeds: int) -> Ends:
    """Run the rule on a problem with each seed."""
    noise = KnownNoise(variance=problem.noise_scale, directions=problem.directions)
    runs = [
        simulate(
            rule,
            noise,
            first=problem.first,
            sqnorms=steady(problem.steps),
            parts=parts,
            seed=(seed, problem.first, problem.noise_scale, problem.directions),
        ).batch_sizes
        for seed in range(seeds)
    ]
    return ends_of_runs(runs, noise_scale=problem.noise_scale)


def ends_of_runs(runs: Sequence[Array], *, noise_scale: float) -> Ends:
    """Return the summary of runs, each given by the batch sizes of its steps."""
    levels = np.array(0.5 * noise_scale)
    half = [first_at_least(sizes, levels) for sizes in runs]
    return Ends(
        final=np.array([sizes[-1] for sizes in runs]) / noise_scale,
        largest=np.array([sizes.max() for sizes in runs]) / noise_scale,
        half=np.array([math.inf if at is None else at for at in half]),
    )


def pooled(rows: Sequence[Ends]) -> str:
    """Summarize all rows in one line."""
    final = np.concatenate([row.final for row in rows])
    return (
        f"all {len(final)} runs: >2n {np.mean(final > 2.0):.2%}  >4n {np.mean(final > 4.0):.2%}  "
        f"max {final.max():.1f}; worst row >2n {max(row.above(2.0) for row in rows):.1%}"
    )


def print_rule(name: str, *, seeds: int) -> None:
    """Print the table of one rule."""
    print(f"\n{name}, {seeds} seeds per row; final batch sizes in units of the noise scale n")
    rows = []
    for problem in PROBLEMS:
        for label, parts in EIGHT_AND_TWO.items():
            ends = ends_of(RULES[name], problem, parts, seeds=seeds)
            rows.append(ends)
            print(f"  {f'{problem}, {label}':58} {ends} (0.1.0: {problem.half})", flush=True)
    print(f"  {pooled(rows)}", flush=True)


def print_real(*, seeds: int) -> None:
    """Print the table of whole training runs."""
    print(
        f"\nController, BatchLoader and adasgd(), {seeds} seeds; noise scale 1000, first batch 16"
    )
    for size in (8, 64, 512):
        runs = [grown_batches(RealNoise(seed=seed), micro_batch=size) for seed in range(seeds)]
        ends = ends_of_runs(runs, noise_scale=1000.0)
        print(f"  {f'micro-batches of at most {size}':58} {ends}", flush=True)


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--real", type=int, default=4, help="number of training runs; 0 for none")
    parser.add_argument("--only", choices=tuple(RULES), action="append")
    arguments = parser.parse_args()
    for name in RULES if arguments.only is None else arguments.only:
        print_rule(name, seeds=arguments.seeds)
    if arguments.real:
        print_real(seeds=arguments.real)


if __name__ == "__main__":
    main()
