"""The one place that composes meter, decider, loader and optimizer from what a user has."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from largebatch.act.attached import Attached
from largebatch.act.controller import StepController
from largebatch.act.loader import BatchLoader
from largebatch.core.measurement import Budget
from largebatch.core.protocols import Sink
from largebatch.core.rule import Rule
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer


class Controller(StepController):
    """A run in which the batch may change: it loads, measures, decides and steps.

        batches = lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size=64)
        control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=64)
        for batch in control.steps(epochs=5):        # one optimizer step
            for x, y in batch:                       # its micro-batches
                control.backward(loss_fn(model(x), y))
            control.step(clip_norm=1.0)

    Mutable: holds the run.

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer, with the learning rate that suits `base_batch_size`.
        rule: what to do about the measurements: a rule or a chain of rules.
        batches: the samples.
        base_batch_size: B0, the batch in samples for which the learning rate was tuned.
        meter: how gradients are measured; None is `Meter(model)`.
        record: where each step is written, by the first rank only.
        patience: non-finite steps in a row after which training ends.

    Raises:
        ValueError: parts that do not fit together, before any training step.
        RanksDisagree: the ranks were started with different settings.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rule: Rule,
        batches: BatchLoader,
        *,
        base_batch_size: int,
        meter: Meter | None = None,
        record: Sink | None = None,
        patience: int = 10,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            rule,
            batches,
            base_batch_size=base_batch_size,
            meter=meter or Meter(model),
            record=record,
            patience=patience,
        )


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    rule: Rule,
    *,
    batch_size: int,
    base_batch_size: int,
    micro_batches: int | None = None,
    dataset_size: int | None = None,
    budget: Budget | None = None,
    meter: Meter | None = None,
    record: Sink | None = None,
) -> Attached:
    """Lets a rule set the learning rate inside a loop that stays as it is.

        control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=512, base_batch_size=64)
        for x, y in loader:
            loss_fn(model(x), y).backward()          # one or several backward calls a step
            optimizer.step()                         # lr x gain inside it only
            optimizer.zero_grad()
            control.advance(scheduler)               # was scheduler.step(): ticks in base steps
            if control.base_steps >= 10_000:
                break

    The micro-batches of a step count equally; gain and noise scale do not depend on whether the
    loss is divided by their number.

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer, with the learning rate that suits `base_batch_size`.
        rule: a rule or a chain of rules that leaves the batch alone.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        base_batch_size: B0, the batch in samples for which the learning rate was tuned.
        micro_batches: backward calls a step on each rank. Telling it saves work and finds missing
            or double ones; None takes what the first step shows.
        dataset_size: samples in one epoch, for rules that need it.
        budget: how long the run is, for schedules.
        meter: how gradients are measured; None is `Meter(model)`.
        record: where each step is written, by the first rank only.

    Raises:
        ValueError: parts that do not fit together, before any training step.
        RanksDisagree: the ranks were started with different settings.
    """
    if micro_batches is not None and micro_batches < 1:
        raise ValueError(f"micro_batches is at least 1; got {micro_batches!r}.")
    observer = Observer(meter or Meter(model), batch_size=batch_size, micro_batches=micro_batches)
    return Attached(
        optimizer,
        rule,
        observer,
        base_batch_size=base_batch_size,
        dataset_size=dataset_size,
        budget=budget,
        record=record,
    )
