"""What deciding when a batch grows costs: by the noise scale of the steps, by passes over the data.

    python benchmarks/growth_trigger.py [--rounds 100] [--only decide|run|samples]

`decide`: the chain of `adaptive_growth` over measurements that were recorded, a test in each step and
in each tenth, beside `Observe`, which asks for the same moments and decides nothing. `run`: a whole
`Controller` with a small model, beside the same that only observes. `samples`: what the check of the
full gradient costs, which is arithmetic: n samples each.
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
"""Of one run of a candidate that decides; of one that trains a tenth."""

DATASET = 4096
SIZE = 64

OBSERVE = lb.Observe()
EACH = lb.methods.adaptive_growth(max=SIZE, every=1)
TENTH = lb.methods.adaptive_growth(max=SIZE, every=10)
TENTH_OBSERVED = lb.Every(OBSERVE, steps=10)

ROWS = (("digits", 1347, 16), ("Fashion-MNIST", 55_000, 8), ("Fashion-MNIST", 55_000, 64))
"""(data, samples of it, batch) whose checks are counted."""


def controller(rule: lb.Rule, record: lb.MemoryRecord | None = None) -> lb.Controller:
    """A run of a small perceptron on made-up data, whose batch the cap holds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    data = torch.randn(DATASET, 64), torch.randint(10, (DATASET,))
    batches = lb.BatchLoader(data, batch_size=SIZE, max_micro_batch_size=SIZE // 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return lb.Controller(model, optimizer, rule, batches, base_batch_size=SIZE, record=record)


def trained(control: lb.Controller, *, steps: int) -> Run:
    """So many steps of one endless run, one after the other."""
    endless = control.steps(steps=10**9)
    model = control.model

    def run() -> None:
        for _ in range(steps):
            for x, y in next(endless):
                control.backward(nn.functional.cross_entropy(model(x), y))
            control.step()

    return run


def recorded() -> list[Measurement]:
    """The measurements of a run that only observes."""
    record = lb.MemoryRecord()
    trained(controller(OBSERVE, record), steps=STEPS + 1)()
    return [seen for seen, _ in record.steps][:STEPS]


def decided(rule: lb.Rule, measurements: Sequence[Measurement]) -> Run:
    """A fresh decider over all of them."""
    start = Decider.start(rule, base_batch_size=SIZE, batch_size=SIZE, dataset_size=DATASET)

    def run() -> None:
        decider = start
        for seen in measurements:
            decider, _ = decider.decide(seen)

    return run


def samples() -> str:
    """What passes cost beside the training samples between two checks."""
    lines = ["\nsamples of a check each 1000 steps, over the training samples between two:"]
    for name, count, batch in ROWS:
        lines.append(f"{name:16} n = {count:<8} batch {batch:<6} {count / (1000 * batch):8.2f}")
    return "\n".join(lines)


def main() -> None:
    """Prints a table for each."""
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
            "a test in each step": EACH,
            "a test in each 10th": TENTH,
        }
        runs = {name: decided(rule, measurements) for name, rule in rules.items()}
        times = interleave(runs, rounds=arguments.rounds)
        print(times.table("decisions alone", to="observe", per=STEPS, unit="step"), flush=True)
    if arguments.only in (None, "run"):
        pairs = (("each step", OBSERVE, EACH), ("each 10th step", TENTH_OBSERVED, TENTH))
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
