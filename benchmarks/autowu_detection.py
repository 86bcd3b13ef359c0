"""Measure how often and how early AutoWarmUp detects a rise of the loss, and its false alarms.

    python benchmarks/autowu_detection.py [--seeds 200]

The losses are synthetic (`_loss_curves`) and do not depend on the learning rate. The length of the
warm-up, the scale, the noise and the shape depend on the seed. The program has three goals. At most
1 % of the curves without a rise cause a false alarm. 99 % of the rises are detected. The median
factor between the learning rate that the rule finds and the learning rate at the minimum is 1.5,
without `backoff`. The authors' decisions (`paper=True`) are measured for comparison.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from _loss_curves import (
    LossCurve,
    falling,
    growing,
    open_loop,
    plateau,
    sluggish,
    valley,
)
from largebatch.rules.auto_warm_up.rule import AutoWarmUp, warm_up_rate

Make = Callable[[int], LossCurve]

WITHOUT_A_RISE: dict[str, Make] = {
    "plateau": plateau,
    "falling": falling,
    "plateau, growing noise": partial(plateau, noise=growing),
    "plateau, autocorrelated": partial(plateau, noise=sluggish),
    "falling, autocorrelated": partial(falling, noise=sluggish),
}
WITH_A_RISE: dict[str, Make] = {
    "valley": valley,
    "valley, growing noise": partial(valley, noise=growing),
    "valley, autocorrelated": partial(valley, noise=sluggish),
}


@dataclass(frozen=True, slots=True)
class Ended:
    """Describe a warm-up that ended before its maximum length.

    Args:
        at: End of the warm-up, as a fraction of its maximum length.
        rate: Learning rate from which the decay starts.
    """

    at: float
    rate: float


def ended(rule: AutoWarmUp, curve: LossCurve) -> Ended | None:
    """Return when the rule ended the warm-up, or None if it did not end early."""
    steps = len(curve.losses)
    for step, decision in enumerate(open_loop(rule, curve.losses, warm_up=steps)):
        if "warm-up ended" in decision.reason:
            return Ended(step / steps, decision.lr_multiplier)
    return None


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a fraction."""
    z, share = 1.959964, count / of
    centre = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1.0 - share) / of + z * z / (4 * of * of))
    return (centre - half) / (1 + z * z / of), (centre + half) / (1 + z * z / of)


def shown(count: int, of: int) -> str:
    """Return a fraction with its interval as text, such as "3 of 1000, 0.3 % [0.1, 0.9]"."""
    low, high = wilson(count, of)
    share = f"{100 * count / of:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{count} of {of}, {share}"


def quantiles(values: Sequence[float], at: Sequence[float], digits: int) -> str:
    """Return several quantiles as text, such as "0.057 0.103 0.250"."""
    return " ".join(f"{x:.{digits}f}" for x in np.quantile(values, at))


def print_alarms(rule: AutoWarmUp, *, seeds: int) -> None:
    """Print the false alarms for each kind of curve without a rise."""
    print(f"{'false alarms':26}")
    for name, make in WITHOUT_A_RISE.items():
        count = sum(ended(rule, make(seed)) is not None for seed in range(seeds))
        print(f"  {name:24} {shown(count, seeds)}")


def print_rises(rule: AutoWarmUp, *, seeds: int) -> None:
    """Print the detections for each kind of curve with a rise."""
    for name, make in WITH_A_RISE.items():
        too_early, lates, logs = 0, [], []
        for seed in range(seeds):
            curve = make(seed)
            end = ended(rule, curve)
            if end is None:
                continue
            assert curve.minimum is not None
            true = warm_up_rate(x=curve.minimum, low=rule.low, high=rule.high)
            logs.append(math.log(end.rate / true))
            lates.append(end.at - curve.minimum)
            too_early += end.at < curve.minimum
        factors = [math.exp(abs(x)) for x in logs]
        print(f"  {name}")
        print(f"    {'ended':22} {shown(len(logs), seeds)}")
        print(f"    {'before the minimum':22} {shown(too_early, seeds)}")
        print(f"    {'factor: median':22} {statistics.median(factors):.3f}", end="")
        print(f", 90 95 99 %: {quantiles(factors, (0.9, 0.95, 0.99), 2)}")
        signed = [math.exp(x) for x in logs]
        print(f"    {'rate / true: 5 50 95 %':22} {quantiles(signed, (0.05, 0.5, 0.95), 3)}")
        print(f"    {'late by: 5 50 95 %':22} {quantiles(lates, (0.05, 0.5, 0.95), 3)}")


def main() -> None:
    """Print the results of the library's decisions and of the authors' decisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    seeds = parser.parse_args().seeds
    ours = AutoWarmUp(backoff=1.0)
    for title, rule in (
        ("AutoWarmUp()", ours),
        ("AutoWarmUp(paper=True, patience=3)", replace(ours, paper=True, patience=3)),
    ):
        print(f"\n{title}, {seeds} seeds of each kind")
        print_alarms(rule, seeds=seeds)
        print("rises")
        print_rises(rule, seeds=seeds)


if __name__ == "__main__":
    main()
