"""Define the run lengths, the tuned learning rates and the runs that the AdaScale pages share."""

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
"""Workload -> length of its runs in base steps, which is the number of steps at scale 1."""

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
"""Workload -> best of seven base learning rates at scale 1 on the validation split.

`transfer.py` finds these values. On the CNN, 0.02 and 0.04 are equally good, and the lower one is
used."""

ADAM = frozenset({"stdlib-narrow"})
"""Workloads with AdamW. AdaScale multiplies their learning rate by the square root of the gain,
which is computed from preconditioned gradients."""


def adascale(workload: str) -> lb.Rule:
    """Return the library's AdaScale for the optimizer of the workload."""
    return methods.adascale_adam() if workload in ADAM else methods.adascale()


def at_scale_one(workload: str, seed: int, *, lr: float | None = None, evaluations: int = 1) -> Run:
    """Return the run at the base batch size, which all other runs are compared with.

    Args:
        workload: Name of the workload.
        seed: Seed of the run.
        lr: Base learning rate; None for the tuned one.
        evaluations: Number of points of the validation curve.
    """
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
    """Return a run of AdaScale, which ends after the base steps of the run at scale 1.

    Args:
        workload: Name of the workload.
        scale: Scale S of the run.
        seed: Seed of the run.
        lr: Base learning rate; None for the tuned one.
        evaluations: Number of points of the validation curve.
    """
    return replace(
        at_scale_one(workload, seed, lr=lr, evaluations=evaluations),
        method="AdaScale",
        rule=adascale(workload),
        scale=scale,
    )


def probed(workload: str, seed: int) -> Probe:
    """Return a probe of the first half of the run at scale 1."""
    return Probe(
        workload=workload,
        method="probe",
        rule=methods.none(),
        budget=lb.Budget(base_steps=LENGTH[workload]),
        seed=seed,
        lr=TUNED[workload],
    )


def stretched(run: Run, method: str, rule: lb.Rule, *, steps: int) -> Run:
    """Return a run of another rule with this number of optimizer steps; "+" is added to its name.

    Args:
        run: Run whose workload, scale, seed and learning rate are used.
        method: Name of the method without the "+".
        rule: Rule that decides.
        steps: Number of optimizer steps.
    """
    return replace(
        run,
        method=f"{method}+",
        rule=rule,
        budget=lb.Budget(steps=steps),
        evaluations=1,
    )


def steps_of(results: Sequence[Result]) -> list[int | None]:
    """Return the number of steps of each run, for runs with increasing learning rates.

    A diverged run gets the number of steps of the run with the next lower learning rate that did
    not diverge; None if there is no such run.
    """
    steps: list[int | None] = []
    for result in results:
        last = steps[-1] if steps else None
        steps.append(last if result.diverged else result.steps)
    return steps


def rates(workload: str) -> list[float]:
    """Return seven base learning rates, each twice the one before.

    The tuned learning rate is the fifth, because linear scaling makes the best one smaller.
    """
    return [TUNED[workload] * 2.0**k for k in range(-4, 3)]


def final_loss(result: Result) -> float:
    """Return the validation loss at the end of a run; infinite if the run diverged."""
    return float("inf") if result.diverged else result.validation["loss"]
