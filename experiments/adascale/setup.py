"""What the parts of the experiment share: lengths, tuned rates, and who is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.lab.probe import Probe
from experiments.lab.run import Result, Run

import largebatch as lb
from largebatch import methods

LENGTH = {
    "digits": 670,  # 10 epochs
    "digits-short": 200,
    "digits-decay": 670,
    "fashion-logistic": 1720,  # 2 epochs
    "fashion-cnn": 860,  # 1 epoch
    "fashion-cnn-plain": 860,
    "fashion-resnet8": 430,  # half an epoch
    "stdlib-narrow-sgd": 600,
    "stdlib-narrow": 600,
}
"""T, base steps of a run: what one at scale 1 takes."""

TUNED = {
    "digits": 0.04,
    "digits-short": 0.04,
    "digits-decay": 0.04,
    "fashion-logistic": 0.005,
    "fashion-cnn": 0.02,
    "fashion-cnn-plain": 0.2,
    "fashion-resnet8": 0.05,
    "stdlib-narrow-sgd": 0.04,
    "stdlib-narrow": 2e-3,
}
"""The best of seven base rates at scale 1 on the validation split, as `transfer.py` finds it; of
0.02 and 0.04, which tie on the CNN, the lower one."""

ADAM = frozenset({"stdlib-narrow"})
"""Workloads with AdamW, where AdaScale is the square root of the gain, measured as Adam sees it."""


def adascale(workload: str) -> lb.Rule:
    """AdaScale as the library's methods have it for the workload's optimizer."""
    return methods.adascale_adam() if workload in ADAM else methods.adascale()


def at_scale_one(workload: str, seed: int, *, lr: float | None = None, evaluations: int = 1) -> Run:
    """The run that all others are compared with, at the tuned rate if no other is named."""
    return Run(
        workload=workload,
        method="scale 1",
        rule=methods.none(),
        budget=lb.Budget(base_steps=LENGTH[workload]),
        seed=seed,
        lr=TUNED[workload] if lr is None else lr,
        evaluations=evaluations,
    )


def scaled(
    workload: str, scale: int, seed: int, *, lr: float | None = None, evaluations: int = 1
) -> Run:
    """AdaScale to its own end."""
    return replace(
        at_scale_one(workload, seed, lr=lr, evaluations=evaluations),
        method="AdaScale",
        rule=adascale(workload),
        scale=scale,
    )


def probed(workload: str, seed: int) -> Probe:
    """A probe before the run at scale 1."""
    return Probe(
        workload=workload,
        method="probe",
        rule=methods.none(),
        budget=lb.Budget(base_steps=LENGTH[workload]),
        seed=seed,
        lr=TUNED[workload],
    )


def stretched(run: Run, method: str, rule: lb.Rule, *, steps: int) -> Run:
    """Another rule for as many optimizer steps; its name gets a +."""
    return replace(
        run,
        method=f"{method}+",
        rule=rule,
        budget=lb.Budget(steps=steps),
        evaluations=1,
    )


def steps_of(results: Sequence[Result]) -> list[int | None]:
    """The steps of runs that differ in their rising rates alone; where one diverged, those of the
    largest rate below it that did not."""
    steps: list[int | None] = []
    for result in results:
        last = steps[-1] if steps else None
        steps.append(last if result.diverged else result.steps)
    return steps


def rates(workload: str) -> list[float]:
    """Seven base rates, each twice the one before; the tuned one is the fifth, since linear scaling
    moves the best one down."""
    return [TUNED[workload] * 2.0**k for k in range(-4, 3)]


def final_loss(result: Result) -> float:
    """Validation loss at the end; infinite where the run diverged."""
    return float("inf") if result.diverged else result.validation["loss"]
