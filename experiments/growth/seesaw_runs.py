"""Define the runs of Seesaw and its controls, and compute the smallest possible number of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from experiments.adadagrad.setup import Make, Row
from experiments.growth.setup import Cell, Watched, at, tuned
from experiments.lab.ledger import Ledger
from experiments.lab.run import Extra, Result

import largebatch as lb
from largebatch import methods

CELLS: tuple[Cell, ...] = (
    Cell(workload="digits", optimizer="adamw", start=16, samples=20_000, least=5e-4),
    Cell(
        workload="stdlib-narrow", optimizer="adamw", start=16, samples=12_800, least=5e-4,
        micro_batch=32, points=4,
    ),
)  # fmt: skip
LONGER = 4
"""Factor on the samples of the longer runs, which have the base learning rate of the cosine."""

WARM = lb.WarmUp(fraction=0.05, start=0.0)
DECAY = lb.Cosine()


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """Decay as the square root of the cosine decay."""

    def __call__(self, fraction: float) -> float:
        return max(DECAY(fraction), 0.0) ** 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped(Watched):
    """Describe a run of Seesaw whose batch size is at most the measured noise scale.

    The trace of the run has a row (samples so far, batch size, noise scale) for each step with a
    measured noise scale. It is the noise scale that limited the batch size.
    """

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        rule = lb.rules.ClampToNoiseScale(statistic="preconditioned_moments")
        state, rows = rule.init(), []
        for seen, decision in record.steps:
            state, _ = rule.update(state, seen, decision)
            known = state.noise_scale()
            if seen.preconditioned_moments is not None and known is not None:
                noise_scale = float(f"{known.value:.6g}")
                rows.append((seen.samples, seen.batch_size, noise_scale))
        return Extra(trace=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the rows of one cell.

    Args:
        cosine: Row of the cosine at the first batch size, which the other rows are compared with.
        paired: Name -> (row at the base learning rate of the cosine, row at its own best one).
        large: Row of a constant batch size with a cosine and as many steps as Seesaw.
        longer: Rows of the cosine and of bounded Seesaw with `LONGER` times the samples.
    """

    cosine: Row
    paired: dict[str, tuple[Row, Row]]
    large: Row
    longer: tuple[Row, Row]


def _makes(cell: Cell) -> dict[str, Make]:
    capped = lb.chain(WARM, methods.seesaw(factor=DECAY))

    def seesaw(lr: float, seed: int) -> Capped:
        plain = cell.run("Seesaw, bounded", capped, lr=lr, seed=seed)
        return Capped(**{field.name: getattr(plain, field.name) for field in fields(plain)})

    rules = {
        "Seesaw, not bounded": methods.seesaw(factor=DECAY, kappa=None),
        "root of the cosine": lb.Schedule(factor=Root()),
    }
    others = {name: cell.make(name, lb.chain(WARM, rule)) for name, rule in rules.items()}
    return {"Seesaw, bounded": seesaw} | others


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell."""
    rule = lb.chain(WARM, lb.Schedule(factor=DECAY))
    more = replace(cell, samples=LONGER * cell.samples)
    cosine = tuned(ledger, cell, {"cosine": cell.make("cosine", rule)})["cosine"]
    makes = _makes(cell)
    shared = {name: at(ledger, cosine.lr, name, make) for name, make in makes.items()}
    own = tuned(ledger, cell, {f"{name}, own rate": make for name, make in makes.items()})
    batch = round(shared["Seesaw, bounded"].batch)
    name = f"batch {batch}, cosine, own rate"
    return Found(
        cosine=cosine,
        paired={key: (shared[key], own[f"{key}, own rate"]) for key in makes},
        large=tuned(ledger, cell, {name: cell.make(name, rule, batch=batch)})[name],
        longer=(
            at(ledger, cosine.lr, "cosine", more.make("cosine", rule)),
            at(ledger, cosine.lr, "Seesaw, bounded", _makes(more)["Seesaw, bounded"]),
        ),
    )


def limit(result: Result, cell: Cell) -> float:
    """Return the smallest number of steps that the bound allows.

    It is the number of steps if the batch size follows start / cosine without delay, is at most the
    noise scale that the run recorded last, and never shrinks.

    Args:
        result: Result of a run of bounded Seesaw.
        cell: Cell of the run.
    """
    parts, steps, batch = 1000, 0.0, float(cell.start)
    waiting = list(result.extra.trace)
    ceiling = math.inf
    for part in range(parts):
        x = (part + 0.5) / parts
        while waiting and waiting[0][0] <= x * cell.samples:
            ceiling = waiting.pop(0)[2]
        batch = max(batch, min(cell.start / DECAY(x), ceiling))
        steps += cell.samples / parts / batch
    return steps
