"""Define the runs of each cell, and compute the ratios of the estimates to the true values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.batch_norm_rows.pairs import PACES, PairsOfSteps, noted
from experiments.batch_norm_rows.setup import MODELS, FixedWeights
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result

import largebatch as lb

BATCH_SIZES = (32, 64, 128)
"""Batch sizes at which the noise is measured, in samples."""

TRAINED = (0, 50, 300)
"""Numbers of training steps after which the weights are held fixed."""

SEEDS = 3
"""Number of seeds of the initial weights and of the samples."""

ROWS = "rows"
PAIRS = dict(zip(("pairs of steps", "pairs at lr / 10"), PACES, strict=True))
WAYS = (ROWS, *PAIRS)
"""Names of the estimates. `PAIRS` maps the estimates from pairs of steps to the factor on the
learning rate of the step within a pair."""


def runs_of(model: str, batch_size: int, trained: int) -> list[FixedWeights]:
    """Return the runs that measure the truth and the estimate from rows, one per seed."""
    return [
        FixedWeights(
            workload=MODELS[model].workload,
            method=model,
            rule=lb.rules.Observe(),
            scale=batch_size // BATCH_SIZES[0],
            budget=lb.Budget(steps=MODELS[model].draws),
            seed=seed,
            batch_size=batch_size,
            trained=trained,
        )
        for seed in range(SEEDS)
    ]


def pairs_of(model: str, batch_size: int, trained: int) -> list[PairsOfSteps]:
    """Return the runs that measure pairs of steps, one per seed.

    For each five batches that the truth is measured from, two pairs of steps are made.
    """
    return [
        PairsOfSteps(
            workload=run.workload,
            method=f"{model}, pairs of steps",
            rule=run.rule,
            scale=run.scale,
            budget=lb.Budget(steps=MODELS[model].draws * 2 // 5),
            seed=run.seed,
            model=model,
            batch_size=batch_size,
            trained=trained,
        )
        for run in runs_of(model, batch_size, trained)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Hold the results of one seed for one model, batch size and number of training steps.

    Args:
        truth: The true values at fixed weights, and the estimates from rows.
        pairs: The estimates from pairs of steps.
    """

    truth: Result
    pairs: Result

    def ratio(self, name: str, way: str) -> float:
        """Return the estimate of a quantity divided by its true value.

        The ratio is infinite if the estimated squared norm of the noise scale is not positive. It
        is NaN if the true squared norm is not positive.

        Args:
            name: Name of the quantity, as in `QUANTITIES`.
            way: Name of the estimate, as in `WAYS`.
        """
        true, pairs = self.truth.extra.notes, self.pairs.extra.notes
        if name != "variance" and true["true sqnorm"] <= 0.0:
            return math.nan
        if way == ROWS:
            sqnorm, value = true["rows' sqnorm"], true[name]
        else:
            sqnorm, value = (pairs[noted(one, PAIRS[way])] for one in ("sqnorm", name))
            value /= true[f"true {name}"]
        return math.inf if name == "noise scale" and sqnorm <= 0.0 else value


Cells = dict[tuple[str, int, int], list[Measured]]
"""(Model, batch size, training steps before) -> one result per seed."""


def measured(ledger: Ledger) -> Cells:
    """Return the results of all cells, and make all missing runs in one call."""
    runs = {
        (model, size, trained): (runs_of(model, size, trained), pairs_of(model, size, trained))
        for model in MODELS
        for size in BATCH_SIZES
        for trained in TRAINED
    }
    ledger.results([run for truth, pairs in runs.values() for run in (*truth, *pairs)])
    return {
        cell: [
            Measured(truth=one, pairs=other)
            for one, other in zip(ledger.results(truth), ledger.results(pairs), strict=True)
        ]
        for cell, (truth, pairs) in runs.items()
    }
