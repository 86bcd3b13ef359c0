"""What a decision costs in the middle of a run: a chain of five rules, from a reading to the next
decider.

    python benchmarks/decision.py [--rounds 1000]

The peer constructs the same values (measurement, decisions, states, decider) and computes nothing:
what immutable values cost alone. Both run in alternating blocks of one process, so that a noisy
machine touches both; the ratio is that of neighbouring blocks. The null compares the peer with
itself: no ratio within its spread means anything.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from largebatch.core.average import Average, MovingMoments
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement, Reading
from largebatch.core.rule import chain
from largebatch.rules import AdaScale, ClampLr, LimitGrowth, Schedule, WarmUp

CALLS = 20
RULE = chain(AdaScale(), Schedule(), WarmUp(), ClampLr(max=64.0), LimitGrowth())
START = replace(
    Decider.start(RULE, base_batch_size=64, batch_size=512, budget=Budget(base_steps=1_000_000.0)),
    base_steps=500_000.0,
)
MOMENTS = GradientMoments(batch_size=512, parts=8, batch_sqnorm=2.0, variance=100.0)
READING = Reading(samples=512, loss=1.0, batch_sqnorm=2.0, moments=MOMENTS)
WANTED = frozenset({"moments"})


def decide(decider: Decider) -> Decider:
    """One step of the library."""
    seen = decider.see(READING, base_lr=0.1)
    after, _ = decider.decide(seen)
    return after


def construct(decider: Decider) -> Decider:
    """The values of one step, without the arithmetic: those of the default, of AdaScale and of the
    schedule; the warm-up is over and the bounds find nothing to do."""
    Measurement(
        step=decider.step,
        samples=decider.samples,
        base_steps=decider.base_steps,
        batch_size=512,
        base_batch_size=64,
        ranks=1,
        base_lr=0.1,
        loss=1.0,
        finite=True,
        batch_sqnorm=2.0,
        moments=MOMENTS,
        preconditioned_moments=None,
        inner_product_variance=None,
        dataset_size=None,
        budget=decider.budget,
    )
    Decision(next_batch_size=512, base_steps=8.0)
    for reason in ("gain 3 of 8", "gain 3 of 8; schedule x0.5"):
        decision = Decision(
            next_batch_size=512,
            base_steps=3.0,
            lr_multiplier=3.0,
            measure_next=WANTED,
            reason=reason,
        )
    average = Average(values=(100.0, 2.0), weight=0.5, count=1)
    state = (MovingMoments(average=average, measured_at=1, temporal=False), None, None, None, None)
    return Decider(
        rule=RULE,
        state=state,
        base_batch_size=64,
        batch_size=decision.next_batch_size,
        measure=WANTED,
        step=decider.step + 1,
        samples=decider.samples + 512,
        base_steps=decider.base_steps + 3.0,
        skipped=0,
        ranks=1,
        dataset_size=None,
        budget=decider.budget,
    )


def microseconds(step: Callable[[Decider], Decider]) -> float:
    """Of one call, as the mean over a block of them."""
    decider = START
    begin = perf_counter()
    for _ in range(CALLS):
        decider = step(decider)
    return (perf_counter() - begin) / CALLS * 1e6


def show(name: str, values: list[float], unit: str) -> None:
    low, middle, high = statistics.quantiles(values, n=4)
    print(
        f"{name:24s} median {middle:7.3f} {unit:2s} [{low:.3f}, {high:.3f}]  min {min(values):.3f}"
    )


def main() -> None:
    """Prints medians with quartiles, and the least of all rounds."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=1000, help="pairs of blocks")
    rounds = arguments.parse_args().rounds
    microseconds(decide), microseconds(construct)  # warm caches
    ours, bare, again = [], [], []
    for at in range(rounds):
        blocks = [(decide, ours), (construct, bare), (construct, again)]
        for step, times in blocks if at % 2 else blocks[::-1]:
            times.append(microseconds(step))
    print(f"{rounds} rounds of {CALLS} calls, quartiles in brackets")
    show("see and decide, 5 rules", ours, "us")
    show("the same values alone", bare, "us")
    show("ratio", [a / b for a, b in zip(ours, bare, strict=True)], "")
    show("null ratio", [a / b for a, b in zip(again, bare, strict=True)], "")


if __name__ == "__main__":
    main()
