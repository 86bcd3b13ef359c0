"""Measure the time of AutoWarmUp: one check of the losses, and one training step of a warm-up.

    python benchmarks/autowu.py [--rounds 20] [--only checks] [--reference PATH]

In a check, the rule tests whether the loss has started to rise. A check is timed after other work,
as in training. The row "once more" times a check directly after another one. Two other programs are
timed on the same losses. The first program is scikit-learn's Gaussian process with the same kernel,
which makes one fit and computes mean and covariance at the same points. The second program is the
check of the authors' program, if PATH holds kakaobrain/autowu and gpytorch is installed. With
10,000 losses, scikit-learn is left out, because it would factor a matrix of 800 MB about a dozen
times. The goals are 1 ms per check and 100 us of CPU time per step.

The training step is a step of a small model with `lb.Controller`, one micro-batch and no record.
This step is compared with the same step with an empty chain of rules. On several ranks, each step
computes a digest of the rule's state. The rows with "digest" compute this digest on one process.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import largebatch as lb
from _timing import Run, interleave
from largebatch.act.run_facts import clocks_of, digest_of
from largebatch.core.decider import Decider
from largebatch.core.measurement import Budget, Measurement, Reading
from largebatch.rules.auto_warm_up.rule import AutoWarmUp

COUNTS = (100, 300, 1000, 10_000)
"""Numbers of losses before the timed check. The warm-up has twice as many steps."""

MOST_RAW = 1000
"""Largest number of losses for which scikit-learn is timed."""

WARM_UP = 1000
"""Number of training steps of the warm-up."""

POINTS = 128


def losses_of(count: int) -> np.ndarray:
    """Return falling losses with noise."""
    noise = np.random.default_rng(0).standard_normal(count)
    return 0.1 + 2.2 * np.exp(-2.0 * np.arange(count) / count) + 0.15 * noise


def before_check(losses: np.ndarray) -> tuple[Decider, Measurement]:
    """Return a decider whose next step makes a check, and the measurement of this step."""
    budget = Budget(steps=4 * len(losses))
    decider = Decider.start(AutoWarmUp(), base_batch_size=1, batch_size=1, budget=budget)
    for loss in losses[:-1]:
        decider, _ = decider.decide(decider.see(Reading(samples=1, loss=float(loss)), base_lr=1.0))
    seen = decider.see(Reading(samples=1, loss=float(losses[-1])), base_lr=1.0)
    assert "P =" in decider.decide(seen)[1].reason
    return decider, seen


def scikit_learn(losses: np.ndarray) -> Run:
    """Return a function that computes the same regression with scikit-learn."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x = np.linspace(0.0, 1.0, len(losses))[:, None]
    grid = np.linspace(0.0, 1.0, POINTS)[:, None]

    def run() -> None:
        kernel = ConstantKernel() * RBF(0.2, "fixed") + WhiteKernel(0.1)
        process = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, losses)
        process.predict(grid, return_cov=True)

    return run


def reference(path: Path) -> Callable[[np.ndarray], Run]:
    """Return a function that prepares the check of the authors' program.

    Args:
        path: Directory that holds a checkout of kakaobrain/autowu.

    Raises:
        ImportError: The authors' program or gpytorch cannot be imported.
    """
    from gpytorch.utils import cholesky

    if not hasattr(cholesky, "NotPSDError"):  # newer versions define it in another module
        from gpytorch.utils.errors import NotPSDError

        cholesky.NotPSDError = NotPSDError
    sys.path.insert(0, str(path))
    from autowu import AutoWU

    def check(losses: np.ndarray) -> Run:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = AutoWU(optimizer, steps_per_epoch=len(losses), total_epochs=4)
        schedule.warmup_phase_regressor.add_data(torch.tensor(losses, dtype=torch.float32))
        return schedule.maybe_switch  # type: ignore[no-any-return]

    return check


def peak_of(run: Run) -> float:
    """Return the peak memory of a run, in kB."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 1000
    tracemalloc.stop()
    return peak


def print_checks(*, rounds: int, theirs: Callable[[np.ndarray], Run] | None) -> None:
    """Print a table for each number of losses."""
    for count in COUNTS:
        losses = losses_of(count)
        decider, seen = before_check(losses)
        candidates: dict[str, Run] = {
            "check": partial(decider.decide, seen),
            "once more": partial(decider.decide, seen),
        }
        if count <= MOST_RAW:
            candidates["scikit-learn"] = scikit_learn(losses)
        if theirs is not None:
            candidates["the authors'"] = theirs(losses)
        fewer = rounds if count <= 300 else max(rounds // 4, 5)
        times = interleave(candidates, rounds=fewer, warmup=1)
        kept, peak = len(decider.state[0][0].losses.means), peak_of(candidates["check"])
        title = f"a check of {count} losses, {kept} stored numbers, peak memory {peak:.0f} kB"
        print(times.table(title, to="check", per=1, unit="check"), flush=True)


def training(rule: lb.Rule, *, digest: bool = False) -> Run:
    """Return a function that trains the warm-up of a small model."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    y = torch.randint(0, 10, (512,), generator=generator)
    loss_of = nn.CrossEntropyLoss()

    def run() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)
        batches = lb.BatchLoader((x, y), batch_size=32)
        control = lb.Controller(model, optimizer, rule, batches, base_batch_size=32)
        for batch in itertools.islice(control.steps(steps=2 * WARM_UP), WARM_UP):
            for inputs, targets in batch:
                control.backward(loss_of(model(inputs), targets))
            control.step()
            if digest:
                digest_of(clocks_of(control.decider))
        check_not_ended(control.decider.state)

    return run


def check_not_ended(state: Any) -> None:
    """Assert that the warm-up has not ended, because checks are left out after its end."""
    assert all(search.ended is None for search, _ in state)


def print_steps(*, rounds: int) -> None:
    """Print the table of the training steps."""
    rule, nothing = AutoWarmUp(low=1e-5, high=1e-3), lb.chain()
    candidates = {
        "empty": training(nothing),
        "null": training(nothing),
        "AutoWarmUp": training(rule),
        "digest": training(nothing, digest=True),
        "AutoWarmUp, digest": training(rule, digest=True),
    }
    times = interleave(candidates, rounds=rounds, warmup=1)
    print(times.table("a step of a warm-up", to="empty", per=WARM_UP, unit="step"))
    with_rule = times.added("AutoWarmUp, digest", to="digest", per=WARM_UP).shown(1)
    print(f"AutoWarmUp adds {with_rule} us of CPU time per step if steps compute a digest.")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--only", choices=("checks", "steps"), help="print only one of the two parts"
    )
    parser.add_argument("--reference", type=Path, help="a checkout of kakaobrain/autowu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    theirs = None
    if arguments.reference is not None:
        warnings.simplefilter("ignore")  # hides gpytorch's warnings about torch
        theirs = reference(arguments.reference)
    if arguments.only != "steps":
        print_checks(rounds=arguments.rounds, theirs=theirs)
    if arguments.only != "checks":
        print_steps(rounds=arguments.rounds)


if __name__ == "__main__":
    main()
