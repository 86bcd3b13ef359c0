"""Define `lb.attach`, which sets the learning rate inside an existing training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.act.control import Control
from largebatch.act.deprecated import call_check
from largebatch.act.guards import (
    check_micro_batches,
    check_no_batch_rule,
    check_not_joined,
    check_parts,
    check_patience,
    check_scaler_of_one,
    refuse_closure,
    rule_names,
)
from largebatch.act.joint_optimizers import joined, members_of, optimizer_names
from largebatch.act.needs import check_budget, check_needs
from largebatch.act.run_facts import clocks_of, digest_of, optimizer_facts, run_facts
from largebatch.act.scaling import drop_gradients
from largebatch.act.step_hooks import StepHooks
from largebatch.core.decider import Decider
from largebatch.core.errors import CheckpointError, LargeBatchError, NotFinite, RanksDisagree
from largebatch.core.measurement import Budget, Measurement, Reading
from largebatch.core.protocols import Sink
from largebatch.core.rule import Rule
from largebatch.measure.forwards import Samples
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer


class Attached(Control):
    """Set the learning rate inside the user's own `optimizer.step`; `lb.attach` builds this
    control.

    Before each optimizer step, a pre-hook reads the gradient statistics, lets the rule decide, and
    multiplies the learning rate. After the step, a post-hook restores the learning rate.

    If the loss or the gradient of a step is not finite, the step changes no weight: the control
    removes its gradients, and torch's optimizers ignore parameters without a gradient. The rule
    does not see a step with a non-finite loss or gradient. A non-finite step advances the counters
    `samples` and `skipped`, but neither `base_steps` nor `optimizer_steps`. After `patience`
    non-finite steps in a row, training stops with `NotFinite`. If a GradScaler skips a step,
    `advance` counts the skipped step.

    This class is mutable: it holds the state of the current optimizer step.

    Args:
        optimizer: Optimizer, or list of optimizers, of the run.
        rule: Rule, or chain of rules, that decides about the learning rate.
        observer: Observer that measures the gradients of the loop.
        base_batch_size, dataset_size, budget, patience, scaler: These arguments have the same
            meaning as in `attach`.
        record: Object that writes one entry per optimizer step on this rank; None writes nothing.
        decides_in_step: Whether the pre-hook of `optimizer.step` makes the decision. Pass False for
            a loop that runs its last backward call inside `optimizer.step(closure)`, as Lightning's
            Trainer does. Such a loop calls `decide` after its last backward call and before it
            clips the gradient, and calls `complete` after the optimizer step.

    Raises:
        ValueError, RanksDisagree: `attach` would raise the same error for these arguments.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        rule: Rule,
        observer: Observer,
        *,
        base_batch_size: int,
        dataset_size: int | None = None,
        budget: Budget | None = None,
        record: Sink | None = None,
        patience: int = 10,
        scaler: GradScaler | None = None,
        decides_in_step: bool = True,
    ) -> None:
        check_patience(patience)
        optimizer = joined(optimizer)
        members = members_of(optimizer)
        check_scaler_of_one(members, scaler)
        observer.bind(optimizer)
        meter = observer.meter
        decider = Decider.start(
            rule,
            base_batch_size=base_batch_size,
            batch_size=observer.batch_size,
            ranks=meter.rank_count,
            dataset_size=dataset_size,
            budget=budget,
        )
        super().__init__(
            decider, optimizer, meter=meter, scaler=scaler, record=record, patience=patience
        )
        check_no_batch_rule(decider)
        check_needs(decider, meter=meter)
        check_budget(decider)
        self.observer = observer
        self._scale.open()
        facts = run_facts(decider)
        meter.agree({**facts, "learning rate": self._lr.base_lr})
        if record is not None:
            record.start({**facts, "optimizer": optimizer_facts(optimizer)})
        self._decides_in_step, self._decided = decides_in_step, False
        self._seen: Measurement | None = None
        self._at_last_advance = decider
        self._claim_optimizer()
        self._open()
        self._hooks = StepHooks(
            members,
            before=self._before_step,
            after=self._after_step,
            refuse=self._refuse,
            abandon=self._abandon,
        )

    @property
    def loss_scale(self) -> float:
        """Factor by which the GradScaler multiplies the losses of the step; 1 without a scaler."""
        return self._scale.value

    @property
    def gain(self) -> float:
        """Number of base steps that the last optimizer step counts as; 0 before the first step."""
        return 0.0 if self.decision is None else self.decision.base_steps

    @property
    def last_batch_size(self) -> int:
        """Number of samples in the last optimizer step, over all ranks; 0 before the first step."""
        return self.decider.samples - self._before.samples

    def micro_batch(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the number of samples, and optionally the weight, of one micro-batch.

        Call `micro_batch` once per micro-batch, in the order of the backward calls, before or after
        the micro-batch's own backward call. If `samples` or `weight` is a tensor, reading its value
        waits for the device.

        Args:
            samples: Number of samples in this rank's micro-batch, at least 1.
            weight: Weight of the micro-batch's mean loss in the loss of the step, in any unit,
                above 0. Pass the number of tokens if the summed loss of all tokens is divided by
                the number of all tokens. Pass the number of samples if the loss is a mean over all
                samples. None gives all micro-batches equal weights.

        Raises:
            ValueError: `samples` or `weight` is out of range. With several ranks, every rank raises
                a LargeBatchError from `optimizer.step()` instead.
            MicroBatchMissed: Only some micro-batches of the step were given a weight;
                `optimizer.step()` raises this error.
        """
        self.observer.size(samples, weight=weight)

    def part(
        self, *, samples: float | Tensor | None = None, weight: float | Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Count all backward calls inside the `with` block as one micro-batch.

            with control.part(samples=len(x)):
                loss_1(model(x), y).backward()
                loss_2(model(x), y).backward()

        Use `part` if one micro-batch has several backward calls: for example several losses, or the
        real and the generated samples of a GAN's discriminator. A `part` block needs additional
        memory for one copy of the gradient.

        Args:
            samples, weight: These arguments have the same meaning as in `micro_batch`. None gives
                all micro-batches equal shares of the batch.

        Raises:
            ValueError: `samples` or `weight` is out of range.
            MicroBatchMissed: `part` was called inside another `part` block. `optimizer.step()` also
                raises this error if some backward calls of the step ran outside a `part` block.
        """
        return self.observer.part(samples=samples, weight=weight)

    def drop(self) -> None:
        """Discard the gradients measured so far in the current step, because the optimizer will not
        use them.

        Call `drop` after the first forward and backward pass of SAM, or after a forward or backward
        pass that ran out of memory. Also clear the discarded gradients with
        `optimizer.zero_grad()`.
        """
        self.observer.drop(by="control.drop()")

    def loss(self, loss: Tensor) -> None:
        """Pass the mean loss of one micro-batch to the record and to rules that need the loss."""
        self.observer.loss(loss)

    def advance(self, scheduler: LRScheduler | None = None, *, metric: float | None = None) -> int:
        """Advance a scheduler as `Control.advance` does, and discard gradients that no optimizer
        step used.

        Call `advance` after `optimizer.step()`. If gradients were measured but no optimizer step
        used them, or the optimizer step did not finish, `advance` discards them, and the next step
        starts with empty statistics. A call without a scheduler only discards gradients that no
        optimizer step used. With a GradScaler, call `advance` after `scaler.update()`: a step that
        the scaler skipped is counted in `skipped`.
        """
        self._lr.restore()
        try:
            self._hooks.reset()
        except LargeBatchError:
            self.complete()
            raise
        if metric is None and self._hooks.installed:
            if self.decider is self._at_last_advance and self._scale.lowered:
                self._lose_step()
                self._open()
            elif self.observer.in_step:
                self.observer.drop(by="control.advance()")
            self._scale.open()
            self._at_last_advance = self.decider
        return 0 if scheduler is None else super().advance(scheduler, metric=metric)

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Resume from a `state_dict` that a run with the same settings has saved.

        Call `load_state_dict` on every rank. The number of ranks may differ from the number of
        ranks in the saved run. The batch size of the current run does not change, because the
        user's own loop makes the batches.

        Raises:
            CheckpointError: The state has another format version, was saved with another rule, data
                set, base batch size or budget, or is corrupted or truncated. The error leaves the
                run unchanged.
            RanksDisagree: The ranks loaded different states.
        """
        if isinstance(plain, Mapping) and "batches" in plain:
            raise CheckpointError(
                "The state holds a position in the data ('batches'), so lb.Controller saved it. "
                "A run built by lb.attach cannot load this state. Build an lb.Controller, or "
                "start a new run from the model's weights."
            )
        resumed = self._read_state(plain, decider=self.decider)
        decider = replace(resumed.decider, batch_size=self.observer.batch_size)
        self._resume(replace(resumed, decider=decider))
        self._at_last_advance = self.decider
        self._seen = None
        self._open()
        self.meter.agree(clocks_of(self.decider))

    def decide(self, *, share: float = 1.0) -> None:
        """Measure, decide, and multiply the learning rate until the step is complete.

        Call `decide` only in a loop whose optimizer steps do not decide by themselves, that is,
        with `decides_in_step=False`.

        Args:
            share: Ratio of the step's gradient to the mean gradient over the step's micro-batches,
                above 0. `decide` divides the gradient by this number, so that the optimizer gets
                the mean.

        Raises:
            LargeBatchError: `optimizer.step()` under `lb.attach` would raise the same error, or the
                optimizer steps already decide by themselves.
        """
        if self._decides_in_step:
            raise LargeBatchError(
                "optimizer.step() already decides in this run, so control.decide() would decide "
                "a second time in the same step. Remove the call of control.decide()."
            )
        seen = self._decide(share=share)
        if seen.finite:
            if share != 1.0:
                self.meter.multiply_gradients(1.0 / share)
            self._lr.apply(self.lr_multiplier)
        elif self.scaler is None:
            # With a scaler, keep the gradients: the scaler must see them to lower its scale.
            drop_gradients(self.optimizer)
        self._check_going_on(seen)

    def complete(self) -> None:
        """End the decided step: restore the learning rate, write the record and begin the next
        step.

        The optimizer's post-hook calls `complete`, unless a GradScaler skipped the step. `complete`
        does nothing if no step was decided.
        """
        if self._decided:
            self._decided = False
            self._lr.restore()
            try:
                self._write()
            finally:
                self._open()
            if self._seen is not None and self.decision is not None:
                self._notices.tell(self._seen, self.decision, after=self.decider)

    def close(self) -> None:
        """Remove every hook from model and optimizer, restore the learning rate and close the
        record.

        A second call does nothing.
        """
        self._hooks.close()
        self._release_optimizer()
        self._lr.restore()
        self.observer.detach()
        self._running_statistics.close()
        self._close_record()

    def check(self, loss: Any = None, batch: Any = None, *, seconds: float = 3.0) -> Any:
        """Call `lb.check(control, loss, batch)` instead; this method is deprecated and will be
        removed in 0.3.
        """
        return call_check(self, loss, batch, seconds=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _before_step(self, first: bool, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._decides_in_step:
            if self._decided and self._seen is not None and not self._seen.finite:
                # The squared gradients overflowed, although the scaler saw only finite gradients.
                drop_gradients(optimizer)
            return
        refuse_closure(args, kwargs)
        if first:
            seen = self._decide()
            if not seen.finite:
                drop_gradients(self.optimizer)
            self._check_going_on(seen)
        elif self.observer.saw_more:
            raise LargeBatchError(
                "A backward call ran between the step() calls of "
                f"{optimizer_names(self.optimizer)}, but these optimizers share one step. Run "
                "every backward call first, then call each optimizer's step()."
            )
        self._lr.apply(self.lr_multiplier)

    def _after_step(self, last: bool) -> None:
        self._lr.restore()
        if last:
            self._hooks.begin()
            self.complete()

    def _refuse(self, error: LargeBatchError) -> None:
        raise error

    def _abandon(self) -> None:
        """End a step whose `optimizer.step` raised an exception, and restore the user's learning
        rate.
        """
        self._hooks.begin()
        self._lr.restore()
        self.complete()

    def _decide(self, *, share: float = 1.0) -> Measurement:
        """Read the statistics and decide about a gradient that is `share` times the batch's mean
        gradient.
        """
        check_not_joined(self.meter.replica)
        self._lr.restore()
        digest = digest_of(self._alike()) if self.decider.ranks > 1 else 0
        scale = self._scale.open() * share
        try:
            reading = self.observer.close(digest=digest, loss_scale=scale, problem=self._problem())
        except RanksDisagree:
            self.meter.agree(self._alike())
            raise
        seen = self._enter(reading)
        self._restore_running_statistics(seen)
        self._decided = True
        return seen

    def _problem(self) -> LargeBatchError | None:
        """Return the error that prevents this rank from taking the step, or None."""
        try:
            self.check_optimizer()
        except LargeBatchError as error:
            return error
        if self.observer.losses or "loss" not in self.decider.rule.needs:
            return None
        names = rule_names(self.decider.rule, lambda rule: "loss" in rule.needs)
        return LargeBatchError(
            f"{names} needs the loss, but no loss was passed in this step. Before each "
            "loss.backward(), pass the loss: control.loss(loss)."
        )

    def _enter(self, reading: Reading) -> Measurement:
        self._seen = self.decider.see(reading, base_lr=self._lr.base_lr)
        self._before = self.decider
        self.decider, self.decision = self.decider.decide(self._seen)
        return self._seen

    def _alike(self) -> dict[str, Any]:
        return {**clocks_of(self.decider), "learning rate": self._lr.base_lr}

    def _lose_step(self) -> None:
        seen = self._enter(Reading(samples=self.observer.batch_size, finite=False))
        self._restore_running_statistics(seen)
        self._check_going_on(seen)
        self._write()

    def _check_going_on(self, seen: Measurement) -> None:
        try:
            self._check_finite(seen)
        except NotFinite:
            self._write()  # the exception prevents the post-hook, which usually writes the record
            self._decided = False
            self._open()
            raise

    def _write(self) -> None:
        if self._record is not None and self._seen is not None and self.decision is not None:
            self._record.write(self._seen, self.decision)

    def _open(self) -> None:
        self._running_statistics.open()
        self.observer.open(self.decider.measure)
        self.meter = self.observer.meter


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    rule: Rule,
    *,
    batch_size: int,
    base_batch_size: int,
    micro_batches: int | None = None,
    samples: Samples | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    dataset_size: int | None = None,
    budget: Budget | None = None,
    meter: Meter | None = None,
    record: Sink | None = None,
    patience: int = 10,
    scaler: GradScaler | None = None,
) -> Attached:
    """Let a rule set the learning rate inside an existing training loop.

        control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=512, base_batch_size=64)
        for micro_batches in steps:
            for x, y in micro_batches:               # two or more, or several processes
                (loss_fn(model(x), y) / len(micro_batches)).backward()
            optimizer.step()                         # lr x gain inside this call only
            optimizer.zero_grad()
            control.advance(scheduler)               # was scheduler.step(): ticks in base steps
            if control.base_steps >= 10_000:
                break

    All micro-batches of a step have equal weights unless `control.micro_batch(samples, weight=...)`
    sets other weights. The gain and the gradient noise scale do not change if all losses are
    multiplied by one common factor.

    >>> import torch, largebatch as lb
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> control = lb.attach(model, optimizer, lb.AdaScale(), batch_size=8, base_batch_size=4)
    >>> for x in torch.randn(2, 4, 3): (model(x).square().mean() / 2).backward()
    >>> optimizer.step(); 1.0 <= control.gain <= 2.0
    True

    Args:
        model: Model to train: a plain module, or one in DistributedDataParallel if several
            processes share the batch.
        optimizer: Any torch optimizer, also as `accelerate.prepare` returns it, with the learning
            rate that suits `base_batch_size`. Pass a list if several optimizers each move some of
            the parameters. One control then multiplies the learning rates of all optimizers, and a
            step ends when each optimizer has stepped once.
        rule: Rule, or chain of rules, that does not change the batch size.
        batch_size: Number of samples per optimizer step, over all ranks and micro-batches.
        base_batch_size: Base batch size B0 in samples, for which the learning rate was tuned.
        micro_batches: Number of micro-batches per step on each rank. Passing the number saves work
            and lets the control detect missing or repeated micro-batches. None takes the number
            from the first step.
        samples: Function (args, kwargs) of the model's forward call -> number of samples in that
            call. Pass `samples` if the samples are not along the first dimension of the first
            argument, or if micro-batches have unequal sizes.
        reduction: "mean" if each rank's loss is a mean over the rank's own samples, as is usual
            under DistributedDataParallel. "sum" if each rank divides its summed loss by the number
            of samples, or of tokens, of all ranks. `reduction` scales the recorded variance and
            squared norm, but not the ratio of variance to squared norm.
        dataset_size: Number of samples in one epoch, for rules that need it.
        budget: Length of the run, for schedules.
        meter: Meter that measures the gradients; None is `Meter(model)`.
        record: Object that writes one entry per optimizer step, on the first rank only.
        patience: Number of non-finite steps in a row after which training stops.
        scaler: GradScaler that scales the losses of the loop; the measured statistics are corrected
            for the scaler's factor.

    Raises:
        ValueError: The arguments do not fit together; the error is raised before any training step.
        RanksDisagree: The ranks were started with different settings.
        NotFinite: `patience` non-finite steps occurred in a row; `optimizer.step()` raises this
            error.
    """
    check_parts(model, optimizer, record)
    check_micro_batches(micro_batches)
    chooses, meter = meter is None, meter or Meter(model)
    observer = Observer(
        meter,
        batch_size=batch_size,
        micro_batches=micro_batches,
        samples=samples,
        reduction=reduction,
        chooses=chooses,
    )
    return Attached(
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
