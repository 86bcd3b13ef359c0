"""The runs of Seesaw and its controls, and the fewest steps that its bound would leave."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from experiments.adadagrad.setup import Make, Row
from experiments.growth.setup import Cell, Watched, at, tuned
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result, Told

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
"""Times the samples in a second comparison, at the cosine's rate."""

WARM = lb.WarmUp(fraction=0.05, start=0.0)
DECAY = lb.Cosine()


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The square root of the cosine."""

    def __call__(self, fraction: float) -> float:
        return max(DECAY(fraction), 0.0) ** 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Capped(Watched):
    """Its trace tells (samples before, batch, noise scale) wherever the noise scale was measured;
    the noise scale is the one that the bound had."""

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        rule = lb.rules.ClampToNoiseScale(statistic="preconditioned_moments")
        state, rows = rule.init(), []
        for seen, decision in record.steps:
            state, _ = rule.update(state, seen, decision)
            known = state.noise_scale()
            if seen.preconditioned_moments is not None and known is not None:
                noise_scale = float(f"{known.value:.6g}")
                rows.append((seen.samples, seen.batch_size, noise_scale))
        return Told(trace=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The rows of a cell.

    Args:
        cosine: to compare with.
        paired: name -> the row at the cosine's rate and at its own.
        large: the constant batch of as many steps.
        longer: cosine and Seesaw, bounded, with `LONGER` times the samples.
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
    """Makes, or reads, all runs of a cell."""
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
    """Optimizer steps of a batch that follows the decay at once, up to the noise scale."""
    parts, steps, batch = 1000, 0.0, float(cell.start)
    waiting = list(result.told.trace)
    ceiling = math.inf
    for part in range(parts):
        x = (part + 0.5) / parts
        while waiting and waiting[0][0] <= x * cell.samples:
            ceiling = waiting.pop(0)[2]
        batch = max(batch, min(cell.start / DECAY(x), ceiling))
        steps += cell.samples / parts / batch
    return steps
