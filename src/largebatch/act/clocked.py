"""What a user may ask of a run in hand, whichever way it is driven."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.act.learning_rate import tick
from largebatch.core.codec import encode
from largebatch.core.decider import Decider
from largebatch.core.decision import Decision
from largebatch.core.errors import LargeBatchError, NotFinite
from largebatch.core.measurement import FACTS, STATISTICS, Measurement
from largebatch.core.protocols import Meter
from largebatch.core.rule import require
from largebatch.core.run_state import Resumed, resume, state_of


class Clocked:
    """The clocks of a run and what follows them.

    Mutable: holds the decider before and after the last step.

    Attributes:
        decider: rule, state and clocks before the coming step.
        decision: of the last step; None before the first.
        optimizer: whose steps are counted.

    Raises:
        ValueError: a rule is attached to the optimizer already.
    """

    def __init__(self, decider: Decider, optimizer: Optimizer) -> None:
        _refuse_attached(optimizer)
        self.decider = decider
        self.decision: Decision | None = None
        self.optimizer = optimizer
        self._before = decider
        self._lost_in_a_row = 0
        self._trainable = _trainable(optimizer)
        self._first_tick = decider.base_steps
        self._ticked: WeakKeyDictionary[LRScheduler, float] = WeakKeyDictionary()

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

    def advance(self, scheduler: LRScheduler, *, metric: float | None = None) -> int:
        """Advances a torch scheduler that is written in steps of the base batch: call it after each
        step, where `scheduler.step()` stood; several schedulers each have their call.

        Args:
            scheduler: any torch scheduler.
            metric: for `ReduceLROnPlateau`, after each evaluation.

        Returns:
            How often the scheduler was stepped.

        Raises:
            ValueError: `ReduceLROnPlateau` without a metric.
        """
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

    def load_state_dict(self, plain: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken, in a run built as that one was; call it on every
        rank. The number of ranks may differ.

        Raises:
            CheckpointError: a state of another rule, version, data set, base batch or budget, or
                one that is damaged or cut; the run is left as it was.
            RanksDisagree: the ranks loaded different states.
        """
        from largebatch.rules import KINDS

        self._resume(resume(self.decider, plain, kinds=KINDS))

    def _resume(self, resumed: Resumed) -> None:
        self._before = self.decider = resumed.decider
        self.decision = resumed.decision
        self._lost_in_a_row = resumed.lost_in_a_row
        self._first_tick = resumed.decider.base_steps
        self._ticked.clear()

    def _check_finite(self, seen: Measurement, *, patience: int, left: str) -> None:
        self._lost_in_a_row = 0 if seen.finite else self._lost_in_a_row + 1
        at_once = seen.samples == 0 and seen.loss is not None and not math.isfinite(seen.loss)
        if at_once or self._lost_in_a_row >= patience:
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
                    f"patience={2 * patience}."
                )
            raise NotFinite(
                f"{self._lost_in_a_row} step(s) in a row had a loss or gradient that is not finite "
                f"(loss {seen.loss}); {left}. {cause}"
            )

    def check_optimizer(self) -> None:
        """Checks that the optimizer moves as many parameters as when the run was built.

        Raises:
            LargeBatchError: a parameter group was added, or a parameter frozen or released.
        """
        now = _trainable(self.optimizer)
        if now != self._trainable:
            raise LargeBatchError(
                f"The optimizer moved {self._trainable} trainable parameters when this run was "
                f"built and moves {now} now, so some are not measured. Add parameter groups, "
                "freeze and release parameters first, then build lb.Controller(...) or, after "
                "control.close(), lb.attach(...) anew."
            )


def _trainable(optimizer: Optimizer) -> int:
    return sum([p.requires_grad for group in optimizer.param_groups for p in group["params"]])


