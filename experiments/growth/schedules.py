"""Sixteen schedules of batch and rate, as rules and as stages of the planner."""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.growth import relation
from experiments.growth.setup import Cell
from experiments.growth.traded import WARM

import largebatch as lb
from largebatch import methods
from largebatch.workbench.planner.forecasts import pieces_of
from largebatch.workbench.planner.table import clock_schedule

MOST = 16
"""Largest batch over the first one."""

COSINE = lb.Schedule(factor=lb.Cosine())
ROOT = lb.SqrtScaling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A schedule.

    Args:
        rule: that decides.
        scale: the first batch over the base batch.
        faster: whether it goes above the base rate.
    """

    rule: lb.Rule
    scale: int = 1
    faster: bool = False


def schedules(cell: Cell) -> dict[str, Planned]:
    """By name; for AdamW behind a warm-up, as the cosine has it."""
    most, equal = MOST * cell.start, relation.EQUAL
    found = {
        "constant": Planned(rule=lb.chain()),
        "cosine": Planned(rule=COSINE),
        "step decay": Planned(rule=lb.Schedule(factor=lb.rules.StepDecay())),
        "batch x4": Planned(rule=lb.chain(), scale=4),
        "batch x4, root": Planned(rule=ROOT, scale=4, faster=True),
        "batch x4, root, cosine": Planned(rule=lb.chain(ROOT, COSINE), scale=4, faster=True),
        "batch x16, root, cosine": Planned(rule=lb.chain(ROOT, COSINE), scale=16, faster=True),
        "growth, gamma 1": Planned(rule=methods.growth(gamma=1.0)),
        "growth, gamma 1, equal stages": Planned(rule=methods.growth(gamma=1.0, lengths=equal)),
        "growth": Planned(rule=methods.growth(), faster=True),
        "growth, equal stages": Planned(rule=methods.growth(lengths=equal), faster=True),
        "growth, equal stages, cosine": Planned(
            rule=lb.chain(methods.growth(gamma=1.0, lengths=equal), COSINE)
        ),
        "linear growth": Planned(rule=methods.linear_growth(step=2.0, stages=8)),
        "growth, warm-up and cosine": Planned(rule=methods.warmup_growth(stages=5), faster=True),
        "seesaw": Planned(rule=methods.seesaw(kappa=None, max=most)),
        "smith": Planned(rule=methods.smith(max=most)),
    }
    if cell.optimizer != "adamw":
        return found
    return {
        name: one if "warm-up" in name else replace(one, rule=lb.chain(WARM, one.rule))
        for name, one in found.items()
    }


def pieces(cell: Cell, one: Planned) -> list[tuple[float, float, float]]:
    """(batch, factor on the base rate, steps) of its parts."""
    counted = clock_schedule(
        one.rule,
        budget=cell.samples,
        base_batch_size=cell.start,
        batch_size=one.scale * cell.start,
    )
    return list(pieces_of(counted))
