"""`attach`: sets the learning rate inside a loop that stays as it is."""

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
    """Sets the learning rate inside the user's own `optimizer.step`; `lb.attach` builds it.

    In the step's pre-hook: read, decide, multiply the learning rate; in its post-hook: restore it.
    A step whose loss or gradient is not finite changes no weight: its gradients are taken away,
    and torch's optimizers pass over a parameter without one. No rule sees it, no clock but the
    samples advances, and it is counted in `skipped`; `patience` of them in a row end the run. A
    step that the scaler left out is counted in `advance`.

    Mutable: holds the step in hand.

    Args:
        optimizer, rule: of the run.
        observer: measures the gradients of the loop.
        base_batch_size, dataset_size, budget, patience, scaler: as in `attach`.
        record: where each step is written, on this rank.
        decides_in_step: whether `optimizer.step` itself decides, in its pre-hook. False is for a
            loop that runs its last backward inside `optimizer.step(closure)`, as Lightning's
            Trainer does. It calls `decide` after that backward, before it clips, and `complete`
            after the step.

    Raises:
        ValueError, RanksDisagree: as in `attach`.
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
        """What the scaler multiplies the step's losses with; 1 without one."""
        return self._scale.value

    @property
    def gain(self) -> float:
        """What the last step was worth in base steps; 0 before the first."""
        return 0.0 if self.decision is None else self.decision.base_steps

    @property
    def last_batch_size(self) -> int:
        """Samples of the last step, over all ranks; 0 before the first."""
        return self.decider.samples - self._before.samples

    def micro_batch(self, samples: float | Tensor, *, weight: float | Tensor | None = None) -> None:
        """Set the samples of one micro-batch, once for each of the step, in the order of their
        backward calls; before or after the backward.

        Args:
            samples: in this rank's micro-batch, at least 1.
            weight: of its mean loss in the step's loss, in any unit, above 0: its tokens, if the
                summed loss of all tokens is divided by their number; its samples, if the loss is a
                mean over all samples. None means that all micro-batches have equal weights.

        A tensor is read by the host.

        Raises:
            ValueError: samples or a weight out of range. On several ranks all of them raise a
                LargeBatchError, from `optimizer.step()`.
            MicroBatchMissed: from `optimizer.step()`, for weights of some micro-batches only.
        """
        self.observer.size(samples, weight=weight)

    def part(
        self, *, samples: float | Tensor | None = None, weight: float | Tensor | None = None
    ) -> AbstractContextManager[None]:
        """Take all backward calls within the block for one micro-batch.

            with control.part(samples=len(x)):
                loss_1(model(x), y).backward()
                loss_2(model(x), y).backward()

        Use it where one micro-batch has several backward calls: several losses, or the real and
        the generated samples of a GAN's discriminator. It needs one more gradient of memory.

        Args:
            samples, weight: as in `micro_batch`; None means equal shares of the batch.

        Raises:
            ValueError: samples or a weight out of range.
            MicroBatchMissed: inside another block, or from `optimizer.step()` if other backward
                calls of the step ran outside of a block.
        """
        return self.observer.part(samples=samples, weight=weight)

    def drop(self) -> None:
        """Drop the pass in hand, whose gradients the optimizer shall not get: the first pass of
        SAM, or a pass that ran out of memory. Clear its gradients, too: optimizer.zero_grad()."""
        self.observer.drop(by="control.drop()")

    def loss(self, loss: Tensor) -> None:
        """Tells the mean loss of one micro-batch, for the record and for rules that need it."""
        self.observer.loss(loss)

    def advance(self, scheduler: LRScheduler | None = None, *, metric: float | None = None) -> int:
        """Advance a scheduler as `Control.advance` does, and drop a pass that is open.

        Call it after `optimizer.step()`. A pass that did not come to its step, or did not complete
        it, is dropped at any time, and the next step starts afresh; for that alone it needs no
        scheduler. With a scaler, call it after scaler.update(): a step that the scaler left out is
        counted as skipped.
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
        """Resumes where `state_dict` was taken, in a run built as that one was; call it on every
        rank. The number of ranks may differ. The batch is that of this run, whose loop makes it.

        Raises:
            CheckpointError: a state of another rule, version, data set, base batch or budget, or
                one that is damaged or cut; the run is left as it was.
            RanksDisagree: the ranks loaded different states.
        """
        if isinstance(plain, Mapping) and "batches" in plain:
            raise CheckpointError(
                "The state has a place in the data ('batches'): it is that of lb.Controller. Build "
                "one, or start a new run from the model's weights."
            )
        resumed = self._read_state(plain, decider=self.decider)
        decider = replace(resumed.decider, batch_size=self.observer.batch_size)
        self._resume(replace(resumed, decider=decider))
        self._at_last_advance = self.decider
        self._seen = None
        self._open()
        self.meter.agree(clocks_of(self.decider))

    def decide(self, *, share: float = 1.0) -> None:
        """Measures, decides and multiplies the learning rate until the step is over; for a loop
        whose steps do not decide by themselves (`decides_in_step=False`).

        Args:
            share: the factor by which the step's gradient falls short of the mean over its
                micro-batches, above 0; it is made the mean.

        Raises:
            LargeBatchError: as `optimizer.step()` under `lb.attach`, or the steps decide by
                themselves.
        """
        if self._decides_in_step:
            raise LargeBatchError(
                "optimizer.step() decides by itself in this run, so control.decide() would decide "
                "twice. Leave it out."
            )
        seen = self._decide(share=share)
        if seen.finite:
            if share != 1.0:
                self.meter.multiply_gradients(1.0 / share)
            self._lr.apply(self.lr_multiplier)
        elif self.scaler is None:
            drop_gradients(self.optimizer)  # else the scaler must see them, to lower its scale
        self._check_going_on(seen)

    def complete(self) -> None:
        """Closes the step that was decided: restores the learning rate, writes the record and opens
        the next step. The optimizer's post-hook calls it, unless a scaler left the step out. Does
        nothing if no step was decided."""
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
        """Takes every hook off model and optimizer, restores the learning rate and closes the
        record; a second call does nothing."""
        self._hooks.close()
        self._release_optimizer()
        self._lr.restore()
        self.observer.detach()
        self._running_statistics.close()
        self._close_record()

    def check(self, loss: Any = None, batch: Any = None, *, seconds: float = 3.0) -> Any:
        """Deprecated, and removed in 0.3: call `lb.check(control, loss, batch)`."""
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
                drop_gradients(optimizer)  # the squares overflowed before what the scaler looks at
            return
        refuse_closure(args, kwargs)
        if first:
            seen = self._decide()
            if not seen.finite:
                drop_gradients(self.optimizer)
            self._check_going_on(seen)
        elif self.observer.saw_more:
            raise LargeBatchError(
                f"A backward call came between the steps of {optimizer_names(self.optimizer)}, "
                "which belong to one step. Call every backward first, then each optimizer.step()."
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
        """Closes a step whose `optimizer.step` raised: the learning rate is the user's again."""
        self._hooks.begin()
        self._lr.restore()
        self.complete()

    def _decide(self, *, share: float = 1.0) -> Measurement:
        """Reads and decides about a gradient that is `share` times the mean over the batch."""
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
        """Return what this rank cannot go on with."""
        try:
            self.check_optimizer()
        except LargeBatchError as error:
            return error
        if self.observer.losses or "loss" not in self.decider.rule.needs:
            return None
        names = rule_names(self.decider.rule, lambda rule: "loss" in rule.needs)
        return LargeBatchError(
            f"{names} needs the loss, and none was passed in this step. Before each "
            "loss.backward(): control.loss(loss)."
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
            self._write()  # no post-hook comes
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

    The micro-batches of a step count equally unless `control.micro_batch(samples, weight=...)` says
    otherwise. Gain and noise scale do not depend on a factor that all losses have in common.

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer, also as `accelerate.prepare` returns it, with the learning
            rate that suits `base_batch_size`. A list of optimizers, each of which moves some of the
            parameters, has one control: all their learning rates are multiplied, and a step ends
            when each of them has stepped once.
        rule: a rule or a chain of rules that leaves the batch alone.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        base_batch_size: B0, the batch in samples for which the learning rate was tuned.
        micro_batches: micro-batches per step on each rank. Passing it saves work and finds missing
            or double ones; None takes what the first step shows.
        samples: (args, kwargs) of the model's forward pass -> samples in it, if the first dimension
            of the first argument is not the samples or if micro-batches are unequal.
        reduction: "mean" if each rank's loss is a mean over its own samples, as usual under
            DistributedDataParallel; "sum" if each rank divides by the samples, or tokens, of all
            ranks. It changes the recorded variance and squared norm, not their ratio.
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
