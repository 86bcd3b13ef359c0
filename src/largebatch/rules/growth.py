"""Grow batch size and learning rate in stages that begin at given points of the run.

    stage(x) = number of points passed at the fraction x of the budget
    batch size, learning rate = table[stage]

The stage follows in closed form from the samples seen, so it does not depend on how many steps an
earlier stage took. One table serves for exponential and linear growth (arXiv 2409.08770, arXiv
2508.05297), step strings as in Megatron-LM, growth in exchange for a decay (arXiv 2510.14717, arXiv
1711.00489), and any list of batch sizes. The functions that fill the table are in `stages.py`,
`batch_steps.py` and `growth_from_decay.py`.
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
    """Hold the state of `Growth`.

    Args:
        first: Batch size of the run's first step, in samples; 0 before the first step.
        stage: Index of the current stage, from 0.
    """

    first: int = 0
    stage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth(DefaultFacts):
    """Set the batch size and the learning rate of the stage that the run has reached.

    A stage begins with the first step at or after the point of the run that `at` sets for it. Batch
    size and learning rate of a stage begin together, so a skipped step at the beginning of a stage
    delays the batch size and the learning rate. Put a rule that changes the counter of base steps
    before `Growth`. A `ClampBatch` after `Growth` limits the batch size but not the learning rate;
    use `ClampLr` to limit the learning rate.

    >>> rule = Growth(stages=Stages(batch=(1, 2), lr=(1, 1.4)), at=(0.5,))
    >>> seen = Measurement(step=0, samples=448, base_steps=7.0, batch_size=64, base_batch_size=64,
    ...     budget=Budget(samples=1024))
    >>> proposed = Decision(next_batch_size=64, base_steps=1)
    >>> rule.update(rule.init(), seen, proposed)[1].reason
    'stage 2 of 2 begins; batch size 128'

    Args:
        stages: Table of batch sizes and learning rates.
        at: Fractions of the budget in (0, 1), in rising order, at which the second and each later
            stage begin.
        over: Length that the fractions refer to, for example `lb.Budget(samples=10 * 50_000)` for
            ten epochs of 50,000 samples; None for the run's budget. If `over` is given, the last
            fraction of `at` may be 1. After the length `over`, the last stage continues to the end
            of the run.

    Raises:
        ValueError: If the fractions are outside (0, 1] or do not rise, or if their number is not
            the number of stages minus 1. The first step raises ValueError if neither the run nor
            the rule has a length, if the run ends before the last stage or within its first batch,
            or if a table of absolute batch sizes does not begin with the run's first batch size.

    Reference: Umeda, Iiduka, 2024, arXiv 2409.08770; Umeda, Iiduka, 2025, arXiv 2508.05297.
    """

    stages: Stages = field(default_factory=lambda: Stages(batch=(1.0, 2.0, 4.0, 8.0)))
    at: tuple[float, ...] = (0.25, 0.5, 0.75)
    over: Budget | None = None

    changes = frozenset({"batch", "lr"})

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of the papers on growing stages; empty for a table of absolute batch sizes."""
        return ("umeda2024increasing", "umeda2025optimal") if self.stages.of is None else ()

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.at, self.at[1:], strict=False))
        within = all(0.0 < a <= 1.0 for a in self.at)
        if not rising or not within or len(self.at) != len(self.stages) - 1:
            raise ValueError(
                f"at={self.at} was given for {len(self.stages)} stages, but `at` must contain one "
                "fraction in (0, 1] for each stage after the first, in rising order. "
                "Example: Growth(stages=Stages(batch=(1, 2, 4)), at=(0.25, 0.5))"
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
        # A rule after this one may count fewer base steps than `Growth` assumes.
        stage = max(bisect_right(self.at, after), state.stage)
        size = self.stages.size(stage, first=state.first, seen=seen)
        factor = self.stages.rate(state.stage)
        decision = proposed.scaled(
            factor, because=f"growth: lr x{factor:.4g}" if factor != 1 else ""
        )
        because = ""
        if stage > state.stage:
            left = stage - state.stage - 1
            past = f", stages skipped as shorter than one step: {left}" if left else ""
            because = f"stage {stage + 1} of {len(self.stages)} begins{past}; batch size {size}"
        return GrowthState(first=state.first, stage=stage), decision.resized(size, because=because)

    def _begin(self, seen: Measurement, proposed: Decision) -> GrowthState:
        """Return the state before the first step, after checking that the table fits the run.

        The first batch has the size of stage 0, even if skipped steps have used samples before the
        first batch.
        """
        first, run = proposed.next_batch_size, seen.budget
        wanted = self.stages.size(0, first=first, seen=seen)
        if self.stages.of is not None and wanted != first:
            raise ValueError(
                f"The schedule begins with a batch of {wanted} samples, but the run begins with "
                f"{first}. Pass batch_size={wanted}: "
                f"lb.BatchLoader(dataset, batch_size={wanted})"
            )
        if run is not None and run.samples is not None and run.samples < first:
            raise ValueError(
                f"The run has a budget of {run.samples} samples, but its first batch has {first}. "
                "Use a smaller batch: "
                f"lb.BatchLoader(dataset, batch_size={max(run.samples // 10, 1)})"
            )
        self._check_reached(run)
        return GrowthState(first=first)

    def _check_reached(self, run: Budget | None) -> None:
        """Raise ValueError if the run ends before the last stage begins."""
        if self.over is None or run is None or run.unit != self.over.unit or not self.at:
            return
        begins = [at * self.over.amount for at in self.at]
        if begins[-1] >= run.amount:
            never = bisect_left(begins, run.amount)
            raise ValueError(
                f"Stage {never + 2} of {len(self.stages)} would begin at {begins[never]:,.10g} "
                f"{run.unit}, but the run ends at {run.amount:,.10g} {run.unit}. Remove the stages "
                f"after the end, or train for more than {begins[-1]:,.10g} {run.unit}."
            )
