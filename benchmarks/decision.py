"""Measure the time of one decision of a chain of five rules in the middle of a run.

    python benchmarks/decision.py [--rounds 200]

The baseline creates the same immutable values (measurement, decisions, states, decider) without
computing anything. A decision starts with a reading and ends with the next decider.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from _timing import Run, interleave
from largebatch.core.average import Average, MovingMoments
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, GradientMoments, Measurement, Reading
from largebatch.core.rule import chain
from largebatch.rules import AdaScale, ClampLr, LimitGrowth, Schedule, WarmUp

STEPS = 200
RULE = chain(AdaScale(), Schedule(), WarmUp(), ClampLr(max=64.0), LimitGrowth())
START = replace(
    Decider.start(RULE, base_batch_size=64, batch_size=512, budget=Budget(base_steps=1_000_000.0)),
    base_steps=500_000.0,
)
MOMENTS = GradientMoments(batch_size=512, parts=8, batch_sqnorm=2.0, variance=100.0)
READING = Reading(samples=512, loss=1.0, batch_sqnorm=2.0, moments=MOMENTS)
WANTED = frozenset({"moments"})


def decide(decider: Decider) -> Decider:
    """Take one step with the library."""
    seen = decider.see(READING, base_lr=0.1)
    after, _ = decider.decide(seen)
    return after


def construct(decider: Decider) -> Decider:
    """Create the values of one step without any arithmetic.

    The values are those of the default decision, of AdaScale and of the schedule. The warm-up is
    over, and the bounds change nothing.
    """
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
        coordinate_noise_scale=None,
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


def steps_of(step: Callable[[Decider], Decider]) -> Run:
    """Return a function that takes `STEPS` steps, one after the other."""

    def run() -> None:
        decider = START
        for _ in range(STEPS):
            decider = step(decider)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    candidates = {"values": construct, "null": construct, "see and decide": decide}
    runs = {name: steps_of(step) for name, step in candidates.items()}
    times = interleave(runs, rounds=parser.parse_args().rounds)
    print(times.table("a decision of 5 rules", to="values", per=STEPS, unit="step"))


if __name__ == "__main__":
    main()
