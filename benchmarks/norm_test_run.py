"""Measure the overhead of a run with a test of the batch size in every 10th step.

    python benchmarks/norm_test_run.py [--rounds 20] [--only CNN]

A timed run has ten training steps with SGD on data in memory, and one of the steps has a test. The
batch size is capped at its first value, so that all candidates do the same work. `bare` has one
backward call per step and is the baseline. `bare, 2 parts` has two, like a run that measures two
micro-batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import largebatch as lb
from _timing import Run, interleave
from per_example import CASES, Case, build

STEPS = 10
"""Number of steps in one timed run, and interval between two tests."""

STOCK = 8
"""Number of batches in the data."""


def data(case: Case) -> tuple[Tensor, Tensor]:
    """Return the samples of `STOCK` batches."""
    x, y = case.batch()
    return torch.cat([x] * STOCK), torch.cat([y] * STOCK)


def bare(case: Case, *, parts: int = 1) -> Run:
    """Return a hand-written loop with a new permutation in each pass over the data."""
    model, (x, y), size = build(case), data(case), case.shape[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    order = torch.randperm(len(x))
    at = 0

    def run() -> None:
        nonlocal order, at
        for _ in range(STEPS):
            if at + size > len(order):
                order, at = torch.randperm(len(x)), 0
            for rows in order[at : at + size].chunk(parts):
                few, labels = x.index_select(0, rows), y.index_select(0, rows)
                (case.loss(model, few, labels) / parts).backward()
            at += size
            optimizer.step()
            optimizer.zero_grad()

    return run


def norm_tested(case: Case, examples: Callable[[], lb.PerExample] | None = None) -> Run:
    """Return a loop with a `Controller` and the norm test, in one endless run."""
    model, size = build(case), case.shape[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    meter = lb.Meter(model, examples=examples() if examples is not None else None)
    batches = lb.BatchLoader(data(case), batch_size=size)
    rule = lb.methods.adasgd(max=size, every=STEPS)
    control = lb.Controller(model, optimizer, rule, batches, base_batch_size=size, meter=meter)
    steps = control.steps(steps=10**9)

    def run() -> None:
        for _ in range(STEPS):
            for x, y in next(steps):
                control.backward(case.loss(model, x, y))
            control.step()

    return run


def main() -> None:
    """Print a table for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="", help="part of a case's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        if arguments.only not in case.name or "fashion" in case.name:
            continue
        runs = {
            "null": bare(case),
            "bare": bare(case),
            "bare, 2 parts": bare(case, parts=2),
            "2 micro-batches": norm_tested(case),
            "single examples": norm_tested(case, lb.PerExample),
            "4 groups": norm_tested(case, lambda: lb.PerExample(groups=4)),
        }
        times = interleave(runs, rounds=arguments.rounds, warmup=2)
        print(times.table(case.name, to="bare", per=STEPS, unit="step"), flush=True)


if __name__ == "__main__":
    main()
