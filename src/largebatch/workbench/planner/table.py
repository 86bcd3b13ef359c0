"""Compute the stages of a schedule without training.

stage = consecutive steps of one batch size,    steps = ceil(samples of the stage / batch size)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from largebatch.core.rule import Chain, Rule, label_of, within
from largebatch.rules import Growth
from largebatch.workbench.planner.clock import ClockStage, run_stages, start_decider

MOST_STAGES = 100_000
"""Largest number of stages of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """Describe one stage: consecutive steps with one batch size.

    Args:
        samples: Number of samples used before the stage.
        batch_size: Batch size in samples; the last batch of the run may be smaller.
        lr: Factor on the base learning rate in the first step of the stage.
        last_lr: Factor on the base learning rate in the last step of the stage.
        steps: Number of steps of the stage.
        cumulative_steps: Number of steps from the start of the run to the end of the stage.
    """

    samples: int
    batch_size: int
    lr: float
    last_lr: float
    steps: int
    cumulative_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Hold the stages of a schedule over a budget.

    Args:
        base_batch_size: Base batch size B0, in samples.
        budget: Number of training samples of the run.
        rows: Stages in order.
        passed_over: Number of skipped stages, which were shorter than one step of their batch size.
    """

    base_batch_size: int
    budget: int
    rows: tuple[StageRow, ...]
    passed_over: int = 0

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps of the run."""
        return self.rows[-1].cumulative_steps

    @property
    def constant_steps(self) -> int:
        """Return the number of steps of a run at the constant base batch size."""
        return -(-self.budget // self.base_batch_size)

    @property
    def mean_batch_size(self) -> float:
        """Return the mean number of samples per step."""
        return self.budget / self.steps

    @property
    def saved(self) -> float:
        """Return the fraction of steps saved compared with the constant base batch size.

        The result is negative if the schedule takes more steps.
        """
        return 1.0 - self.steps / self.constant_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockSchedule:
    """Hold a rule whose steps can be counted before the run, and its stages over a budget.

    Args:
        rule: Chain of rules.
        table: Stages as numbers.
        stages: Stages with their deciders, which give the learning rate at every step.
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
    """Return the stages of a rule whose steps can be counted before the run.

    >>> rule = Growth(at=(0.25, 0.5, 0.75))
    >>> [row.steps for row in table_of(rule, budget=6400, base_batch_size=16).rows]
    [100, 50, 25, 13]

    The arguments and exceptions are the same as in `clock_schedule`.
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
    """Return the schedule over a budget of a rule whose steps can be counted before the run.

    Args:
        rule: Rule or chain of rules.
        budget: Number of training samples of the run.
        base_batch_size: Base batch size B0, in samples.
        batch_size: Size of the first batch in samples. If batch_size is omitted, the run starts
            with the first batch size of the schedule, or with the base batch size if the schedule
            sets no batch size in samples.
        dataset_size: Number of samples in an epoch; no batch crosses the end of an epoch. With
            None, batches may cross the end of an epoch.

    Raises:
        ValueError: The rule needs measurements, the budget is smaller than the first batch or
            larger than 10^13 samples, or the run ends before a point of the schedule.
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
                f"The batch size of {label_of(rule)} changes more than {MOST_STAGES:,} times, "
                "which is not supported. Use fewer stages, such as lb.methods.growth(stages=5)"
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
    """Return the number of stages that are shorter than one step.

    The result is 0 if a rule limits the batch size.
    """
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
