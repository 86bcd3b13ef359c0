"""Round the stages of a schedule to whole samples and whole steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from largebatch.core.rule import chain
from largebatch.rules import Growth
from largebatch.rules.stages import Stages
from largebatch.workbench.planner.model import Stage
from largebatch.workbench.planner.table import ClockSchedule, clock_schedule


def round_stages(stages: Sequence[Stage], *, base_batch_size: int) -> ClockSchedule:
    """Return the stages as a schedule in whole samples and steps.

    The schedule never uses more samples than the given stages use. A stage with fewer samples than
    one batch becomes one step with a smaller batch. A stage with fewer samples than the base batch
    size is merged into the next stage.

    Args:
        stages: Stages in order, with fractional numbers allowed.
        base_batch_size: Base batch size B0, in samples.
    """
    whole: list[tuple[int, float, int]] = []
    end, here = 0.0, 0
    for batch, factor, steps in stages:
        rate = float(f"{factor:.4g}")
        end += batch * steps
        left = math.floor(end - here + 1e-6)
        size = min(round(batch), left)
        if size < min(base_batch_size, round(batch)):
            continue
        count = left // size
        here += size * count
        if whole and whole[-1][:2] == (size, rate):
            count += whole.pop()[2]
        whole.append((size, rate, count))
    begins = [0]
    for size, _, count in whole:
        begins.append(begins[-1] + size * count)
    budget = begins.pop()
    rule = Growth(
        stages=Stages(
            batch=tuple([float(size) for size, *_ in whole]),
            lr=tuple([rate for _, rate, _ in whole]),
            of=1,
        ),
        at=tuple([begin / budget for begin in begins[1:]]),
    )
    return clock_schedule(chain(rule), budget=budget, base_batch_size=base_batch_size)
