"""The cells of the experiment: the runs of each, and the ratios of estimates to the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.batch_norm_rows.pairs import PACES, PairsOfSteps, noted
from experiments.batch_norm_rows.setup import MODELS, FixedWeights
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result

import largebatch as lb

BATCH_SIZES = (32, 64, 128)
TRAINED = (0, 50, 300)
"""Steps after which the weights are held fixed."""

SEEDS = 3
"""Of weights and samples."""

ROWS = "rows"
PAIRS = dict(zip(("pairs of steps", "pairs at lr / 10"), PACES, strict=True))
WAYS = (ROWS, *PAIRS)
"""How noise is estimated; of pairs: the factor on the learning rate."""


def runs_of(model: str, batch_size: int, trained: int) -> list[FixedWeights]:
    """One run for each seed."""
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
    """One run for each seed: two pairs of steps for each five draws of the truth."""
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
    """The results of one seed at one point.

    Args:
        truth: of fixed weights, and by rows.
        pairs: by pairs of steps.
    """

    truth: Result
    pairs: Result

    def ratio(self, name: str, way: str) -> float:
        """Return estimate over truth; infinite if the estimate has no signal, nan if the truth
        has none."""
        true, pairs = self.truth.told.notes, self.pairs.told.notes
        if name != "variance" and true["true sqnorm"] <= 0.0:
            return math.nan
        if way == ROWS:
            sqnorm, value = true["rows' sqnorm"], true[name]
        else:
            sqnorm, value = (pairs[noted(one, PAIRS[way])] for one in ("sqnorm", name))
            value /= true[f"true {name}"]
        return math.inf if name == "noise scale" and sqnorm <= 0.0 else value


Cells = dict[tuple[str, int, int], list[Measured]]
"""Model, batch size and steps before -> a result for each seed."""


def measured(ledger: Ledger) -> Cells:
    """Return the results of all cells; those that are missing are made together."""
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
