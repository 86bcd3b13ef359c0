"""Growth by the clock: batch and rate go from stage to stage at given points of the run.

    stage(x) = number of points passed at the fraction x of the budget
    batch, rate = table[stage]

In closed form from the samples seen, so nothing depends on how many steps a stage took. One table
serves: exponential and linear growth (arXiv 2409.08770, arXiv 2508.05297), batches by step strings
as in Megatron-LM, a decay that is traded for growth (arXiv 2510.14717, arXiv 1711.00489), and any
list. The functions that fill it are in `stages.py`, `batch_steps.py` and `growth_from_decay.py`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from largebatch.core.decision import Decision
from largebatch.core.measurement import Budget, Measurement
from largebatch.core.rule import DefaultFacts
from largebatch.rules.stages import Stages


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowthState:
    """The run's first batch in samples, 0 before it, and the stage of the batch in hand."""

    first: int = 0
    stage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth(DefaultFacts):
    """The batch and the rate of the stage that the clock has reached.

    A stage begins with the first step at or behind its point, with its batch and its rate together:
    a step that is lost there delays both. A rule on the clock stands before it. `ClampBatch` after
    it bounds the batch alone, the rate goes on; `ClampLr` bounds the rate, and both say so.

    >>> rule = Growth(stages=Stages(batch=(1, 2), lr=(1, 1.4)), at=(0.5,))
    >>> seen = Measurement(step=0, samples=448, base_steps=7.0, batch_size=64, base_batch_size=64,
    ...     budget=Budget(samples=1024))
    >>> proposed = Decision(next_batch_size=64, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'stage 2 of 2; batch 128'

    Args:
        stages: the table.
        at: where each stage but the first begins, as fractions of the budget in (0, 1), rising.
        over: its own horizon, which names its unit, as `lb.Budget(samples=10 * 50_000)` for ten
            epochs of 50,000; there `at` may reach 1. None for the run's budget. After its end the
            last stage stays.

    Raises:
        ValueError: points outside of (0, 1] or not rising, or another number of them than of stages
            after the first; at the first step, when there is no length, when the run ends before
            the last stage or within the first batch, or when a table of absolute batches begins
            with another one than the run.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; 2025, arXiv 2508.05297.
    """

    stages: Stages = field(default_factory=lambda: Stages(batch=(1.0, 2.0, 4.0, 8.0)))
    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    over: Budget | None = None

    changes = frozenset({"batch", "lr"})

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        within = all(0.0 < a <= 1.0 for a in self.at)
        if not rising or not within or len(self.at) != len(self.stages) - 1:
            raise ValueError(
                "Growth begins each stage but the first at a fraction of the budget in (0, 1], "
                "rising, as in Growth(stages=Stages(batch=(1, 2, 4)), at=(0.25, 0.5)); got "
                f"{len(self.stages)} stages and at={self.at}."
            )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.over is not None else frozenset({"budget"})

    def init(self) -> GrowthState:
        return GrowthState()

    def update(
        self, state: GrowthState, seen: Measurement, proposed: Decision
    ) -> tuple[GrowthState, Decision]:
        if state.first == 0:
            state = self._begin(seen, proposed)
        after = seen.progress_after(self.over, base_steps=proposed.base_steps)
        # a rule on the clock behind this one may move it by less than was foreseen
        stage = max(bisect_right(self.at, after), state.stage)
        size = self.stages.size(stage, first=state.first, seen=seen)
        factor = self.stages.rate(state.stage)
        decision = proposed.scaled(factor, because=f"growth x{factor:.4g}" if factor != 1 else "")
        because = ""
        if stage > state.stage:
            left = stage - state.stage - 1
            past = f" past {left} too short for a step" if left else ""
            because = f"stage {stage + 1} of {len(self.stages)}{past}; batch {size}"
        return GrowthState(first=state.first, stage=stage), decision.resized(size, because=because)

    def _begin(self, seen: Measurement, proposed: Decision) -> GrowthState:
        """The state before the first step, of a run in which the table has its place.

        The first batch is that of stage 0 also where steps lost before it have used samples.
        """
        first, run = proposed.next_batch_size, seen.budget
        wanted = self.stages.size(0, first=first, seen=seen)
        if self.stages.of is not None and wanted != first:
            raise ValueError(
                f"The schedule begins with a batch of {wanted}, the run with {first}: "
                f"lb.BatchLoader(dataset, batch_size={wanted})."
            )
        if run is not None and run.samples is not None and run.samples < first:
            raise ValueError(
                f"A run of {run.samples} samples ends within its first batch of {first}: take a "
                f"smaller one, lb.BatchLoader(dataset, batch_size={max(run.samples // 10, 1)})."
            )
        self._check_reached(run)
        return GrowthState(first=first)

    def _check_reached(self, run: Budget | None) -> None:
        if self.over is None or run is None or run.unit != self.over.unit or not self.at:
            return
        begins = [at * self.over.amount for at in self.at]
        if begins[-1] >= run.amount:
            never = bisect_left(begins, run.amount)
            raise ValueError(
                f"Stage {never + 2} of {len(self.stages)} would begin at {begins[never]:,.10g} "
                f"{run.unit} and is never reached, since the run ends at {run.amount:,.10g}. Leave "
                f"out what lies behind the end, or run for more than {begins[-1]:,.10g} {run.unit}."
            )
