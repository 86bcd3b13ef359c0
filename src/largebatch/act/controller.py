"""`Controller`: loads, measures, decides and steps, so that the batch may change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from largebatch.act.budgets import budget_of, budget_text
from largebatch.act.control import Control
from largebatch.act.deprecated import call_check, call_fit_micro_batch
from largebatch.act.guards import (
    check_cap,
    check_loads_batches,
    check_not_joined,
    check_one_optimizer,
    check_parts,
    check_patience,
    check_reduced_by_ddp,
    check_variance,
)
from largebatch.act.loader import BatchLoader
from largebatch.act.micro_batches import MicroBatches, check_loss, smaller, weight_of
from largebatch.act.needs import check_needs
from largebatch.act.prepared import bare_optimizer
from largebatch.act.run_facts import clocks_of, digest_of, optimizer_facts, run_facts
from largebatch.act.saved_epoch import warn_of_other_epoch, with_saved_epoch
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.errors import CheckpointError, LargeBatchError, MicroBatchMissed, RanksDisagree
from largebatch.core.measurement import OF_THE_STEP, Budget, Measurement, Reading
from largebatch.core.protocols import Sink
from largebatch.core.rule import Rule
from largebatch.measure.meter import Meter


class Controller(Control):
    """A run in which the batch may change: it loads, measures, decides and steps.

        batches = lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size=64)
        control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=64)
        for batch in control.steps(epochs=5):        # one optimizer step
            for x, y in batch:                       # its micro-batches
                control.backward(loss_fn(model(x), y))
            control.step(clip_norm=1.0)

    One step is `measure` (observe), decide, apply and commit, in this order; `step` does what is
    left of them.

    Mutable: holds the run and the step in hand.

    Args:
        model: bare, or in DistributedDataParallel when several processes share the batch.
        optimizer: any torch optimizer, also as `accelerate.prepare` returns it, with the learning
            rate that suits `base_batch_size`.
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

    exclusive = False

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
        check_parts(model, optimizer, record)
        check_one_optimizer(optimizer)
        check_loads_batches(batches)
        check_cap(rule, batch_size=batches.batch_size)
        optimizer = bare_optimizer(optimizer)
        meter = meter or Meter(model)
        check_reduced_by_ddp(meter)
        check_patience(patience)
        meter.bind(optimizer)
        batches.share(meter.ranks)
        decider = Decider.start(
            rule,
            base_batch_size=base_batch_size,
            batch_size=batches.batch_size,
            ranks=meter.rank_count,
            dataset_size=batches.dataset_size,
        )
        super().__init__(
            decider,
            optimizer,
            meter=meter,
            scaler=scaler,
            record=record if meter.leader else None,
            patience=patience,
        )
        check_needs(decider, meter=meter)
        measures = bool(decider.rule.needs & OF_THE_STEP)
        parts = meter.least_parts if measures else 1
        check_variance(decider, least=meter.least_samples if measures else 1)
        batches.bind(
            rank=meter.rank,
            ranks=meter.rank_count,
            least_parts=parts,
            alike=parts > 1 and "batch" in decider.rule.changes,
        )
        self.model, self.batches = model, batches
        self.reading: Reading | None = None
        self._begun = self._stop_wanted = False
        self._step: MicroBatches | None = None
        self._clip_norm: float | None = None
        self._stepping = False
        self._claim_optimizer()

    @property
    def batch_size(self) -> int:
        """Samples wished for the coming step, over all ranks."""
        return self.decider.batch_size

    @property
    def in_step(self) -> bool:
        """Whether a step is in hand: it was given by `steps`, and `step` was not called yet."""
        return self._step is not None

    def resize(self, batch_size: int) -> None:
        """Sets the next step's batch by hand, as when workers come or go.

        Raises:
            ValueError: fewer samples than ranks.
        """
        self.batches.resize(batch_size)
        self.decider = replace(self.decider, batch_size=batch_size)

    def steps(
        self,
        *,
        base_steps: float | None = None,
        samples: float | None = None,
        epochs: float | None = None,
        steps: float | None = None,
    ) -> Iterator[MicroBatches]:
        """The run's steps until the budget, given in exactly one unit, is used up.

        Leaving the loop early restores model and optimizer; calling it again with the same budget
        goes on where it stopped.

        Args:
            base_steps: steps of the base batch.
            samples: training samples over all ranks; the last step is cut to end there, or to one
                sample a rank.
            epochs: passes over the data set, or of a loader of the user's over all ranks, counted
                in samples.
            steps: optimizer steps.

        Raises:
            ValueError: no budget or several, one that is not above 0, or another than before.
            RanksDisagree: the ranks were started with different settings.
        """
        units = {"base_steps": base_steps, "samples": samples, "epochs": epochs, "steps": steps}
        self._begin(budget_of(units, dataset_size=self.decider.dataset_size))
        return self._iterate()

    def stop(self) -> None:
        """Ends the loop over `steps` with the next `step` that is taken, on all ranks alike when
        one asks; as a signal's handler may. The record is closed, `finished` stays False, and a
        new run goes on from the `state_dict`."""
        self._stop_wanted = True

    def state_dict(self) -> dict[str, Any]:
        """As `Control.state_dict`, and the place in the data under "batches".

        Raises:
            CheckpointError: in the middle of a step.
        """
        self._check_between_steps("saved")
        return {**super().state_dict(), "batches": self.batches.state_dict()}

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in a run built as that one was; call it on every
        rank, before `steps`. The number of ranks and of workers may differ.

        Raises:
            CheckpointError: a state of another rule, version, data set, base batch or budget, or
                one that is damaged or cut; the run is left as it was.
            RanksDisagree: the ranks loaded different states.
        """
        self._check_between_steps("loaded")
        batches = plain.get("batches") if isinstance(plain, Mapping) else None
        if batches is not None:
            plain = {name: value for name, value in plain.items() if name != "batches"}
        counted = self.batches.counts_passes
        decider = with_saved_epoch(self.decider, plain) if counted else self.decider
        resumed = self._read_state(plain, decider=decider)
        if not isinstance(batches, Mapping):
            raise CheckpointError(
                "The state has no place in the data ('batches'): it is cut, or that of lb.attach."
            )
        try:
            self.batches.load_state_dict(batches)
        except (ValueError, LargeBatchError) as error:
            raise CheckpointError(str(error)) from error
        if self.meter.leader:
            warn_of_other_epoch(
                saved=resumed.decider.dataset_size, counted=self.decider.dataset_size
            )
        self._resume(resumed)
        self._step = self.reading = None
        self.meter.agree(clocks_of(self.decider))

    def close(self) -> None:
        """Ends the run: drops the step in hand and closes the record. A run that uses up its budget
        or its data does so by itself."""
        self._drop_step()
        self._release_optimizer()
        self._close_record()

    def backward(self, loss: Tensor, *, weight: float | Tensor | None = None) -> None:
        """Runs the micro-batch's backward, weighted so that the step's gradient is the mean.

        Args:
            loss: the micro-batch's MEAN loss, a scalar.
            weight: what it averages over, where that is not its samples (tokens, say); above 0.
                A tensor is read by the host.

        Raises:
            ValueError: a loss that is a sum or no scalar with a graph, a weight not above 0.
            MicroBatchMissed: no micro-batch is in hand.
            torch.OutOfMemoryError: with a note on what to do about it.
        """
        step = self._step
        if step is None:
            raise MicroBatchMissed(
                "control.backward was called outside a step. Use it inside "
                "for batch in control.steps(samples=...): for x, y in batch: ..."
            )
        check_loss(loss, samples=step.size)
        weight = weight_of(weight, samples=step.size)
        last = step.take()
        share = weight * self.decider.ranks / step.batch_size
        share *= self._scale.value
        try:
            self.meter.backward(loss, share=share, weight=weight, samples=step.size, last=last)
        except torch.OutOfMemoryError as error:
            error.add_note(smaller(step.size))
            raise

    def measure(self) -> Reading:
        """Completes the step's gradient and reads the meter; for clipping of your own between it
        and `step`, which calls it otherwise.

        Raises:
            MicroBatchMissed: not every micro-batch had its backward.
            RanksDisagree: the ranks took different decisions before.
        """
        step = self._step
        if step is None:
            raise MicroBatchMissed("There is no step in hand; iterate control.steps(...).")
        if self.reading is None:
            step.check_complete()
            step.close()
            self.reading = self._close(planned_weight=step.batch_size)
            self._scale.unscale()
            correction = step.batch_size / self.reading.weight
            if self.reading.finite and abs(correction - 1.0) > 1e-12:
                self.meter.multiply_gradients(correction)
        return self.reading

    def step(self, *, clip_norm: float | None = None) -> Decision:
        """Measures, decides, takes the optimizer's step and prepares the next one.

        Args:
            clip_norm: largest norm of the gradient that the optimizer gets, over all parameters
                together, above 0; the statistics are those before clipping.

        Returns:
            What was decided.

        Raises:
            ValueError: a `clip_norm` that is not above 0.
            MicroBatchMissed: not every micro-batch had its backward.
            NotFinite: the first step's loss is not finite, or `patience` steps in a row.
        """
        if clip_norm is not None and not clip_norm > 0.0:
            raise ValueError(f"clip_norm is above 0, as in clip_norm=1.0; got {clip_norm!r}.")
        reading = self.measure()
        seen = self.decider.see(reading, base_lr=self._lr.base_lr)
        after, decision = self.decider.decide(seen)
        self._restore_running_statistics(seen)
        if seen.finite:
            self._apply(decision, sqnorm=reading.batch_sqnorm, clip_norm=clip_norm)
        self._scale.update(finite=seen.finite)
        self._clip_norm = clip_norm
        self._commit(after, seen, decision)
        self._check_finite(seen)
        self._notices.tell(seen, decision, after=after)
        return decision

    def check(self, loss: Any = None, *, seconds: float = 3.0) -> Any:
        """Deprecated, and removed in 0.3: call `lb.check(control, loss)`."""
        return call_check(self, loss, seconds=seconds)

    def fit_micro_batch(self, loss: Any, **options: Any) -> Any:
        """Deprecated, and removed in 0.3: call `lb.fit_micro_batch(control, loss)`."""
        return call_fit_micro_batch(self, loss, **options)

    def _begin(self, budget: Budget) -> None:
        there = self.decider.budget
        if there is not None and there != budget:
            raise ValueError(
                f"This run's budget is {budget_text(there)}; it is given once, since schedules are "
                f"fractions of it. Got {budget_text(budget)}. Go on with "
                f"control.steps({budget_text(there)}), or build another lb.Controller."
            )
        if not self._begun:
            decider = replace(self.decider, budget=budget)
            facts, stream = run_facts(decider), self.batches.state_dict()
            alike = {name: stream[name] for name in ("seed", "shuffle", "position")}
            alike["max_micro_batch_size"] = self.batches.max_micro_batch_size
            self.meter.agree({**facts, **alike, "learning rate": self._lr.base_lr})
            if self._record is not None:
                self._record.start({**facts, "optimizer": optimizer_facts(self.optimizer)})
            self.decider, self._begun = decider, True

    def _iterate(self) -> Iterator[MicroBatches]:
        self._claim_optimizer()
        self._drop_step()  # of a loop that was left, but that somebody still holds
        step: MicroBatches | None = None
        guard = self.optimizer.register_step_pre_hook(self._refuse_foreign_step)
        try:
            while not self.decider.finished:
                check_not_joined(self.meter.replica)
                self.check_optimizer()
                planned = self.batches.next_step(limit=self._samples_left())
                if planned is None:
                    break
                self.meter.open(self.decider.measure)
                self._running_statistics.open()
                self._scale.open()
                step = MicroBatches(planned, replica=self.meter.replica, quiet=self.meter.reduces)
                self._step, self.reading = step, None
                yield step
                if self._step is not None:
                    raise MicroBatchMissed(
                        "The next step was asked for before control.step(). Call it once after "
                        "the loop over the micro-batches: control.step()."
                    )
                if self.reading is not None and self.reading.exhausted:
                    break
            self._release_optimizer()
            self._close_record()
        finally:
            guard.remove()
            self._running_statistics.close()
            if self._step in (step, None):  # not that of another loop
                self._drop_step()

    def _samples_left(self) -> int | None:
        budget = self.decider.budget
        if budget is None or budget.samples is None:
            return None
        return budget.samples - self.decider.samples

    def _close(self, *, planned_weight: float) -> Reading:
        digest = digest_of(self._alike()) if self.decider.ranks > 1 else 0
        try:
            return self.meter.close(
                planned_weight=planned_weight / self._scale.value,
                digest=digest,
                exhausted=self.batches.exhausted or self._stop_wanted,
            )
        except RanksDisagree:
            self.meter.agree(self._alike())
            raise

    def _alike(self) -> dict[str, Any]:
        clocks = clocks_of(self.decider)
        return {**clocks, "clip_norm": self._clip_norm, "learning rate": self._lr.base_lr}

    def _apply(self, decision: Decision, *, sqnorm: float | None, clip_norm: float | None) -> None:
        if clip_norm is not None and sqnorm is not None and math.sqrt(sqnorm) > clip_norm:
            self.meter.multiply_gradients(clip_norm / math.sqrt(sqnorm))
        self._lr.apply(decision.lr_multiplier)
        self._stepping = True
        try:
            self._scale.step()
        finally:
            self._stepping = False
            self._lr.restore()

    def _commit(self, after: Decider, seen: Measurement, decision: Decision) -> None:
        self.meter.clear(self.optimizer)
        self._before, self.decider, self.decision = self.decider, after, decision
        self._step = None
        self.batches.commit(seen.batch_size)
        if self._record is not None:
            self._record.write(seen, decision)
        if decision.next_batch_size != self.batches.batch_size:
            self.batches.resize(decision.next_batch_size)

    def _check_between_steps(self, what: str) -> None:
        if self._step is not None:
            raise CheckpointError(
                f"A run's state is {what} between two steps, and one is in hand: after "
                "control.step() is the place."
            )

    def _refuse_foreign_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step is not None and not self._stepping:
            raise LargeBatchError(
                "optimizer.step() was called inside a step of the Controller, which takes it in "
                "control.step(): the weights would move twice. Leave it out, and zero_grad, too."
            )

    def _drop_step(self) -> None:
        if self._step is not None:
            self._step.close()
        self._step, self.reading = None, None
        self.meter.clear(self.optimizer)
        self.meter.open(frozenset())  # takes the hooks off
