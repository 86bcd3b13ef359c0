"""Define sixteen schedules of batch size and learning rate, as rules and as stages of the planner.

In the names of the schedules, "root" means square-root scaling of the learning rate, "gamma" is the
factor on the learning rate from stage to stage, and "equal stages" have equally many samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from experiments.growth import relation
from experiments.growth.seesaw_runs import WARM
from experiments.growth.setup import Cell

import largebatch as lb
from largebatch import methods
from largebatch.workbench.planner.forecasts import pieces_of
from largebatch.workbench.planner.table import clock_schedule

MOST = 16
"""Largest batch size divided by the first batch size."""

COSINE = lb.Schedule(factor=lb.Cosine())
ROOT = lb.SqrtScaling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Describe a schedule of batch size and learning rate.

    Args:
        rule: Rule that decides.
        scale: First batch size divided by the base batch size.
        faster: If True, the learning rate rises above the base learning rate.
    """

    rule: lb.Rule
    scale: int = 1
    faster: bool = False


def schedules(cell: Cell) -> dict[str, Planned]:
    """Return the sixteen schedules by name. For AdamW, all of them start with a warm-up."""
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
    """Return the stages of a schedule: (batch size, factor on the learning rate, steps)."""
    counted = clock_schedule(
        one.rule,
        budget=cell.samples,
        base_batch_size=cell.start,
        batch_size=one.scale * cell.start,
    )
    return list(pieces_of(counted))
