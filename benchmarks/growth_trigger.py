"""Measure the cost of deciding when a batch grows, by the noise scale or by passes over the data.

    python benchmarks/growth_trigger.py [--rounds 100] [--only decide|run|samples]

`decide` runs the chain of `adaptive_growth` over recorded measurements, with a test in every step
or in every 10th step. The chain is compared with `Observe`, which requests the same moments and
decides nothing. `run` trains a small model with `Controller` and is compared with the same run with
`Observe`. No test proposes a larger batch, so all runs have the same batch size. `samples` computes
the number of samples that the check of the full gradient needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import nn

import largebatch as lb
from _timing import Run, interleave
from largebatch.core.decider import Decider
from largebatch.core.measurement import Measurement

STEPS = 200
"""Number of steps in one timed run of `decide`. A timed run of `run` has a tenth of these steps."""

DATASET = 4096
SIZE = 64

OBSERVE = lb.Observe()
EACH = lb.methods.adaptive_growth(kappa=1e-6, every=1)
TENTH = lb.methods.adaptive_growth(kappa=1e-6, every=10)
TENTH_OBSERVED = lb.Every(OBSERVE, steps=10)

ROWS = (("digits", 1071, 16), ("Fashion-MNIST", 55_000, 8), ("Fashion-MNIST", 55_000, 64))
"""Data set, its number of samples, and the batch size of each row of `samples`."""


def controller(rule: lb.Rule, record: lb.MemoryRecord | None = None) -> lb.Controller:
    """Return the controller of a small model on synthetic data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    x = torch.randn(DATASET, 64)
    data = x, (x @ torch.randn(64, 10)).argmax(1)
    batches = lb.BatchLoader(data, batch_size=SIZE, max_micro_batch_size=SIZE // 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return lb.Controller(model, optimizer, rule, batches, base_batch_size=SIZE, record=record)


def trained(control: lb.Controller, *, steps: int) -> Run:
    """Return a function that takes the next `steps` steps of one endless run."""
    endless = control.steps(steps=10**9)
    model = control.model

    def run() -> None:
        for _ in range(steps):
            for x, y in next(endless):
                control.backward(nn.functional.cross_entropy(model(x), y))
            assert control.step().next_batch_size == SIZE

    return run


def recorded() -> list[Measurement]:
    """Return the measurements of a run with `Observe`."""
    record = lb.MemoryRecord()
    trained(controller(OBSERVE, record), steps=STEPS + 1)()
    return [seen for seen, _ in record.steps][:STEPS]


def decided(rule: lb.Rule, measurements: Sequence[Measurement]) -> Run:
    """Return a function that decides on all measurements with a new decider."""
    start = Decider.start(rule, base_batch_size=SIZE, batch_size=SIZE, dataset_size=DATASET)

    def run() -> None:
        decider = start
        for seen in measurements:
            decider, _ = decider.decide(seen)
        assert decider.batch_size == SIZE

    return run


def samples() -> str:
    """Return a table of the samples of a check, divided by the training samples between checks."""
    lines = ["\nsamples of a check / training samples between two checks, one check in 1000 steps:"]
    for name, count, batch in ROWS:
        lines.append(f"{name:16} n = {count:<8} batch {batch:<6} {count / (1000 * batch):8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Print a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--only", choices=("decide", "run", "samples"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.only in (None, "decide"):
        measurements = recorded()
        rules = {
            "observe": OBSERVE,
            "null": OBSERVE,
            "a test in every step": EACH,
            "a test in every 10th": TENTH,
        }
        runs = {name: decided(rule, measurements) for name, rule in rules.items()}
        times = interleave(runs, rounds=arguments.rounds)
        print(times.table("decisions alone", to="observe", per=STEPS, unit="step"), flush=True)
    if arguments.only in (None, "run"):
        pairs = (("every step", OBSERVE, EACH), ("every 10th step", TENTH_OBSERVED, TENTH))
        for name, observe, rule in pairs:
            rules = {"observe": observe, "null": observe, "adaptive growth": rule}
            steps = STEPS // 10
            runs = {n: trained(controller(one), steps=steps) for n, one in rules.items()}
            times = interleave(runs, rounds=arguments.rounds)
            title = f"a Controller that measures in {name}"
            print(times.table(title, to="observe", per=steps, unit="step"), flush=True)
    if arguments.only in (None, "samples"):
        print(samples())


if __name__ == "__main__":
    main()
