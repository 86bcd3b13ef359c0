"""Measure the time to forecast a schedule on a noisy quadratic, for each optimizer model.

    python benchmarks/plan.py [--rounds 40] [--stages 40] [--bins 2000]

By default, the schedule has 40 stages and the quadratic has 2000 directions. The baseline makes one
pass over the directions per stage and sums the loss, which is the least that a forecast must do.
"""

from __future__ import annotations

import argparse

import numpy as np

from _timing import Run, interleave
from largebatch.workbench.quadratic import (
    SGD,
    AveragedWeights,
    Dynamics,
    HeavyBall,
    Normalised,
    Phase,
    Preconditioned,
    Spectrum,
    forecast,
)

DYNAMICS: dict[str, Dynamics] = {
    "SGD": SGD(),
    "heavy ball": HeavyBall(momentum=0.9),
    "averaged SGD": AveragedWeights(decay=0.999),
    "averaged heavy ball": AveragedWeights(dynamics=HeavyBall(momentum=0.9), decay=0.999),
    "preconditioned SGD": Preconditioned(),
    "normalised SGD": Normalised(),
}


def followed(spectrum: Spectrum, phases: list[Phase], dynamics: Dynamics) -> Run:
    """Return a function that makes the forecast."""

    def run() -> None:
        forecast(spectrum, phases, dynamics=dynamics)

    return run


def one_pass(spectrum: Spectrum, phases: list[Phase]) -> Run:
    """Return a function that makes one multiplication and one sum per stage."""

    def run() -> None:
        e = spectrum.second_moment
        for phase in phases:
            e = e * (1.0 - 1e-6 * phase.lr)
            float(np.dot(spectrum.curvature, e))

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--stages", type=int, default=40)
    parser.add_argument("--bins", type=int, default=2000)
    given = parser.parse_args()
    spectrum = Spectrum.power_law(given.bins, curvature_exponent=1.0, start_exponent=0.5)
    phases = [
        Phase(batch_size=8 * 2 ** (m // 4), lr=0.5 * 0.9**m, steps=round(1000 * 1.2**m))
        for m in range(given.stages)
    ]
    runs = {"one pass": one_pass(spectrum, phases), "null": one_pass(spectrum, phases)}
    runs |= {name: followed(spectrum, phases, of) for name, of in DYNAMICS.items()}
    times = interleave(runs, rounds=given.rounds)
    title = f"{given.stages} stages, {given.bins} directions"
    print(times.table(title, to="one pass", per=1, unit="schedule"))


if __name__ == "__main__":
    main()
