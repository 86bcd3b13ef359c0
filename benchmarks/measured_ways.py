"""Test that gain and batch size do not depend on the way in which the library measures gradients.

    python benchmarks/measured_ways.py [--seeds 8]
    torchrun --nproc-per-node 2 benchmarks/measured_ways.py

A model is trained on data with a known noise scale (`_real_noise`). Every way of measuring uses the
samples in the same order. The runs with AdaScale have batches of 512 samples, which are 8 base
batches of 64, and a noise scale of 1000. The runs with `adasgd()` start with a batch of 16 samples
and have a noise scale of 400. The program prints the mean gain of the last 3/4 of the steps, four
standard errors of this mean (`gain_doors.gain_error`), and the batch size after the last step.
Under torchrun, all ranks share each batch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import largebatch as lb
from _known_noise import Array
from _real_noise import RealNoise
from gain_doors import gain_error, gain_of

BATCH, BASE, FIRST = 512, 64, 16
GAIN_NOISE, GROWTH_NOISE = 1000.0, 400.0
GAIN_STEPS, GROWTH_STEPS = 200, 200
DIRECTIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRun:
    """Hold the results of a training run.

    Args:
        gains: Number of base steps that each step counted as, [T].
        batch_sizes: Batch size decided after each step, [T].
        parts: Number of parts in each measured step; only on the first rank, which writes the
            record.
    """

    gains: Array
    batch_sizes: Array
    parts: Array

    @classmethod
    def of(cls, decisions: Sequence[lb.Decision], *, record: lb.MemoryRecord) -> RealRun:
        """Return the results of a run from its decisions and its record."""
        moments = [seen.moments for seen, _ in record.steps if seen.moments is not None]
        return cls(
            gains=np.array([each.base_steps for each in decisions]),
            batch_sizes=np.array([each.next_batch_size for each in decisions]),
            parts=np.array([each.parts for each in moments]),
        )

    @property
    def gain(self) -> float:
        """Return the mean gain of the last 3/4 of the steps."""
        return float(self.gains[len(self.gains) // 4 :].mean())

    def gain_error(self, *, same_batches: bool = False) -> float:
        """Return the standard error of `gain` for a run with `BATCH` and `GAIN_NOISE`."""
        return gain_error(
            variance=GAIN_NOISE,
            parts=int(self.parts.min()),
            measured=0.75 * len(self.parts),
            scale=BATCH // BASE,
            base=BASE,
            directions=DIRECTIONS,
            same_batches=same_batches,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Describe a training run without the way in which it is measured.

    Args:
        noise: Data set.
        rule: Rule of the run.
        batch: Batch size of the first step, in samples.
        base: Base batch size, in samples.
        steps: Number of optimizer steps.
    """

    noise: RealNoise
    rule: lb.Rule
    batch: int
    base: int
    steps: int

    def controlled(self, *, micro_batch: int, examples: bool = False) -> RealRun:
        """Train with a `Controller` on all ranks.

        Args:
            micro_batch: Largest number of samples of one backward call.
            examples: Whether the gradients of single examples are measured.
        """
        model, optimizer = self.noise.model()
        batches = lb.BatchLoader(
            (self.noise.data(),),
            batch_size=self.batch,
            max_micro_batch_size=micro_batch,
            shuffle=False,
        )
        record = lb.MemoryRecord()
        wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
        control = lb.Controller(
            wrapped,
            optimizer,
            self.rule,
            batches,
            base_batch_size=self.base,
            meter=lb.Meter(wrapped, examples=lb.PerExample()) if examples else None,
            record=record,
        )
        decisions = []
        for batch in control.steps(steps=self.steps):
            for (x,) in batch:
                control.backward(wrapped(x).mean())
            decisions.append(control.step())
        return RealRun.of(decisions, record=record)

    def attached(self, *, micro_batch: int) -> RealRun:
        """Train in a hand-written loop with `lb.attach`.

        Args:
            micro_batch: Number of samples of one backward call.
        """
        model, optimizer = self.noise.model()
        record = lb.MemoryRecord()
        with lb.attach(
            model,
            optimizer,
            self.rule,
            batch_size=self.batch,
            base_batch_size=self.base,
            record=record,
        ):
            for rows in self.noise.data().split(self.batch)[: self.steps]:
                for x in rows.split(micro_batch):
                    (model(x).mean() * (len(x) / self.batch)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return RealRun.of([decision for _, decision in record.steps], record=record)


Way = Callable[[Training], RealRun]

CONTROLLED: dict[str, Way] = {
    "Controller, micro-batches of 8": lambda run: run.controlled(micro_batch=8),
    "Controller, micro-batches of 64": lambda run: run.controlled(micro_batch=64),
}
EXAMPLES: dict[str, Way] = {
    "Controller, single examples": lambda run: run.controlled(micro_batch=64, examples=True),
}
ATTACHED: dict[str, Way] = {
    "attach, micro-batches of 8": lambda run: run.attached(micro_batch=8),
    "attach, micro-batches of 64": lambda run: run.attached(micro_batch=64),
}
ONE_BACKWARD: dict[str, Way] = {
    "attach, one backward, examples in some steps": lambda run: run.attached(micro_batch=BATCH),
}


def adascale_run(*, seed: int, steps: int = GAIN_STEPS) -> Training:
    """Return a run with AdaScale that uses no sample twice."""
    noise = RealNoise(
        seed=seed, noise_scale=GAIN_NOISE, directions=DIRECTIONS, samples=steps * BATCH
    )
    return Training(noise=noise, rule=lb.AdaScale(), batch=BATCH, base=BASE, steps=steps)


def adasgd_run(*, seed: int, steps: int = GROWTH_STEPS) -> Training:
    """Return a run whose batch grows by `adasgd()`."""
    noise = RealNoise(seed=seed, noise_scale=GROWTH_NOISE, directions=DIRECTIONS, samples=100_000)
    return Training(noise=noise, rule=lb.methods.adasgd(), batch=FIRST, base=FIRST, steps=steps)


def true_gain() -> float:
    """Return AdaScale's gain for the true variance and squared norm."""
    return float(gain_of(GAIN_NOISE, 1.0, scale=BATCH / BASE, base=BASE))


def print_gains(ways: dict[str, Way], *, seeds: int, prints: bool) -> None:
    """Print the mean gain for each way of measuring."""
    true = true_gain()
    if prints:
        print(f"\nAdaScale: true gain {true:.3f}; {seeds} seeds")
    for name, way in ways.items():
        runs = [way(adascale_run(seed=seed)) for seed in range(seeds)]
        if prints:
            gains = np.array([run.gain for run in runs])
            measured = np.mean([len(run.parts) for run in runs])
            print(
                f"  {name:46} gain {gains.mean():.3f} +- {4 * runs[0].gain_error():.3f} per run, "
                f"largest error {np.abs(gains - true).max():.3f}, standard deviation in a run "
                f"{np.mean([run.gains[len(run.gains) // 4 :].std() for run in runs]):.3f}, "
                f"{measured:.0f} of {GAIN_STEPS} steps measured",
                flush=True,
            )


def print_batches(ways: dict[str, Way], *, seeds: int, prints: bool) -> None:
    """Print the batch size after the last step for each way of measuring."""
    if prints:
        print(f"\nadasgd(): noise scale {GROWTH_NOISE:g}; {seeds} seeds")
    for name, way in ways.items():
        runs = [way(adasgd_run(seed=seed)) for seed in range(seeds)]
        if prints:
            last = np.array([run.batch_sizes[-1] for run in runs])
            print(
                f"  {name:46} last batch size: mean {last.mean():.0f}, from {last.min():.0f} to "
                f"{last.max():.0f}",
                flush=True,
            )


def main() -> None:
    """Print both tables on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    ranks = "RANK" in os.environ
    if ranks:
        dist.init_process_group("gloo")
    prints = not ranks or dist.get_rank() == 0
    alone = {} if ranks else {**ATTACHED, **ONE_BACKWARD}
    if ranks and prints:
        print(f"{dist.get_world_size()} ranks")
    print_gains({**CONTROLLED, **EXAMPLES, **alone}, seeds=seeds, prints=prints)
    print_batches({**CONTROLLED, **EXAMPLES}, seeds=seeds, prints=prints)
    if ranks:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
