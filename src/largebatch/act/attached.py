"""A run that the user drives: the learning rate is set inside the user's own `optimizer.step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.act.clocked import (
    Clocked,
    check_budget,
    check_needs,
    clocks_of,
    digest_of,
    facts_of,
    optimizer_facts,
)
from largebatch.act.learning_rate import LrActuator
from largebatch.act.scaling import LossScale, drop_gradients
from largebatch.core.decider import Decider
from largebatch.core.errors import CheckpointError, LargeBatchError, NotFinite, RanksDisagree
from largebatch.core.measurement import Budget, Measurement, Reading
from largebatch.core.protocols import Meter, Sink
from largebatch.core.rule import Chain, Rule, name_of
from largebatch.core.run_state import Resumed


class Observer(Protocol):
    """What is asked of a meter that watches a loop it does not drive.

    Attributes:
        meter: the meter behind it.
        batch_size: samples of a whole step over all ranks.
        micro_batches: backward calls of a step on each rank; None where not known yet.
    """

    @property
    def micro_batches(self) -> int | None: ...
    @property
    def meter(self) -> Meter: ...
    @property
    def batch_size(self) -> int: ...

    def bind(self, optimizer: Optimizer) -> None:
        """Told once whose parameters to measure."""
        ...

    def open(self, wanted: frozenset[str]) -> None:
        """A step begins in which these statistics are wanted."""
        ...

    def size(self, samples: int) -> None:
        """The samples of one micro-batch."""
        ...

    def loss(self, loss: Tensor) -> None:
        """The mean loss of one micro-batch."""
        ...

    def close(self, *, digest: int = 0, loss_scale: float = 1.0) -> Reading:
        """Combines the parts over the ranks."""
        ...

    def detach(self) -> None:
        """Takes every hook off the model."""
        ...


class Attached(Clocked):
    """Sets the learning rate inside the user's own `optimizer.step`; `lb.attach` builds it.

    In the step's pre-hook: read, decide, multiply the learning rate; in its post-hook: restore it.
    A step whose loss or gradient is not finite changes no weight: its gradients are taken away,
    and torch's optimizers pass over a parameter without one. No rule sees it, no clock but the
    samples advances, and it is counted in `skipped`; `patience` of them in a row end the run. A
    step that the scaler left out is counted in `advance`.

    Mutable: holds the step in hand.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rule: Rule,
        observer: Observer,
        *,
        base_batch_size: int,
        dataset_size: int | None = None,
        budget: Budget | None = None,
        record: Sink | None = None,
        patience: int = 10,
        scaler: GradScaler | None = None,
    ) -> None:
        if patience < 1:
            raise ValueError(f"patience is a number of steps, at least 1; got {patience!r}.")
        self.patience = patience
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
        super().__init__(decider, optimizer)
        _refuse_batch(decider)
        check_needs(decider, meter=meter)
        check_budget(decider)
        self.observer = observer
        self._lr = LrActuator(optimizer)
        self._scale = LossScale(scaler, optimizer)
        self._scale.open()
        meter.agree({**facts_of(decider), "learning rate": self._lr.base_lr})
        self._record = record
        if self._record is not None:
            self._record.start({**facts_of(decider), "optimizer": optimizer_facts(optimizer)})
        self._seen: Measurement | None = None
        self._at_last_advance = decider
        self._open()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def micro_batch(self, samples: int) -> None:
        """Tells the samples of one micro-batch, once for each backward, where they are unequal.

        Its loss is still taken as entering the step's gradient with the same share as the others.

        Args:
            samples: in this rank's micro-batch, at least 1.
        """
        if samples < 1:
            raise ValueError(f"A micro-batch has at least one sample; got {samples!r}.")
        self.observer.size(samples)

    def loss(self, loss: Tensor) -> None:
        """Tells the mean loss of one micro-batch, for the record and for rules that need it."""
        self.observer.loss(loss)

    def advance(self, scheduler: LRScheduler | None = None, *, metric: float | None = None) -> int:
        """As `Clocked.advance`, at the end of each pass through the loop. Where the pass did not
        come to its optimizer.step(), or did not complete it, the next step starts afresh; for that
        alone it needs no scheduler. With a scaler, call it after scaler.update(): a step that the
        scaler left out is counted as skipped."""
        self._lr.restore()
        if metric is None and self._hooks:
            if self.decider is self._at_last_advance:
                if self._scale.lowered:
                    self._lose_step()
                self._open()
            self._scale.open()
            self._at_last_advance = self.decider
        return 0 if scheduler is None else super().advance(scheduler, metric=metric)

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """As `Clocked.load_state_dict`; the batch is that of this run, whose loop makes it."""
        if isinstance(plain, Mapping) and "batches" in plain:
            raise CheckpointError(
                "The state has a place in the data ('batches'): it is that of lb.Controller. Build "
                "one, or start a new run from the model's weights."
            )
        super().load_state_dict(plain)

    def close(self) -> None:
        """Takes every hook off model and optimizer, restores the learning rate and closes the
        record; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._lr.restore()
        self.observer.detach()
        if self._record is not None:
            self._record.close()
            self._record = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(callable(value) for value in (*args[1:], *kwargs.values())):
            raise LargeBatchError(
                "optimizer.step(closure) runs its backward inside the step, too late to be "
                "measured. Run the closure yourself: closure(); optimizer.step()."
            )
        seen = self._decide()
        if not seen.finite:
            drop_gradients(optimizer)
        self._check_going_on(seen)
        self._lr.apply(self.lr_multiplier)

    def _decide(self, *, share: float = 1.0) -> Measurement:
        """Reads and decides about a gradient that is `share` times the mean over the batch."""
        self.check_optimizer()
        self._lr.restore()
        digest = digest_of(self._alike()) if self.decider.ranks > 1 else 0
        try:
            reading = self.observer.close(digest=digest, loss_scale=self._scale.open() * share)
        except RanksDisagree:
            self.observer.meter.agree(self._alike())
            raise
        if reading.loss is None and "loss" in self.decider.rule.needs:
            raise LargeBatchError(
                f"{_named(self.decider.rule, lambda rule: 'loss' in rule.needs)} needs the loss, "
                "and none was told in this step. Before each loss.backward(): control.loss(loss)."
            )
        self._seen = self.decider.see(reading, base_lr=self._lr.base_lr)
        self._before = self.decider
        self.decider, self.decision = self.decider.decide(self._seen)
        return self._seen

    def _alike(self) -> dict[str, Any]:
        return {**clocks_of(self.decider), "learning rate": self._lr.base_lr}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._lr.restore()
        self._write()
        self._open()

    def _lose_step(self) -> None:
        lost = Reading(samples=self.observer.batch_size, finite=False)
        self._seen = self.decider.see(lost, base_lr=self._lr.base_lr)
        self._before = self.decider
        self.decider, self.decision = self.decider.decide(self._seen)
        self._check_going_on(self._seen)
        self._write()

    def _check_going_on(self, seen: Measurement) -> None:
        try:
            self._check_finite(seen, patience=self.patience, left="no weight was changed by them")
        except NotFinite:
            self._write()  # no post-hook comes
            raise

    def _write(self) -> None:
        if self._record is not None and self._seen is not None and self.decision is not None:
            self._record.write(self._seen, self.decision)

    def _open(self) -> None:
        self.observer.open(self.decider.measure)

    def _resume(self, resumed: Resumed) -> None:
        decider = replace(resumed.decider, batch_size=self.observer.batch_size)
        super()._resume(replace(resumed, decider=decider))
        self._at_last_advance = self.decider
        self._seen = None
        self._open()
        self.observer.meter.agree(clocks_of(self.decider))


def _named(rules: Chain, chosen: Callable[[Rule], bool]) -> str:
    return ", ".join(name_of(rule) for rule in rules.rules if chosen(rule))


def _refuse_batch(decider: Decider) -> None:
    names = _named(decider.rule, lambda rule: "batch" in rule.changes | rule.bounds)
    if names:
        raise ValueError(
            f"{names} changes or bounds the batch, but under lb.attach your own loader makes it. "
            "Hand loading over: lb.Controller(model, optimizer, rule, "
            "lb.BatchLoader(dataset, batch_size=64), base_batch_size=64)."
        )
