"""How a loop is measured that makes one backward call per step on one process.

One gradient has no variance. Single examples within it have one: `PerExample` measures them in
some of the steps, if the model's examples are independent. The first step, in which the loop
shows what it is, gives no estimate. At its end, before a weight moves, that step is repeated on a
copy of the model (`examples_trial`), so that a model that cannot be measured is known at once. If
nothing is decided by the measurement, pairs of consecutive steps serve such a model.

Batch normalization couples the examples. Their rows' shares of the gradient have up to 4.6 times
the true variance (`experiments/batch_norm_rows`), so they serve neither decisions nor a display.
There, pairs of steps gave noise scales that were 1.5 times too large in the median, and 1.03 times
at a tenth of the learning rate. Their bias follows the learning rate, so they serve no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.examples_trial import SeenStep, try_examples
from largebatch.measure.meter import Meter
from largebatch.measure.temporal import TemporalMoments
from largebatch.measure.timetable import EVERY_STEP, MeasuredSteps

EXAMPLES = MeasuredSteps(every=160, early=16, early_every=8)
PAIRS = MeasuredSteps(every=160, span=2, early=16, early_every=8)
"""A step that measures single examples costs up to three times a plain one, so 3 % on average after
the first 16 measurements, which an estimate needs."""

OTHER_ROWS = (
    "batch_size={given} was given, but the model received {rows} examples. Pass "
    "batch_size={rows}. If the first dimension is not the samples, or if several examples are one "
    "sample, say how to count them: lb.attach(..., samples=lambda args, kwargs: len(args[0]) // 2)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What measures the coming steps.

    Args:
        meter: None if nothing can.
        schedule: how often it measures.
        refusals: why better ways were not taken.
        by_examples: whether the meter takes single examples.
    """

    meter: Meter | None
    schedule: MeasuredSteps = EVERY_STEP
    refusals: Sequence[str] = ()
    by_examples: bool = False


def choose_meter(
    model: nn.Module,
    optimizer: Optimizer,
    seen: SeenStep,
    *,
    batch_size: int,
    looks_only: bool,
) -> Choice:
    """Return what measures a loop with one backward per step.

    Args:
        model: bare, compiled, or in a wrapper.
        optimizer: of the run.
        seen: the first step.
        batch_size: samples of a step, as given; 0 if the user counts them.
        looks_only: whether no decision depends on the measurement, so that an approximate one is
            better than none.
    """
    try:
        examples = PerExample(exact_training=looks_only)
        meter = Meter(model, examples=examples)
        meter.bind(optimizer)
        rows = try_examples(meter, examples, seen)
        if batch_size not in (0, rows):
            raise LargeBatchError(OTHER_ROWS.format(given=batch_size, rows=rows))
        return Choice(meter=meter, schedule=EXAMPLES, by_examples=True)
    except (LargeBatchError, ValueError) as error:
        refusals = [str(error)]
    return pairs_of_steps(model, refusals) if looks_only else Choice(meter=None, refusals=refusals)


def pairs_of_steps(model: nn.Module, refusals: Sequence[str]) -> Choice:
    """Return the meter that compares consecutive steps, where single examples were refused."""
    temporal = Meter(model, statistics=[TemporalMoments()])
    return Choice(meter=temporal, schedule=PAIRS, refusals=refusals)


def no_variance(refusals: Sequence[str]) -> str:
    """Return the text of the error for a loop in which single examples do not serve."""
    reason = " ".join(refusals).rstrip(".")
    return (
        "One backward call per step on one process gives one gradient, which has no variance. "
        f"Single examples cannot be measured by themselves here: {reason}. Split the batch into "
        "two or more micro-batches, run several processes, or take the approximate estimate from "
        "pairs of steps: "
        "meter=lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
    )