def _refuse_attached(optimizer: Optimizer) -> None:
    # The only list of an optimizer's hooks is private; it holds the run that is attached to it.
    for hook in optimizer._optimizer_step_pre_hooks.values():
        if inspect.ismethod(hook) and isinstance(hook.__self__, Clocked):
            raise ValueError(
                "A rule is attached to this optimizer already; two would both multiply its "
                "learning rate. Call control.close() on the first, or build the optimizer anew "
                "where that is out of reach; of two rules make one: "
                "lb.attach(model, optimizer, lb.chain(rule, another), ...)."
            )


def clocks_of(decider: Decider) -> dict[str, Any]:
    """What must be the same on every rank before each step, as plain values."""
    return {
        "step": decider.step,
        "samples": decider.samples,
        "base_steps": decider.base_steps,
        "batch_size": decider.batch_size,
        "measure": sorted(decider.measure),
        "state": repr(decider.state),
    }


def digest_of(facts: Mapping[str, Any]) -> int:
    """A number below 2^32 that differs when one of the facts does.

    The same on every rank and in every process, unlike `hash`.
    """
    return zlib.crc32(repr(facts).encode())


def facts_of(decider: Decider) -> dict[str, Any]:
    """What describes a run, as plain values: for the record's header and the ranks' agreement."""
    return {
        "rule": encode(decider.rule, kind=True),
        "base_batch_size": decider.base_batch_size,
        "batch_size": decider.batch_size,
        "ranks": decider.ranks,
        "dataset_size": decider.dataset_size,
        "budget": encode(decider.budget),
    }


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """What the record's header says of the optimizer, by its first group."""
    group = optimizer.param_groups[0]
    numbers = {name: float(group.get(name) or 0.0) for name in ("momentum", "dampening")}
    return {"name": type(optimizer).__name__, **numbers}


def check_needs(decider: Decider, *, meter: Meter) -> None:
    """Refuses a rule whose statistic the meter lacks.

    Raises:
        ValueError: naming the rule and what it lacks.
    """
    missing = decider.rule.needs - meter.provides
    remedy = "Use meter=lb.Meter(model)."
    if "preconditioned_moments" in missing:
        plain = "lb.methods.adasgd()" if "batch" in decider.rule.changes else "lb.AdaScale()"
        remedy = (
            "They exist for the Adam family, torch.optim.AdamW(model.parameters()), and for "
            "torch.optim.Adagrad(model.parameters()). Any other optimizer has the moments of the "
            f"bare gradient: {plain}."
        )
    elif "inner_product_variance" in missing:
        remedy = (
            "It takes the gradients of single samples: meter=lb.Meter(model, "
            "examples=lb.PerExample()). The norm test takes the moments alone: "
            "lb.NormTest(eta=0.5)."
        )
    elif "coordinate_noise_scale" in missing:
        more = "statistics=[lb.SquaredNorms(), lb.CoordinateNoiseScale()]"
        if "inner_product_variance" in meter.provides:
            more = "examples=lb.PerExample(), statistics=[lb.CoordinateNoiseScale()]"
        remedy = f"Add it: meter=lb.Meter(model, {more})."
    elif "full_sqnorm" in missing:
        remedy = (
            "It takes passes over the data set. Say over which, and with which loss: "
            "meter=lb.Meter(model, full=lb.FullGradient(dataset, lambda model, batch: "
            "loss_fn(model(batch[0]), batch[1]))). From the step's own gradients: "
            "lb.methods.adaptive_growth()."
        )
    require(
        decider.rule,
        meter.provides | FACTS,
        by=f"this meter, with {sorted(meter.provides)},",
        remedy=remedy,
    )


def check_budget(decider: Decider) -> None:
    """Refuses a rule over the run's length when that is not known.

    Raises:
        ValueError: naming the rule.
    """
    if decider.budget is None:
        require(
            decider.rule,
            (STATISTICS | FACTS) - {"budget"},
            by="a run without a length",
            remedy="Say it: lb.attach(..., budget=lb.Budget(base_steps=10_000)).",
        )
