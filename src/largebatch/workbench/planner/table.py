"""A schedule as a table of stages, without training: what a run on the clock alone would do.

stage = all steps of one batch size,    steps = ceil(samples of the stage / batch)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from largebatch.core.rule import Chain, Rule, label_of, within
from largebatch.rules import Growth
from largebatch.workbench.planner.clock import ClockStage, run_stages, start_decider

MOST_STAGES = 100_000
"""Most stages of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """The steps of one batch size, in a row.

    Args:
        samples: used before the first of them.
        batch_size: in samples; the last step of the run may be shorter.
        lr: factor on the base rate in the first step.
        last_lr: in the last step.
        steps: how many.
        cumulative_steps: with those of the stages before.
    """

    samples: int
    batch_size: int
    lr: float
    last_lr: float
    steps: int
    cumulative_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a schedule does over a budget.

    Args:
        base_batch_size: B0, in samples.
        budget: in samples.
        rows: the stages, in their order.
        passed_over: stages that were too short for a step of their batch.
    """

    base_batch_size: int
    budget: int
    rows: tuple[StageRow, ...]
    passed_over: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.rows[-1].cumulative_steps

    @property
    def constant_steps(self) -> int:
        """Steps of a run that keeps the base batch."""
        return -(-self.budget // self.base_batch_size)

    @property
    def mean_batch_size(self) -> float:
        """Samples a step."""
        return self.budget / self.steps

    @property
    def saved(self) -> float:
        """Fraction of steps saved relative to a constant base batch; below 0 if it takes more."""
        return 1.0 - self.steps / self.constant_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSchedule:
    """A rule on the clock, and what it does over a budget.

    Args:
        rule: decides by the clock alone.
        table: its stages as numbers.
        stages: its stages as runs of the rule, which know the rate within a stage.
    """

    rule: Chain
    table: Table
    stages: tuple[ClockStage, ...]


def table_of(
    rule: Rule,
    *,
    budget: int,
    base_batch_size: int,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> Table:
    """Return the table of a rule that decides by the clock.

    >>> rule = Growth(at=(0.25, 0.5, 0.75))
    >>> [row.steps for row in table_of(rule, budget=6400, base_batch_size=16).rows]
    [100, 50, 25, 13]

    Takes the arguments of `clock_schedule`, and raises its errors.
    """
    return clock_schedule(
        rule,
        budget=budget,
        base_batch_size=base_batch_size,
        batch_size=batch_size,
        dataset_size=dataset_size,
    ).table


def clock_schedule(
    rule: Rule,
    *,
    budget: int,
    base_batch_size: int,
    batch_size: int | None = None,
    dataset_size: int | None = None,
) -> ClockSchedule:
    """Follow a rule that decides by the clock over a budget.

    Args:
        rule: usually a chain.
        budget: of the run, in samples.
        base_batch_size: B0, in samples.
        batch_size: of the first step; None for the base batch, or the table's first where its
            batches are absolute.
        dataset_size: samples in an epoch, at which batches end; None for no such end.

    Raises:
        ValueError: a rule that looks at more than the clock, a budget smaller than the first batch
            or larger than 10^13 samples, or an absolute point that the run does not reach.
    """
    start = start_decider(
        rule,
        budget=budget,
        base_batch_size=base_batch_size,
        batch_size=batch_size,
        dataset_size=dataset_size,
    )
    stages: list[ClockStage] = []
    for stage in run_stages(start):
        stages.append(stage)
        if len(stages) > MOST_STAGES:
            raise ValueError(
                f"The batch changes more than {MOST_STAGES:,} times: {label_of(rule)} is no "
                "schedule in stages. Take fewer of them, as in lb.methods.growth(stages=5)."
            )
    table = Table(
        base_batch_size=base_batch_size,
        budget=budget,
        rows=tuple([_row_of(stage) for stage in stages]),
        passed_over=_passed_over(start.rule, len(stages)),
    )
    return ClockSchedule(rule=start.rule, table=table, stages=tuple(stages))


def _row_of(stage: ClockStage) -> StageRow:
    return StageRow(
        samples=stage.first.samples,
        batch_size=stage.first.batch_size,
        lr=stage.lr,
        last_lr=stage.last_lr,
        steps=stage.steps,
        cumulative_steps=stage.last.step,
    )


def _passed_over(rule: Chain, found: int) -> int:
    """Stages of the tables that were too short for a step of theirs, where nothing bounds them."""
    rules = list(within(rule))
    if {type(one).__name__ for one in rules} & {"ClampBatch", "LimitGrowth"}:
        return 0
    wanted = 1
    for growth in rules:
        if isinstance(growth, Growth):
            table, count = growth.stages, len(growth.stages)
            pairs = [(table.batch[m], table.rate(m)) for m in range(count)]
            wanted += sum(a != b for a, b in pairwise(pairs))
    return max(wanted - found, 0)
