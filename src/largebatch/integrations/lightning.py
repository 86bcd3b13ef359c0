"""Define `LargeBatch`, a Lightning callback that lets a rule set the learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "largebatch.integrations.lightning requires Lightning, which is not installed. Install it: "
        "pip install 'largebatch[lightning]'"
    ) from error

from largebatch.act.attached import Attached
from largebatch.act.passes import sum_of_known
from largebatch.act.saved_epoch import warn_of_other_epoch, with_saved_epoch
from largebatch.core.errors import CheckpointError, LargeBatchError
from largebatch.core.measurement import OF_THE_STEP, Budget
from largebatch.core.protocols import Sink
from largebatch.core.rule import Rule
from largebatch.integrations.lightning_checks import (
    check_optimizer,
    check_rule_keeps_batch,
    check_trainer,
    loader_sizes,
    scaler_of,
    step_schedulers,
)
from largebatch.measure.meter import Meter
from largebatch.measure.observer import Observer

PREFIX = "largebatch/"
"""Prefix of the names under which the callback logs its values."""


class LargeBatch(Callback):
    """Let a rule set the learning rate in a Lightning Trainer with automatic optimization.

        from largebatch.integrations.lightning import LargeBatch

        scaled = LargeBatch(lb.AdaScale(), base_batch_size=64, base_steps=10_000)
        trainer = Trainer(max_epochs=-1, accumulate_grad_batches=8, callbacks=[scaled])
        trainer.fit(module)               # the optimizer's learning rate suits 64 samples

    The learning rate is multiplied only inside the optimizer step, so schedulers, monitors and
    checkpoints see the learning rate that the module set. Gradients are measured before the Trainer
    clips them. If an epoch ends in the middle of an accumulation, Lightning still divides each loss
    by `accumulate_grad_batches`, so Lightning's gradient is too small. The callback corrects the
    gradient of an incomplete accumulation to the mean over the micro-batches that were accumulated.

    The run's counters of steps, samples and base steps are saved in the Trainer's checkpoints, and
    `trainer.fit(module, ckpt_path=...)` restores the counters. The following values are logged in
    each training step that `log_every_n_steps` selects: `largebatch/lr_multiplier`,
    `largebatch/gain` (number of base steps that the training step counts as),
    `largebatch/base_steps`, `largebatch/batch_size` and `largebatch/skipped`.

    The callback holds the run, so its state changes.

    Args:
        rule: Rule or chain of rules that does not change the batch size.
        base_batch_size: Base batch size B0 in samples, for which the learning rate was tuned.
        batch_size: Number of samples of one optimizer step, over all processes and accumulated
            batches. If None, the number is read from the data loader. Pass the number if the data
            loader does not show its batch size.
        dataset_size: Number of samples of one epoch over all processes, for rules that need this
            number. If None, the number of samples that the Trainer takes from the loader in the
            first epoch is used.
        base_steps: Length of the run in base steps, after which the fit ends.
        budget: Length of the run in any unit, such as `lb.Budget(samples=5_000_000)`.
        schedulers_in_base_steps: Whether schedulers with the interval "step" advance in base steps
            instead of optimizer steps. The argument is required if the module has a scheduler with
            the interval "step".
        meter: Function that makes a meter for the Trainer's model, or None for `lb.Meter`.
        record: Sink that stores each training step. Only rank 0 writes to the sink.
        patience: Number of successive training steps with a loss or gradient that is not finite,
            after which training ends.

    Raises:
        ValueError: Two arguments of `LargeBatch` contradict each other. Problems of the Trainer,
            its loader or its optimizer raise errors before the first training step.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        base_batch_size: int,
        batch_size: int | None = None,
        dataset_size: int | None = None,
        base_steps: float | None = None,
        budget: Budget | None = None,
        schedulers_in_base_steps: bool | None = None,
        meter: Callable[[nn.Module], Meter] | None = None,
        record: Sink | None = None,
        patience: int = 10,
    ) -> None:
        check_rule_keeps_batch(rule)
        if base_steps is not None and budget is not None:
            raise ValueError(
                f"base_steps={base_steps} and budget={budget} were both given, but the length of "
                "a run must be given only once. Pass base_steps=10_000, or "
                "budget=lb.Budget(samples=5_000_000)."
            )
        self.rule, self.base_batch_size = rule, base_batch_size
        self.budget = budget if base_steps is None else Budget(base_steps=base_steps)
        self.patience = patience
        self._batch_size, self._dataset_size = batch_size, dataset_size
        self._in_base_steps = schedulers_in_base_steps
        self._meter = meter or Meter
        self._record = record
        self._control: Attached | None = None
        self._saved: dict[str, Any] | None = None
        self._first: int | None = None
        self._schedulers: list[LRScheduler] = []

    @property
    def control(self) -> Attached:
        """Return the run, with its counters and its last decision.

        Raises:
            LargeBatchError: Training has not started.
        """
        if self._control is None:
            raise LargeBatchError(
                "LargeBatch has no control before training starts. Call trainer.fit(module) first."
            )
        return self._control

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the run for the Trainer's checkpoint; see `Control.state_dict`."""
        return {} if self._control is None else self._control.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the saved state until training starts. The Trainer calls `load_state_dict` when it
        resumes a run.

        Args:
            state_dict: State that `state_dict` returned.
        """
        self._saved = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise an error if the rule cannot work with this Trainer or module."""
        self._saved = None
        if stage == "fit":
            check_trainer(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer and take over the schedulers that advance in base steps."""
        check_optimizer(trainer)
        self._schedulers = step_schedulers(trainer, pl_module, in_base_steps=self._in_base_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the rule to the Trainer's model, optimizer and data loader."""
        if self._saved is None and trainer.global_step > 0:
            raise CheckpointError(
                f"The Trainer resumes after step {trainer.global_step}, but the checkpoint has no "
                "state of LargeBatch. Resume from a checkpoint that was saved with LargeBatch: "
                "trainer.fit(module, ckpt_path=...). Or load only the weights into a new Trainer."
            )
        self._read_loader(trainer)
        self._control = self._attach(trainer)
        if self._saved is not None:
            self._resume(self._control, self._saved)
        self._backwards = 0
        self._stepped = False
        self._stop_at_the_end(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the sizes of the data loader again, in case the Trainer replaced the loader."""
        before = self._sizes.dataset_size
        self._read_loader(trainer)
        if self._dataset_size is None and self._sizes.dataset_size != before:
            warnings.warn(
                f"The loader of epoch {trainer.current_epoch} gives {self._sizes.dataset_size} "
                f"samples per epoch, but the previous loader gave {before} samples per epoch. "
                "Rules that count epochs keep the first number, "
                f"{self.control.decider.dataset_size}. To set another number, pass "
                "LargeBatch(..., dataset_size=60_000).",
                stacklevel=2,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look up the number of samples in the loader's current batch."""
        if self._first is None:
            self._first = batch_idx  # a loader that cannot resume restarts in mid-epoch
        self._samples = self._sizes.samples(batch_idx - self._first)

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Discard measured gradients that no optimizer step has used."""
        if self._backwards:
            self._backwards = 0
            self.control.advance()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Record the loss, without Lightning's division by the accumulation and without loss
        scaling.
        """
        factor = trainer.accumulate_grad_batches / self.control.loss_scale
        self.control.loss(loss.detach() * factor)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count one micro-batch."""
        self.control.micro_batch(self._samples, weight=1)
        self._backwards += 1

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Make the decision, after the last backward call and before gradient clipping."""
        if not self._backwards:
            return  # training_step returned None, so there is no gradient to decide about
        self.control.decide(share=self._backwards / trainer.accumulate_grad_batches)
        self._backwards, self._stepped = 0, True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance schedulers and log after each optimizer step. Stop when the budget is used up."""
        if not self._stepped:
            return
        self._stepped = False
        control = self.control
        control.complete()
        control.advance()
        for scheduler in self._schedulers:
            control.advance(scheduler)
        if not trainer.barebones:
            pl_module.log_dict(_shown(control))
        self._stop_at_the_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove all hooks from model and optimizer. The counters of the run stay readable."""
        self.control.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Remove all hooks from the model and the optimizer after an exception in the fit."""
        if self._control is not None:
            self._control.close()

    def _read_loader(self, trainer: Trainer) -> None:
        self._sizes = loader_sizes(trainer, batch_size=self._batch_size)
        self._first = 0 if self._sizes.resumes else None

    def _resume(self, control: Attached, saved: Mapping[str, Any]) -> None:
        counted = control.decider.dataset_size
        if self._dataset_size is None:
            control.decider = with_saved_epoch(control.decider, saved)
        control.load_state_dict(saved)
        if control.meter.leader:
            warn_of_other_epoch(saved=control.decider.dataset_size, counted=counted)

    def _attach(self, trainer: Trainer) -> Attached:
        model = trainer.model
        assert model is not None
        meter = self._meter(model)
        accumulation = trainer.accumulate_grad_batches
        epoch = sum_of_known(meter.ranks.gather(self._sizes.dataset_size))
        control = Attached(
            trainer.optimizers[0],
            self.rule,
            Observer(meter, batch_size=self._sizes.size * accumulation * trainer.world_size),
            base_batch_size=self.base_batch_size,
            dataset_size=self._dataset_size or epoch or None,
            budget=self.budget,
            record=self._record if meter.leader else None,
            patience=self.patience,
            scaler=scaler_of(trainer),
            decides_in_step=False,
        )
        if control.decider.rule.needs & OF_THE_STEP and meter.least_parts > accumulation * (
            trainer.world_size
        ):
            control.close()
            raise ValueError(
                "The rule needs the variance of the gradient, but one backward call per step on "
                "one process gives only one gradient. Accumulate smaller batches: "
                "Trainer(accumulate_grad_batches=2). Or run several processes: "
                'Trainer(strategy="ddp", devices=2). Or use a rough estimate from successive '
                "steps: LargeBatch(..., meter=lambda model: "
                "lb.Meter(model, statistics=[lb.measure.TemporalMoments()]))."
            )
        return control

    def _stop_at_the_end(self, trainer: Trainer) -> None:
        if self.control.finished:
            trainer.should_stop = True


def _shown(control: Attached) -> dict[str, float]:
    return {
        PREFIX + "lr_multiplier": control.lr_multiplier,
        PREFIX + "gain": control.gain,
        PREFIX + "base_steps": control.base_steps,
        PREFIX + "batch_size": float(control.last_batch_size),
        PREFIX + "skipped": float(control.skipped),
    }
