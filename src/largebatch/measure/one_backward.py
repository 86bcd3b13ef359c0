"""Choose how to measure a loop that makes one backward call per step on one process.

A single gradient has no variance, but the gradients of several single examples have a variance.
`PerExample` measures single examples in some of the steps, if the examples do not depend on each
other. The first step gives no estimate. At the end of the first step, before any weight changes,
the step is repeated on a copy of the model (module `examples_trial`). So a model whose single
examples cannot be measured is detected in the first step. If no decision depends on the
measurement, such a model is measured by pairs of consecutive steps.

With batch normalization the examples depend on each other. The variance of each example's share of
the gradient is up to 4.6 times the true variance (`experiments/batch_norm_rows`). So shares of
examples under batch normalization are used neither for decisions nor for display. In the same
experiment, pairs of steps gave 1.5 times the true noise scale in the median, and 1.03 times the
true noise scale at a tenth of the learning rate. The bias depends on the learning rate, so no
decision uses pairs of steps.
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
"""Schedules of the measured steps: for single examples, and for pairs of steps.

A training step that measures single examples takes up to three times as long as a training step
without measurement. An estimate needs 16 measurements. After these 16 measurements, the overhead is
about 3 % on average.
"""

OTHER_ROWS = (
    "batch_size={given} was given, but the model received {rows} examples. Pass "
    "batch_size={rows}. If the first dimension is not the samples, or if several examples are one "
    "sample, pass a function that counts the samples: "
    "lb.attach(..., samples=lambda args, kwargs: len(args[0]) // 2)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Hold the meter that was chosen for the next steps, and the reasons against other meters.

    Args:
        meter: The chosen meter; None if no meter can measure the loop.
        schedule: Schedule of the measured steps.
        refusals: Reasons against the better meters that were not chosen.
        by_examples: Whether the meter measures single examples.
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
    """Return the meter for a loop that makes one backward call per step.

    Args:
        model: The model, which may be compiled or wrapped.
        optimizer: The optimizer of the run.
        seen: The recorded first step.
        batch_size: User-supplied number of samples per step; 0 if the user counts the samples in
            the loop.
        looks_only: Whether no decision depends on the measurement, so that an approximate
            measurement is allowed.
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
    """Return the meter that compares consecutive steps, if single examples cannot be measured."""
    temporal = Meter(model, statistics=[TemporalMoments()])
    return Choice(meter=temporal, schedule=PAIRS, refusals=refusals)


def no_variance(refusals: Sequence[str]) -> str:
    """Return the text of the error for a loop whose single examples cannot be measured."""
    reason = " ".join(refusals).rstrip(".")
    return (
        "The loop makes one backward call per step on one process, and a single gradient has no "
        f"variance. Single examples cannot be measured for this reason: {reason}. Split the batch "
        "into two or more micro-batches, run several processes, or use the approximate estimate "
        "from pairs of steps: "
        "meter=lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
    )
