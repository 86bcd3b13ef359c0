"""Count the samples, steps and base steps of a run; `Controller` and `Attached` share this code."""

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
    """Count the samples, steps and base steps of a run, and update everything that depends on these
    counters.

    This class is mutable: it holds the decider before and after the last optimizer step.

    Args:
        decider: Decider before the first step.
        optimizer: Optimizer whose steps are counted and whose learning rate is multiplied.
        meter: Meter that measures the gradients.
        scaler: GradScaler that scales the losses for half precision.
        record: Object that writes one entry per optimizer step on this rank.
        patience: Number of non-finite steps in a row after which training stops.

    Attributes:
        decider: Rule, state of the rule, and counters of samples and steps before the next step.
        decision: Decision of the last step; None before the first step.
        optimizer: Optimizer whose steps are counted.
        meter: Meter that measures the gradients.
        patience: Number of non-finite steps in a row after which training stops.

    Raises:
        ValueError: A rule is already attached to the optimizer, or one of the optimizer's parameter
            groups has no learning rate.
    """

    exclusive = True
    """Whether this control excludes any other control of the same optimizer."""

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
        """GradScaler for half precision; None if there is none or it is disabled."""
        return self._scale.scaler

    @property
    def base_steps(self) -> float:
        """Number of base steps that the run has taken so far (steps of the base batch size)."""
        return self.decider.base_steps

    @property
    def samples(self) -> int:
        """Number of training samples used so far, over all ranks."""
        return self.decider.samples

    @property
    def optimizer_steps(self) -> int:
        """Number of optimizer steps taken so far, without the steps that were skipped as
        non-finite.
        """
        return self.decider.step

    @property
    def skipped(self) -> int:
        """Number of steps that were skipped because the loss or the gradient was not finite."""
        return self.decider.skipped

    @property
    def lr_multiplier(self) -> float:
        """Factor that multiplied the learning rate in the last step; 1 before the first step."""
        return 1.0 if self.decision is None else self.decision.lr_multiplier

    @property
    def finished(self) -> bool:
        """Whether the budget is used up; always False without a budget."""
        return self.decider.finished

    def __repr__(self) -> str:
        """Return the numbers of steps, samples and base steps, and the last learning-rate factor,
        in one line.
        """
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
        """Return whether the last step reached or passed a multiple of the given interval.

        Use `every` to schedule evaluations and checkpoints. If the batch grows, an interval of 100
        optimizer steps covers more and more samples; an interval in samples or base steps does not
        depend on the batch size.

        Args:
            samples: Interval in training samples over all ranks, above 0.
            base_steps: Interval in base steps, above 0.
            steps: Interval in optimizer steps, above 0.

        Raises:
            ValueError: Not exactly one interval was given, or the interval is not above 0.
        """
        before, after = self._before, self.decider
        spans = (
            (samples, before.samples, after.samples),
            (base_steps, before.base_steps, after.base_steps),
            (steps, before.step, after.step),
        )
        given = [(interval, a, b) for interval, a, b in spans if interval is not None]
        if len(given) != 1 or not given[0][0] > 0:
            raise ValueError(
                "control.every takes exactly one interval above 0; got "
                f"samples={samples}, base_steps={base_steps}, steps={steps}. For "
                "example: control.every(samples=50_000)."
            )
        interval, a, b = given[0]
        return math.floor(b / interval) > math.floor(a / interval)

    def ticks(self, *, every: float) -> list[float]:
        """Return the multiples of `every` base steps that the run has passed since the last call.

            for tick in control.ticks(every=10):         # was: if iteration % 10 == 0
                print(tick, float(loss))

        Calls with different values of `every` are counted separately. The first call counts from
        the start of the run, or from where the run was resumed. Base steps advance by the gain, so
        a test such as `iteration % 10 == 0` would miss most multiples of 10. Call `ticks` before
        `state_dict`, because a resumed run counts from the saved `base_steps`.

        Args:
            every: Interval in base steps, above 0. If `every` is a whole number, the multiples are
                whole numbers.

        Raises:
            ValueError: The interval is not above 0, or it is not finite.
        """
        return self._ticks.passed(every, now=self.base_steps)

    def advance(self, scheduler: LRScheduler, *, metric: float | None = None) -> int:
        """Advance a torch scheduler that is written in base steps.

        Call `advance` after each optimizer step, in place of `scheduler.step()`. If there are
        several schedulers, call `advance` once for each scheduler.

        Args:
            scheduler: Any torch scheduler, also as `accelerate.prepare` returns it.
            metric: Value that `ReduceLROnPlateau` watches; pass this value after each evaluation.

        Returns:
            Number of times the scheduler was stepped.

        Raises:
            ValueError: The scheduler is a `ReduceLROnPlateau` and no metric was given, or another
                scheduler was given a metric.
        """
        scheduler = bare_scheduler(scheduler)
        before = self._ticked.get(scheduler, self._first_tick)
        ticks = tick(scheduler, before=before, after=self.base_steps, metric=metric)
        self._ticked[scheduler] = self.base_steps
        return ticks

    def state_dict(self) -> dict[str, Any]:
        """Return rule states, counters of samples and steps, averages and the next batch size as
        plain values.

        The values are numbers, None and text, under the same keys for every run.
        `torch.load(weights_only=True)` and torch.distributed.checkpoint can therefore read the
        state. Save the states of model, optimizer, schedulers and scaler separately. Call
        `state_dict` between two steps, after `advance`.

        The state does not hold the last gradient of `TemporalMoments`, so the first step after
        resuming has no temporal estimate.
        """
        return state_of(self.decider, decision=self.decision, lost_in_a_row=self._lost_in_a_row)

    def check_optimizer(self) -> None:
        """Check that the optimizer moves the same parameters as when the run was built.

        Raises:
            LargeBatchError: A parameter was replaced, frozen or unfrozen, or a parameter group was
                added.
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
        """Undo the changes that the forward pass of a skipped step made to the running statistics.

        With a GradScaler, the running statistics are restored only if one of them is not finite,
        because a loss scale can make gradients infinite after a correct forward pass.
        """
        if seen.finite:
            return
        if self._scale.scaler is None:
            self._running_statistics.restore()
        else:
            self._running_statistics.repair()

    def _read_state(self, plain: Mapping[str, Any], *, decider: Decider) -> Resumed:
        """Check a saved state against a decider of this run, and return the point at which the run
        resumes.
        """
        # These modules import every rule, and only a run that resumes needs them.
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
                "This is the first step, so check the data and the loss function for NaN."
                if at_once
                else "Check the data, or lower the learning rate: optimizer = "
                "torch.optim.SGD(model.parameters(), lr=0.5 * lr)."
            )
            if seen.loss is not None and math.isfinite(seen.loss):
                cause += (
                    " The loss is finite, so only the gradient overflows. With a GradScaler, start "
                    "with a lower loss scale, torch.amp.GradScaler(init_scale=1024.0), or allow "
                    f"more steps to find a suitable scale, patience={2 * self.patience}."
                )
            loss = "the loss was not passed" if seen.loss is None else f"loss {seen.loss}"
            raise NotFinite(
                f"{self._lost_in_a_row} step(s) in a row had a loss or gradient that is not finite "
                f"({loss}). These steps changed no weight. {cause}"
            )

    def _close_record(self) -> None:
        if self._record is not None:
            self._record.close()
            self._record = None
