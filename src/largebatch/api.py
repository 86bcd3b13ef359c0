"""The one place that composes meter, decider, loader and optimizer from what a user has."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

from largebatch.act.attached import Attached
from largebatch.act.controller import StepController
from largebatch.act.loader import BatchLoader
from largebatch.analysis.noise import NoiseEstimate, NotEnough, estimate_noise
from largebatch.checks.check import check_up
from largebatch.checks.finding import CheckUp
from largebatch.checks.fit import MOST, MicroBatchFit, fit
from largebatch.checks.overhead import PARTS
from largebatch.checks.subject import Loss, Subject
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import OF_THE_STEP, Budget
from largebatch.core.plan import BatchPlan
from largebatch.core.protocols import Sink
from largebatch.core.rule import Rule, within
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer
from largebatch.record.memory import MemoryRecord
from largebatch.rules.bounds import ClampBatch
from largebatch.rules.observe import Observe


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
        scaler: for float16; `backward` takes the true loss, and unscaling, its optimizer step and
            its update are the Controller's.

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
        scaler: GradScaler | None = None,
    ) -> None:
        _check_parts(model, optimizer, record)
        if not isinstance(batches, BatchLoader):
            raise ValueError(
                f"The Controller loads through a BatchLoader; got {type(batches).__name__}. Wrap "
                "it: lb.BatchLoader(loader_or_dataset, batch_size=64)."
            )
        _check_cap(rule, batch_size=batches.batch_size)
        meter = meter or Meter(model)
        super().__init__(
            model,
            optimizer,
            rule,
            batches,
            base_batch_size=base_batch_size,
            meter=meter,
            record=record if meter.leader else None,
            patience=patience,
            scaler=scaler,
        )

    def check(self, loss: Loss | None = None, *, seconds: float = 3.0) -> CheckUp:
        """Looks for what would go silently wrong, before a long run.

            print(control.check(lambda model, batch: loss_fn(model(batch[0]), batch[1])))

        Call it between two steps, on every rank; all get the same findings. It changes nothing:
        weights, buffers, gradients, optimizer, generators, the place in the data and the clocks
        keep their bits. What the loss raises is a finding, too. While it lasts it holds a copy of
        model and optimizer.

        Args:
            loss: (model, micro-batch) -> mean loss, as in the loop; without it only what needs no
                computing is looked at.
            seconds: about how long to time the cost of measuring; 0 leaves it out.

        Raises:
            LargeBatchError: in the middle of a step.
        """
        self._check_free("check")
        coming, accumulation = self.batches.peek(PARTS)
        micro_batches = tuple(micro_batch for micro_batch, _ in coming)
        subject = self._subject(loss, micro_batches, accumulation=accumulation)
        return check_up(subject, seconds=seconds)

    def fit_micro_batch(
        self, loss: Loss, *, most: int = MOST, memory_limit: int | None = None
    ) -> MicroBatchFit:
        """Finds the largest micro-batch that fits into memory, for a loader that asks for it.

            batches = lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto")
            control = lb.Controller(model, optimizer, rule, batches, base_batch_size=64)
            print(control.fit_micro_batch(lambda model, batch: loss_fn(model(batch[0]), batch[1])))

        Call it before the first step, on every rank; all get the same size, the least of theirs.
        Ever larger micro-batches of the coming samples go forward and backward, up to the largest
        that the run can need, and change nothing of it, as in `check`. What was found before, or is
        in a loaded state, is kept.

        Args:
            loss: (model, micro-batch) -> mean loss, as in the loop.
            most: largest size to try; the tries take two and a half times its work.
            memory_limit: on the CPU, bytes that this process may hold; None for what it holds and
                half of what is available, shared by the ranks on this machine.

        Raises:
            ValueError: a loader that does not ask for it, or a limit that is none.
            LargeBatchError: in the middle of a step, or not one sample fits.
        """
        self._check_free("fit_micro_batch")
        if not self.batches.wants_fit:
            raise ValueError(
                "The loader has its largest micro-batch already. To have it found: "
                'lb.BatchLoader(dataset, batch_size=64, max_micro_batch_size="auto").'
            )
        if most < 1:
            raise ValueError(f"most is at least 1 sample, as in most=512; got {most}.")
        there = self.batches.max_micro_batch_size
        if isinstance(there, int):
            return MicroBatchFit(size=there, reason="as found before")
        subject = self._subject(loss, (), accumulation=1)
        found = fit(subject, loss, most=min(most, self._most_needed()), memory_limit=memory_limit)
        self.batches.fit(found.size)
        return found

    def _most_needed(self) -> int:
        """Samples of the largest micro-batch that a step of this run can have on one rank."""
        decider = self.decider
        largest = decider.batch_size
        if "batch" in decider.rule.changes:
            caps = [one.max for one in within(decider.rule) if isinstance(one, ClampBatch)]
            known = [cap for cap in (*caps, decider.dataset_size) if cap is not None]
            largest = max(largest, min(known)) if known else largest
        plan = BatchPlan(
            batch_size=largest,
            ranks=decider.ranks,
            max_micro_batch_size=largest,
            least_parts=self.meter.least_parts if decider.rule.needs & OF_THE_STEP else 1,
        )
        return plan.sizes[0]

    def _subject(
        self, loss: Loss | None, micro_batches: tuple[Any, ...], *, accumulation: int
    ) -> Subject:
        return Subject.of(
            self,
            self.meter,
            scaler=self._scale.scaler,
            loss=loss,
            micro_batches=micro_batches,
            accumulation=accumulation,
            batches=self.batches,
        )

    def _check_free(self, call: str) -> None:
        if self._step is not None:
            raise LargeBatchError(
                f"control.{call}(loss) is called between two steps, and one is in hand: before the "
                "loop, or after control.step()."
            )


class AttachedRun(Attached):
    """What `attach` gives: a rule inside the user's own loop, which can be checked.

    Mutable: holds the step in hand.
    """

    def check(
        self, loss: Loss | None = None, batch: Any = None, *, seconds: float = 3.0
    ) -> CheckUp:
        """As `Controller.check`, at any point of the loop. The loader is the loop's, so a
        micro-batch is given.

        Args:
            loss: (model, micro-batch) -> mean loss, neither scaled nor divided by the number of
                micro-batches.
            batch: one micro-batch of this rank.
            seconds: about how long to time the cost of measuring; 0 leaves it out.
        """
        subject = Subject.of(
            self,
            self.observer.meter,
            scaler=self._scale.scaler,
            loss=loss,
            micro_batches=() if batch is None else (batch,),
            accumulation=self.observer.micro_batches or 1,
        )
        return check_up(subject, seconds=seconds)


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
    patience: int = 10,
    scaler: GradScaler | None = None,
) -> AttachedRun:
    """Lets a rule set the learning rate inside a loop that stays as it is.

        control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=512, base_batch_size=64)
        for micro_batches in steps:
            for x, y in micro_batches:               # two or more, or several processes
                (loss_fn(model(x), y) / len(micro_batches)).backward()
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
        patience: non-finite steps in a row after which training ends.
        scaler: the one that scales the loop's losses, whose factor the measured gradients carry.

    Raises:
        ValueError: parts that do not fit together, before any training step.
        RanksDisagree: the ranks were started with different settings.
        NotFinite: within an `optimizer.step()`, when `patience` is at its end.
    """
    _check_parts(model, optimizer, record)
    if micro_batches is not None and micro_batches < 1:
        raise ValueError(f"micro_batches is at least 1; got {micro_batches!r}.")
    meter = meter or Meter(model)
    observer = Observer(meter, batch_size=batch_size, micro_batches=micro_batches)
    return AttachedRun(
        optimizer,
        rule,
        observer,
        base_batch_size=base_batch_size,
        dataset_size=dataset_size,
        budget=budget,
        record=record if meter.leader else None,
        patience=patience,
        scaler=scaler,
    )


class Watch:
    """The gradient noise of a training loop; `watch` builds it, `print` shows it.

    Mutable: gathers a pair of numbers a step.
    """

    def __init__(self, control: Attached, record: MemoryRecord) -> None:
        self.control = control
        self._record = record

    @property
    def series(self) -> list[tuple[float, float]]:
        """(variance of one sample, squared norm of the true gradient) of the last steps."""
        return [
            (seen.moments.variance, seen.moments.sqnorm)
            for seen, _ in self._record.steps
            if seen.finite and seen.moments is not None
        ]

    @property
    def estimate(self) -> NoiseEstimate | NotEnough:
        """The noise scale in samples with its 95 % interval, or why there is none yet."""
        return estimate_noise(self.series)

    def close(self) -> None:
        """Takes every hook off model and optimizer; the numbers stay."""
        self.control.close()

    def __str__(self) -> str:
        return str(self.estimate)


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    batch_size: int,
    micro_batches: int | None = None,
    meter: Meter | None = None,
    steps: int = 2000,
) -> Watch:
    """Measures the gradient noise of a loop that stays as it is, and acts on nothing.

        noise = lb.watch(model, optimizer, batch_size=512)
        ...                                          # train as before
        print(noise)                                 # noise scale 1240 [980, 1610] samples (...)

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        micro_batches: as in `attach`.
        meter: how gradients are measured; None is `Meter(model)`.
        steps: how many of the last steps are kept.

    Raises:
        ValueError: parts that do not fit together, before any training step.
    """
    _check_parts(model, optimizer, None)
    if batch_size < 1:
        raise ValueError(f"batch_size is a number of samples, at least 1; got {batch_size!r}.")
    meter = meter or Meter(model)
    record = MemoryRecord(maxlen=steps)
    control = Attached(
        optimizer,
        Observe(),
        Observer(meter, batch_size=batch_size, micro_batches=micro_batches),
        base_batch_size=batch_size,
        record=record,
    )
    return Watch(control, record)


def _check_parts(model: nn.Module, optimizer: Optimizer, record: Sink | None) -> None:
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise ValueError(
            "model comes first and is a torch.nn.Module, then an optimizer that was built from it; "
            f"got {_kind(model)} and {_kind(optimizer)}. "
            "lb.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), lb.AdaScale(), ...)"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "L-BFGS calls its closure several times in a step, so there is no one gradient to "
            "decide about. Use another optimizer: torch.optim.SGD(model.parameters(), lr=0.1)."
        )
    if isinstance(record, (str, os.PathLike)):
        raise ValueError(
            f"A record is an object that writes, not a path: lb.JsonlRecord({os.fspath(record)!r})."
        )


def _check_cap(rule: Rule, *, batch_size: int) -> None:
    for one in within(rule):
        if isinstance(one, ClampBatch) and one.max is not None and one.max < batch_size:
            raise ValueError(
                f"The batch starts at {batch_size} samples, above its cap of {one.max}. Start at "
                f"or below it, lb.BatchLoader(dataset, batch_size={one.max}), or raise it, "
                f"lb.ClampBatch(max={batch_size})."
            )


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
