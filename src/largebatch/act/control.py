"""The clocks of a run, which `Controller` and `Attached` share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.act.claim import Claim, refuse_second
from largebatch.act.joint_optimizers import members_of
from largebatch.act.learning_rate import LrActuator, tick
from largebatch.act.moved_parameters import MovedParameters
from largebatch.act.notices import Notices
from largebatch.act.prepared import bare_scheduler
from largebatch.act.scaling import LossScale
from largebatch.act.ticks import Ticks
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.errors import NotFinite
from largebatch.core.measurement import Measurement
from largebatch.core.protocols import Sink
from largebatch.core.run_state import Resumed, resume, state_of
from largebatch.measure.meter import Meter
from largebatch.measure.running_statistics import RunningStatistics


class Control:
    """The clocks of a run and what follows them.

    Mutable: holds the decider before and after the last step.

    Args:
        decider: before the first step.
        optimizer: whose steps are counted and whose learning rate is multiplied.
        meter: measures the gradients.
        scaler: scales the losses in half precision.
        record: where each step is written, on this rank.
        patience: non-finite steps in a row after which training ends.

    Attributes:
        decider: rule, state and clocks before the coming step.
        decision: of the last step; None before the first.
        optimizer: whose steps are counted.
        meter: measures the gradients.
        patience: non-finite steps in a row after which training ends.

    Raises:
        ValueError: a rule is attached to the optimizer already, or it has a parameter group without
            a learning rate.
    """

    exclusive = True
    """Whether no other control may act on the same optimizer."""

    def __init__(
        self,
        decider: Decider,
        optimizer: Optimizer,
        *,
        meter: Meter,
        scaler: GradScaler | None = None,
        record: Sink | None = None,
        patience: int = 10,
    ) -> None:
        for member in members_of(optimizer):
            refuse_second(member, self)
        self.decider = decider
        self.decision: Decision | None = None
        self.optimizer, self.meter = optimizer, meter
        self._lr = LrActuator(optimizer)
        self._scale = LossScale(scaler, optimizer)
        self.patience = patience
        self._record = record
        self._before = decider
        self._lost_in_a_row = 0
        self._moved = MovedParameters(optimizer, meter.parameters)
        self._claims: list[Claim] = []
        self._running_statistics = RunningStatistics(meter.model)
        self._first_tick = decider.base_steps
        self._ticked: WeakKeyDictionary[LRScheduler, float] = WeakKeyDictionary()
        self._ticks = Ticks(start=decider.base_steps)
        self._notices = Notices(decider, leader=meter.leader)

    @property
    def scaler(self) -> GradScaler | None:
        """The scaler of half precision; None without one, or with a disabled one."""
        return self._scale.scaler

    @property
    def base_steps(self) -> float:
        """Steps of the base batch that the run is worth so far."""
        return self.decider.base_steps

    @property
    def samples(self) -> int:
        """Training samples used so far, over all ranks."""
        return self.decider.samples

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps taken so far; those lost to non-finite values are not counted."""
        return self.decider.step

    @property
    def skipped(self) -> int:
        """Steps lost to a non-finite loss or gradient."""
        return self.decider.skipped

    @property
    def lr_multiplier(self) -> float:
        """Factor on the learning rate in the last step; 1 before the first."""
        return 1.0 if self.decision is None else self.decision.lr_multiplier

    @property
    def finished(self) -> bool:
        """Whether the budget is used up; False without a budget."""
        return self.decider.finished

    def __repr__(self) -> str:
        """Return the clocks and the last decision in one line."""
        seen = f"lr x {self.lr_multiplier:.4g}" if self.decision else "no step yet"
        return (
            f"<{type(self).__name__}: {self.optimizer_steps} optimizer steps, {self.samples} "
            f"samples, {self.base_steps:.6g} base steps, {seen}>"
        )

    def every(
        self,
        *,
        samples: float | None = None,
        base_steps: float | None = None,
        steps: float | None = None,
    ) -> bool:
        """Whether the last step passed a multiple of one of these, for evaluation and checkpoints.

        "Every 100 steps" means ever more samples while a batch grows; this does not.

        Args:
            samples, base_steps, steps: exactly one interval, above 0.

        Raises:
            ValueError: not exactly one interval.
        """
        before, after = self._before, self.decider
        spans = (
            (samples, before.samples, after.samples),
            (base_steps, before.base_steps, after.base_steps),
            (steps, before.step, after.step),
        )
        given = [(interval, a, b) for interval, a, b in spans if interval is not None]
        if len(given) != 1 or not given[0][0] > 0:
            raise ValueError("Give one interval above 0, as in control.every(samples=50_000).")
        interval, a, b = given[0]
        return math.floor(b / interval) > math.floor(a / interval)

    def ticks(self, *, every: float) -> list[float]:
        """Return the multiples of `every` base steps that the run passed since the last call with
        the same `every`; the first call starts where the run began or was resumed.

            for tick in control.ticks(every=10):         # was: if iteration % 10 == 0
                print(tick, float(loss))

        Base steps jump by the gain, so `iteration % 10` would miss most multiples of 10. Call it
        before `state_dict`: a resumed run starts from the saved clock.

        Args:
            every: interval in base steps, above 0; a whole number gives whole numbers.

        Raises:
            ValueError: an interval that is not above 0, or not finite.
        """
        return self._ticks.passed(every, now=self.base_steps)

    def advance(self, scheduler: LRScheduler, *, metric: float | None = None) -> int:
        """Advances a torch scheduler that is written in steps of the base batch: call it after each
        step, where `scheduler.step()` stood; several schedulers each have their call.

        Args:
            scheduler: any torch scheduler, also as `accelerate.prepare` returns it.
            metric: for `ReduceLROnPlateau`, after each evaluation.

        Returns:
            How often the scheduler was stepped.

        Raises:
            ValueError: `ReduceLROnPlateau` without a metric.
        """
        scheduler = bare_scheduler(scheduler)
        before = self._ticked.get(scheduler, self._first_tick)
        ticks = tick(scheduler, before=before, after=self.base_steps, metric=metric)
        self._ticked[scheduler] = self.base_steps
        return ticks

    def state_dict(self) -> dict[str, Any]:
        """Rule states, clocks, averages and the wished batch as plain values: numbers, None and
        text under the same keys for every run, so that `torch.load(weights_only=True)` and
        torch.distributed.checkpoint read them. Model, optimizer, schedulers and a scaler have their
        own. Take it between two steps, after `advance`.

        Of `TemporalMoments` the last gradient is not kept: the first step after resuming has no
        temporal estimate.
        """
        return state_of(self.decider, decision=self.decision, lost_in_a_row=self._lost_in_a_row)

    def check_optimizer(self) -> None:
        """Checks that the optimizer moves the same parameters as when the run was built.

        Raises:
            LargeBatchError: a parameter was replaced, frozen or released, or a group added.
        """
        self._moved.check()

    def _claim_optimizer(self) -> None:
        self._release_optimizer()
        self._claims = [Claim(member, self) for member in members_of(self.optimizer)]

    def _release_optimizer(self) -> None:
        for claim in self._claims:
            claim.release()
        self._claims = []

    def _restore_running_statistics(self, seen: Measurement) -> None:
        """Undoes what the forward of a step that is skipped did to the running statistics. A loss
        scale makes gradients infinite after a forward that was right."""
        if seen.finite:
            return
        if self._scale.scaler is None:
            self._running_statistics.restore()
        else:
            self._running_statistics.repair()

    def _read_state(self, plain: Mapping[str, Any], *, decider: Decider) -> Resumed:
        """Check a saved state against a decider of this run and return where it resumes."""
        # every rule: only a run that resumes needs them
        from largebatch.rules.kinds import KINDS_TO_RESUME
        from largebatch.rules.old_states import revive

        return resume(decider, plain, kinds=KINDS_TO_RESUME, revive=revive)

    def _resume(self, resumed: Resumed) -> None:
        self._before = self.decider = resumed.decider
        self.decision = resumed.decision
        self._lost_in_a_row = resumed.lost_in_a_row
        self._first_tick = resumed.decider.base_steps
        self._ticked.clear()
        self._ticks = Ticks(start=resumed.decider.base_steps)
        self._notices.resume(resumed.decider, notice=resumed.notice)

    def _check_finite(self, seen: Measurement) -> None:
        self._lost_in_a_row = 0 if seen.finite else self._lost_in_a_row + 1
        at_once = seen.samples == 0 and seen.loss is not None and not math.isfinite(seen.loss)
        if at_once or self._lost_in_a_row >= self.patience:
            cause = (
                "It is the first step, so look at the data and the loss."
                if at_once
                else "Look at the data, or lower the learning rate: optimizer = "
                "torch.optim.SGD(model.parameters(), lr=0.5 * lr)."
            )
            if seen.loss is not None and math.isfinite(seen.loss):
                cause += (
                    " Only the gradient overflows: with a GradScaler, begin with a lower scale, "
                    "torch.amp.GradScaler(init_scale=1024.0), or give it more steps to find one, "
                    f"patience={2 * self.patience}."
                )
            loss = "the loss was not passed" if seen.loss is None else f"loss {seen.loss}"
            raise NotFinite(
                f"{self._lost_in_a_row} step(s) in a row had a loss or gradient that is not finite "
                f"({loss}); no weight was changed by them. {cause}"
            )

    def _close_record(self) -> None:
        if self._record is not None:
            self._record.close()
            self._record = None
