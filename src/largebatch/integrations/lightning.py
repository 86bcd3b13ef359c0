"""A rule in Lightning's Trainer: `LargeBatch`, a callback."""

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
        "largebatch.integrations.lightning needs Lightning: pip install 'largebatch[lightning]'"
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
"""Of the names under which the callback logs."""


class LargeBatch(Callback):
    """Lets a rule set the learning rate in a Lightning Trainer with automatic optimization.

        from largebatch.integrations.lightning import LargeBatch

        scaled = LargeBatch(lb.AdaScale(), base_batch_size=64, base_steps=10_000)
        trainer = Trainer(max_epochs=-1, accumulate_grad_batches=8, callbacks=[scaled])
        trainer.fit(module)               # whose optimizer has the rate that suits 64 samples

    The rate is multiplied within the optimizer's step alone: schedulers, monitors and checkpoints
    see the module's own. Gradients are measured before the Trainer clips them. Where an epoch ends
    within an accumulation, Lightning's gradient is too small by the missing batches, since it
    divides each loss by their usual number; here it is made the mean over the batches there are.

    The clocks are saved in the Trainer's checkpoints, and `trainer.fit(module, ckpt_path=...)` goes
    on with them. Logged in each step, by `log_every_n_steps`: `largebatch/lr_multiplier`, `gain`
    (what the step is worth in base steps), `base_steps`, `batch_size` and `skipped`.

    Mutable: holds the run.

    Args:
        rule: a rule or a chain of rules that leaves the batch alone.
        base_batch_size: B0, the batch in samples for which the learning rate was tuned.
        batch_size: samples of one optimizer step, over all processes and accumulated batches, where
            the loader does not show it; None reads it from the loader.
        dataset_size: samples of an epoch over all processes, for rules that need it; None counts
            what the Trainer takes of the loader in an epoch. It stays as it is in the first epoch.
        base_steps: length of the run in steps of the base batch, at which the fit ends.
        budget: the same in any unit: `lb.Budget(samples=5_000_000)`.
        schedulers_in_base_steps: whether schedulers of interval "step" advance in base steps rather
            than optimizer steps; must be said where the module has one.
        meter: makes of the Trainer's model how gradients are measured; None is `lb.Meter`.
        record: where each step is written, by the first rank only.
        patience: non-finite steps in a row after which training ends.

    Raises:
        ValueError: what does not fit together; from the Trainer before its first training step.
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
                "The length of a run is given once: base_steps=10_000, or "
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
        """The run's clocks and last decision, from the fit's first step on.

        Raises:
            LargeBatchError: no fit has begun.
        """
        if self._control is None:
            raise LargeBatchError("There are no clocks before trainer.fit(module) has begun.")
        return self._control

    def state_dict(self) -> dict[str, Any]:
        """What the Trainer's checkpoint keeps; see `Control.state_dict`."""
        return {} if self._control is None else self._control.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Called by the Trainer before the run is built, which then goes on from there."""
        self._saved = dict(state_dict)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a Trainer in which the rule would not see or reach a step."""
        self._saved = None
        if stage == "fit":
            check_trainer(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses optimizers and schedulers that cannot be steered."""
        check_optimizer(trainer)
        self._schedulers = step_schedulers(trainer, pl_module, in_base_steps=self._in_base_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Builds the run on the model and the loader as the Trainer has set them up."""
        if self._saved is None and trainer.global_step > 0:
            raise CheckpointError(
                f"The Trainer goes on after step {trainer.global_step}, but there are no clocks of "
                "LargeBatch for that. Resume from a checkpoint that was saved with it, "
                "trainer.fit(module, ckpt_path=...), or take the weights alone into a new Trainer."
            )
        self._read_loader(trainer)
        self._control = self._attach(trainer)
        if self._saved is not None:
            self._resume(self._control, self._saved)
        self._backwards = 0
        self._stepped = False
        self._stop_at_the_end(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the loader anew, which the Trainer may have replaced."""
        before = self._sizes.dataset_size
        self._read_loader(trainer)
        if self._dataset_size is None and self._sizes.dataset_size != before:
            warnings.warn(
                f"The loader of epoch {trainer.current_epoch} gives {self._sizes.dataset_size} "
                f"samples in an epoch, the one before gave {before}. Rules that count epochs keep "
                f"the number of the first one, {self.control.decider.dataset_size}. To choose "
                "another, pass LargeBatch(..., dataset_size=60_000).",
                stacklevel=2,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Notes which of the loader's batches this is."""
        if self._first is None:
            self._first = batch_idx  # a loader that does not resume begins anew within an epoch
        self._samples = self._sizes.samples(batch_idx - self._first)

    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Forgets gradients that no step has used."""
        if self._backwards:
            self._backwards = 0
            self.control.advance()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Tells the loss, without what Lightning divides and multiplies it with."""
        factor = trainer.accumulate_grad_batches / self.control.loss_scale
        self.control.loss(loss.detach() * factor)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the micro-batch."""
        self.control.micro_batch(self._samples, weight=1)
        self._backwards += 1

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Decides: after the last backward, before clipping."""
        if not self._backwards:
            return  # training_step gave None, so there is no gradient and nothing moves
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
        """After a step: advances schedulers, logs, and ends the fit where the budget is used up."""
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
        """Takes every hook off model and optimizer; the clocks stay."""
        self.control.close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """The same where the fit was broken off."""
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
                "One backward a step on one process gives one gradient, of which no variance can "
                "be known. Accumulate smaller batches, Trainer(accumulate_grad_batches=2), run "
                'several processes, Trainer(strategy="ddp", devices=2), or take the rough temporal '
                "estimate: LargeBatch(..., meter=lambda model: "
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
