"""What AutoWarmUp costs: one check of the losses so far, and a training step over a whole warm-up.

    python benchmarks/autowu.py [--rounds 20] [--only checks] [--reference PATH]

A check is a step of the rule in which it looks at the curve of the losses. It runs after something
else, as it does in training; "once more" runs right after it. Beside it, on the raw losses:
scikit-learn's Gaussian process with the same kernel, fitted once and asked for mean and covariance
at the same points; and, where PATH holds kakaobrain/autowu and gpytorch is installed, the check of
the authors' program. At 10 000 losses scikit-learn is left out, which would factor a matrix of
800 MB some dozen times. The goals: 1 ms a check, 100 us of CPU a step.

The step is one of a small model under `lb.Controller`, with one micro-batch and without a record,
beside the same with an empty chain. On several ranks a digest of the rule's state is formed in each
step; "digest" forms it here, too.
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
"""Losses before a check; a warm-up is twice as long, so that the last one is followed by one."""

MOST_RAW = 1000
"""Losses beyond which scikit-learn is left out."""

WARM_UP = 1000
"""Steps of training."""

POINTS = 128


def losses_of(count: int) -> np.ndarray:
    """A loss that falls, with noise."""
    noise = np.random.default_rng(0).standard_normal(count)
    return 0.1 + 2.2 * np.exp(-2.0 * np.arange(count) / count) + 0.15 * noise


def before_check(losses: np.ndarray) -> tuple[Decider, Measurement]:
    """A run of the rule whose next step makes a check, and what is seen in it."""
    budget = Budget(steps=4 * len(losses))
    decider = Decider.start(AutoWarmUp(), base_batch_size=1, batch_size=1, budget=budget)
    for loss in losses[:-1]:
        decider, _ = decider.decide(decider.see(Reading(samples=1, loss=float(loss)), base_lr=1.0))
    seen = decider.see(Reading(samples=1, loss=float(losses[-1])), base_lr=1.0)
    assert "P =" in decider.decide(seen)[1].reason
    return decider, seen


def scikit_learn(losses: np.ndarray) -> Run:
    """The same regression by scikit-learn."""
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
    """Makes the check of the authors' program.

    Raises:
        ImportError: it or gpytorch is not there.
    """
    from gpytorch.utils import cholesky

    if not hasattr(cholesky, "NotPSDError"):  # newer ones have it elsewhere
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
    """The most memory that it holds at once, in kB."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1] / 1000
    tracemalloc.stop()
    return peak


def print_checks(*, rounds: int, theirs: Callable[[np.ndarray], Run] | None) -> None:
    """A table for each number of losses."""
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
        title = f"a check of {count} losses, {kept} numbers kept, {peak:.0f} kB at once"
        print(times.table(title, to="check", per=1, unit="check"), flush=True)


def training(rule: lb.Rule, *, digest: bool = False) -> Run:
    """The warm-up of a small model whose loss falls."""
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
    """A warm-up that ended would leave out its checks."""
    assert all(search.ended is None for search, _ in state)


def print_steps(*, rounds: int) -> None:
    """The table of whole warm-ups."""
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
    print(f"AutoWarmUp, where a digest is formed: {with_rule} us of CPU a step")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", choices=("checks", "steps"), help="one of the two parts")
    parser.add_argument("--reference", type=Path, help="a checkout of kakaobrain/autowu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    theirs = None
    if arguments.reference is not None:
        warnings.simplefilter("ignore")  # of gpytorch, about torch
        theirs = reference(arguments.reference)
    if arguments.only != "steps":
        print_checks(rounds=arguments.rounds, theirs=theirs)
    if arguments.only != "checks":
        print_steps(rounds=arguments.rounds)


if __name__ == "__main__":
    main()
