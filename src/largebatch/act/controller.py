"""Define `Controller`, which drives training steps whose batch size may change."""

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
from largebatch.act.micro_batches import MicroBatches, check_loss, memory_advice, weight_of
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
    """Run training steps whose batch size may change: load, measure, decide and step.

        batches = lb.BatchLoader(dataset, batch_size=512, max_micro_batch_size=64)
        control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=64)
        for batch in control.steps(epochs=5):        # one optimizer step
            for x, y in batch:                       # its micro-batches
                control.backward(loss_fn(model(x), y))
            control.step(clip_norm=1.0)

    Each optimizer step measures the gradient, decides, applies the decision and commits the result.
    `measure` only measures the gradient; `step` then decides, applies the decision and commits the
    result.

    >>> import torch, largebatch as lb
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batches = lb.BatchLoader(torch.randn(64, 3), batch_size=8)
    >>> control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=4)
    >>> for batch in control.steps(steps=3):
    ...     for x in batch: control.backward(model(x).square().mean())
    ...     decision = control.step()
    >>> control.samples
    24

    This class is mutable: it holds the run and the current step.

    Args:
        model: Model to train: a plain module, or one in DistributedDataParallel if several
            processes share the batch.
        optimizer: Any torch optimizer, also as `accelerate.prepare` returns it, with the learning
            rate that suits `base_batch_size`.
        rule: Rule, or chain of rules, that decides from the measurements.
        batches: BatchLoader that provides the samples.
        base_batch_size: Base batch size B0 in samples, for which the learning rate was tuned.
        meter: Meter that measures the gradients; None is `Meter(model)`.
        record: Object that writes one entry per optimizer step, on the first rank only.
        patience: Number of non-finite steps in a row after which training stops.
        scaler: GradScaler for float16. Pass the unscaled loss to `backward`; the Controller itself
            scales the loss, unscales the gradients, and steps and updates the scaler.

    Raises:
        ValueError: The arguments do not fit together; the error is raised before any training step.
        RanksDisagree: The ranks were started with different settings.
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
        """Number of samples planned for the next step, over all ranks."""
        return self.decider.batch_size

    @property
    def in_step(self) -> bool:
        """Whether a step is in progress, that is, after `steps` has yielded a step and before
        `step` is called.
        """
        return self._step is not None

    def resize(self, batch_size: int) -> None:
        """Set the batch size of the next step by hand, for example when workers join or leave.

        Args:
            batch_size: Number of samples over all ranks, at least one per rank.

        Raises:
            ValueError: The batch size is not a whole number, or it is below one sample per rank.
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
        """Yield the steps of the run until the budget, given in exactly one unit, is used up.

        If the loop is left early, model and optimizer are restored to their state between two
        steps. Another call with the same budget continues where the loop stopped.

        Args:
            base_steps: Budget in base steps (steps of the base batch size).
            samples: Budget in training samples over all ranks. The last step is shortened to end at
                `samples`, but keeps at least one sample per rank.
            epochs: Budget in passes over the data set, or over your own data loader on all ranks,
                converted to samples.
            steps: Budget in optimizer steps.

        Raises:
            ValueError: No budget or more than one was given, the budget is not above 0, or it
                differs from the budget of an earlier call.
            RanksDisagree: The ranks were started with different settings.
        """
        units = {"base_steps": base_steps, "samples": samples, "epochs": epochs, "steps": steps}
        self._begin(budget_of(units, dataset_size=self.decider.dataset_size))
        return self._iterate()

    def stop(self) -> None:
        """End the loop over `steps` at the next call of `step`.

        A signal handler may call `stop`. All ranks stop at the same step, even if only one rank
        calls `stop`. The record is closed, and `finished` stays False. A new run can resume from
        the `state_dict`.
        """
        self._stop_wanted = True

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `Control.state_dict`, and the position in the data under the key
        "batches".

        Raises:
            CheckpointError: A step is in progress.
        """
        self._check_between_steps("saved")
        return {**super().state_dict(), "batches": self.batches.state_dict()}

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Resume from a `state_dict` that a run with the same settings has saved.

        Call `load_state_dict` on every rank, before `steps`. The numbers of ranks and of loader
        workers may differ from the numbers in the saved run.

        Raises:
            CheckpointError: The state has another format version, was saved with another rule, data
                set, base batch size or budget, or is corrupted or truncated. The error leaves the
                run unchanged.
            RanksDisagree: The ranks loaded different states.
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
                "The state holds no position in the data ('batches'): it is truncated, or "
                "lb.attach saved it. Load the whole result of control.state_dict() of an "
                "lb.Controller."
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
        """End the run: discard the current step and close the record.

        A run that has used up its budget or its data closes itself.
        """
        self._drop_step()
        self._release_optimizer()
        self._close_record()

    def backward(self, loss: Tensor, *, weight: float | Tensor | None = None) -> None:
        """Run the backward pass of one micro-batch, weighted so that the step's gradient is the
        mean over all samples of the step.

        Args:
            loss: Mean loss of the micro-batch, a scalar tensor.
            weight: Number of items over which the loss is a mean, such as tokens, above 0. None is
                the number of samples. If `weight` is a tensor, reading its value waits for the
                device.

        Raises:
            ValueError: The loss is a sum, is not a scalar or has no autograd graph, or the weight
                is not above 0.
            MicroBatchMissed: No micro-batch is in progress.
            torch.OutOfMemoryError: The device ran out of memory; a note on the error explains how
                to use smaller micro-batches.
        """
        step = self._step
        if step is None:
            raise MicroBatchMissed(
                "control.backward was called outside a step. Call control.backward inside the "
                "two loops: for batch in control.steps(samples=...): for x, y in batch: ..."
            )
        check_loss(loss, samples=step.size)
        weight = weight_of(weight, samples=step.size)
        last = step.take()
        share = weight * self.decider.ranks / step.batch_size
        share *= self._scale.value
        try:
            self.meter.backward(loss, share=share, weight=weight, samples=step.size, last=last)
        except torch.OutOfMemoryError as error:
            error.add_note(memory_advice(step.size))
            raise

    def measure(self) -> Reading:
        """Complete the gradient of the step and return the measured statistics.

        `step` calls `measure` by itself. Call `measure` before `step` to change the gradient
        between the two calls, for example to clip it in your own way.

        Raises:
            MicroBatchMissed: Backward was not called for some micro-batch of the step.
            RanksDisagree: The ranks made different decisions in earlier steps.
        """
        step = self._step
        if step is None:
            raise MicroBatchMissed(
                "No step is in progress, so there is no gradient to measure. "
                "Iterate over the steps: for batch in "
                "control.steps(samples=...): ..."
            )
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
        """Measure, decide, take the optimizer step and prepare the next step.

        Args:
            clip_norm: Largest norm of the gradient that the optimizer gets, over all parameters
                together, above 0. The statistics are measured before clipping.

        Returns:
            Decision that the rule made for this step.

        Raises:
            ValueError: `clip_norm` is not above 0.
            MicroBatchMissed: Backward was not called for some micro-batch of the step.
            NotFinite: The loss of the first step is not finite, or `patience` steps in a row are
                not finite.
        """
        if clip_norm is not None and not clip_norm > 0.0:
            raise ValueError(
                f"clip_norm={clip_norm!r} was given, but it must be above 0. For "
                "example: control.step(clip_norm=1.0)."
            )
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
        """Call `lb.check(control, loss)` instead; this method is deprecated and will be removed in
        0.3.
        """
        return call_check(self, loss, seconds=seconds)

    def fit_micro_batch(self, loss: Any, **options: Any) -> Any:
        """Call `lb.fit_micro_batch(control, loss)` instead; this method is deprecated and will be
        removed in 0.3.
        """
        return call_fit_micro_batch(self, loss, **options)

    def _begin(self, budget: Budget) -> None:
        there = self.decider.budget
        if there is not None and there != budget:
            raise ValueError(
                f"This run has the budget {budget_text(there)}, but "
                f"control.steps({budget_text(budget)}) was called. The budget of a run cannot "
                "change, because schedules depend on the used fraction of the budget. Continue "
                f"with control.steps({budget_text(there)}), or build another lb.Controller."
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
        self._drop_step()  # of an earlier loop that was left, but is still referenced
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
                        "The loop asked for the next step before control.step() was called. "
                        "After the loop over the micro-batches, add one call per step: "
                        "control.step()."
                    )
                if self.reading is not None and self.reading.exhausted:
                    break
            self._release_optimizer()
            self._close_record()
        finally:
            guard.remove()
            self._running_statistics.close()
            if self._step in (step, None):  # a newer loop may have begun a step of its own
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
                f"The state of a run can be {what} only between two steps, but a step is in "
                "progress. Save or load the state after control.step()."
            )

    def _refuse_foreign_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._step is not None and not self._stepping:
            raise LargeBatchError(
                "optimizer.step() was called inside a step of lb.Controller, but control.step() "
                "already takes the optimizer step, so the weights would move twice. Remove "
                "optimizer.step() and optimizer.zero_grad() from the loop."
            )

    def _drop_step(self) -> None:
        if self._step is not None:
            self._step.close()
        self._step, self.reading = None, None
        self.meter.clear(self.optimizer)
        self.meter.open(frozenset())  # removes the hooks
