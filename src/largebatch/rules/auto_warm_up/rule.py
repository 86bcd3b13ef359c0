"""Raise the learning rate in a warm-up that ends when the training loss no longer falls.

    lr = low * (high / low)^(x / fraction)    for x < fraction
    p  = max over earlier points i of P(f_i < f_now)

In these formulas, x is the used fraction of the budget, and f is the Gaussian process behind the
losses so far (`gaussian_process`), over the elapsed part of the warm-up scaled to [0, 1]. The
warm-up ends after `patience` checks in a row with p > confidence. After the warm-up, the learning
rate returns to the learning rate at the minimum of the posterior mean, or to a fraction of the
learning rate at the minimum, and decays.

Kim, Kim, Kim, Lee, Kim: Automated Learning Rate Scheduler for Large-batch Training (AutoWU), 2021,
arXiv 2107.05855. Confidence, patience and length scale have the values of the authors' program.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from largebatch.core.codec import LATER
from largebatch.core.decision import Decision
from largebatch.core.errors import LargeBatchError
from largebatch.core.measurement import Measurement
from largebatch.core.rule import LR_RULES, Rule, chain, names_within
from largebatch.rules.auto_warm_up.arguments import (
    check_part,
    check_range,
    check_words_and_counts,
)
from largebatch.rules.auto_warm_up.ceiling import falls, is_flat, met, met_flat
from largebatch.rules.auto_warm_up.ceiling import notice as notice_of_ceiling
from largebatch.rules.auto_warm_up.gaussian_process import Posterior
from largebatch.rules.auto_warm_up.losses import Losses
from largebatch.rules.factors import Cosine, Factor

CHECKS, GROWTH = 100, 1.15
"""Number of checks in a warm-up, and largest factor on the learning rate between two checks."""

FEWEST = 10
"""Smallest number of checks that the budget must allow."""

EARLY_CHECKS, EARLY_LOSSES = 10, 30
"""Numbers of checks and of losses that are necessary before the warm-up may end."""

CERTAIN, SHARE = 3.0, 0.05
"""Smallest rise of the loss that counts: in standard deviations, and as a fraction of the fall
before the rise. If no two points of the whole curve differ by CERTAIN standard deviations, the loss
has hardly changed."""

FENCE = 50.0
"""Distance above the median, in units of the distance from the lower quartile to the median, beyond
which a loss is compressed by a logarithm."""

FLOOR = 1e-4
"""Variance added to the variance of each difference between two points of the loss curve, in units
of the variance of all losses."""

FAR, IN_A_ROW = 0.5, 2
"""A loss is far above the others if the loss exceeds all earlier losses by more than FAR times the
range of the earlier losses. IN_A_ROW losses in a row that are far above the others end the warm-up
at once, because the loss grows in every step if the learning rate is too large for stable
training."""

NO_RISE = "no rise of the loss was detected"
"""Reason for the end of a warm-up that used all of its budget."""

BACKOFF = 0.25
"""Learning rate at which the decay starts, as a fraction of the learning rate at the minimum of the
loss."""

LOST, SAFETY = 3, 0.5
"""LOST losses in a row that are not finite end the warm-up, and the learning rate is multiplied by
SAFETY. Before EARLY_CHECKS checks, losses that are not finite do not end the warm-up, because a
gradient scaler may still be looking for its scale."""


def warm_up_rate(*, x: float, low: float, high: float, linear: bool = False) -> float:
    """Return the learning rate at the fraction x in [0, 1] of the longest warm-up.

    >>> round(warm_up_rate(x=0.5, low=1e-4, high=1.0), 6)
    0.01
    """
    return low + (high - low) * x if linear else low * (high / low) ** x


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpState:
    """Hold the state of a warm-up.

    Args:
        losses: Losses so far; empty after the warm-up has ended.
        checks: Number of checks so far.
        votes: Number of checks in a row that detected a rise of the loss.
        lowest: Smallest loss so far, without the losses far above the others.
        highest: Largest loss so far, without the losses far above the others.
        far: Number of losses in a row that are far above the others.
        skipped: Number of steps that were skipped because of non-finite values before the last
            step.
        batch_size: Batch size of the warm-up in samples; 0 before the first step.
        rate: Learning rate of the last step of the warm-up; after the end of the warm-up, the
            learning rate at which the decay starts.
        ended: Used fraction of the budget when the warm-up ended; None during the warm-up.
    """

    losses: Losses = field(default_factory=Losses)
    checks: int = 0
    votes: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    far: int = 0
    skipped: int = 0
    batch_size: int = 0
    rate: float = 0.0
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoWarmUp:
    """Find the learning rate during training: raise it from `low` until the loss rises, then let it
    decay.

    The optimizer's own learning rates only determine the ratios between its parameter groups. The
    loss is the mean over the batch of all ranks, so all ranks make the same decision.

    >>> from largebatch.core.measurement import Budget
    >>> rule, seen = AutoWarmUp(), Measurement(step=0, samples=0, base_steps=0, batch_size=64,
    ...     base_batch_size=64, base_lr=0.1, loss=2.3, budget=Budget(steps=1000))
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=64, base_steps=1))[1].reason
    'warm-up: lr 1e-05'

    Args:
        low: Learning rate of the first parameter group in the first step.
        high: Learning rate of the first parameter group at the end of the longest warm-up. A
            smaller ratio of `high` to `low` makes the search finer.
        fraction: Fraction of the budget that the warm-up may take, in (0, 1).
        growth: "exponential" or "linear" rise of the learning rate.
        decay: Factor on the learning rate over the rest of the budget.
        cooldown: Fraction of the budget that the decay takes at the end of the run, in (0, 1]. The
            learning rate stays constant between warm-up and decay. With cooldown=1, the decay
            starts as soon as the warm-up has ended.
        after: Rules that start when the warm-up has ended; the base batch of these rules is the
            batch of the warm-up. For example, use AdaScale() if the batch size changes later.
        confidence: Probability of a rise of the loss above which a check detects it, in [0.5, 1).
        patience: Number of checks in a row that must detect a rise of the loss before the warm-up
            ends.
        backoff: Learning rate at which the decay starts, as a fraction of the learning rate at the
            minimum of the loss, in (0, 1]. None stands for 0.25, or for 1 if `paper` is True, as in
            the authors' program.
        paper: Whether to decide as the authors' program does: one check per epoch, without our
            additional safeguards. If `paper` is True and no rise is detected, the decay starts from
            the last learning rate.
        backoff_at_high: Learning rate at which the decay starts, as a fraction of the last learning
            rate, in (0, 1], if `high` was reached while the loss still fell or had hardly changed.
            If `backoff_at_high` is None, a warm-up that reached `high` also uses `backoff`, as in
            version 0.1.

    Raises:
        ValueError: If an argument has the wrong type or is out of its range. The first step raises
            ValueError if the budget is too short for FEWEST checks, and any step raises ValueError
            if the optimizer's learning rate is 0.
        LargeBatchError: If the batch size changes during the warm-up, because the warm-up finds the
            learning rate of one batch size.

    Reference: Kim, Kim, Kim, Lee, Kim, AutoWU, 2021, arXiv 2107.05855.
    """

    low: float = 1e-5
    high: float = 1.0
    fraction: float = 0.5
    growth: Literal["exponential", "linear"] = "exponential"
    decay: Factor = field(default_factory=Cosine)
    cooldown: float = 1.0
    after: Rule = field(default_factory=chain)
    confidence: float = 0.95
    patience: int = 4
    backoff: float | None = None
    paper: bool = False
    backoff_at_high: float | None = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        check_range(low=self.low, high=self.high)
        check_words_and_counts(growth=self.growth, patience=self.patience, decay=self.decay)
        check_part("fraction", self.fraction, usual=0.5, one=False)
        check_part("cooldown", self.cooldown, usual=1.0)
        check_part("confidence", self.confidence, usual=0.95, least=0.5, one=False)
        if self.backoff is not None:
            check_part("backoff", self.backoff, usual=BACKOFF)
        if self.backoff_at_high is not None:
            check_part("backoff_at_high", self.backoff_at_high, usual=1.0)
        if "AutoWarmUp" in names_within(chain(self.after)):
            raise ValueError(
                "AutoWarmUp was passed as `after` of another AutoWarmUp, but the inner "
                "AutoWarmUp would search for the learning rate again. Pass a rule that follows the "
                "batch size: AutoWarmUp(after=AdaScale())"
            )

    references = ("kim2021automated",)

    @property
    def rule(self) -> Rule:
        """The rules in `after`, which a chain checks together with this rule."""
        return self.after

    @property
    def needs(self) -> frozenset[str]:
        size = {"dataset_size"} if self.paper else set()
        return self.after.needs | {"loss", "budget"} | size

    @property
    def changes(self) -> frozenset[str]:
        return self.after.changes | {"lr"}

    @property
    def bounds(self) -> frozenset[str]:
        return self.after.bounds

    @property
    def forbids(self) -> frozenset[str]:
        # Any other rule for the learning rate would multiply the one that is searched for.
        return self.after.forbids | {"AutoWarmUp", LR_RULES}

    def init(self) -> tuple[WarmUpState, Any]:
        return WarmUpState(), self.after.init()

    def update(
        self, state: tuple[WarmUpState, Any], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[WarmUpState, Any], Decision]:
        if not seen.base_lr > 0.0:
            raise ValueError(
                f"The optimizer's first learning rate is {seen.base_lr}, but AutoWarmUp multiplies "
                "it and needs a value above 0. Pass any value above 0, and use no scheduler: "
                "torch.optim.SGD(model.parameters(), lr=0.1)"
            )
        search, after = state
        why = notice = ""
        if search.ended is None:
            search, why = self._search(search, seen, proposed)
            notice = notice_of_ceiling(why, high=self.high, rate=search.rate)
        if search.ended is None:
            return (search, after), proposed.scaled(search.rate / seen.base_lr, because=why)
        left = min(1.0 - search.ended, self.cooldown)  # fraction of the budget for the decay
        factor = self.decay(1.0 - min((1.0 - seen.progress) / left, 1.0) if left else 1.0)
        why = why or f"decay: lr {search.rate:.4g} x{factor:.4g}"
        decision = proposed.scaled(search.rate * factor / seen.base_lr, because=why)
        after, decision = self._continue(after, seen, decision, base=search.batch_size)
        return (search, after), decision.noticed(notice)

    def _search(
        self, search: WarmUpState, seen: Measurement, proposed: Decision
    ) -> tuple[WarmUpState, str]:
        """Return the warm-up after one more loss, and the reason for its learning rate."""
        search = self._checked(search, seen, proposed)
        x = seen.progress / self.fraction
        lost, search = seen.skipped - search.skipped, replace(search, skipped=seen.skipped)
        if lost >= LOST and search.checks >= EARLY_CHECKS and not self.paper:
            why = f"{lost} losses in a row were not finite"
            return self._ended(search, seen, why, curve=self._known(search), safety=SAFETY)
        if x >= 1.0:
            return self._forced(search, seen)
        if seen.loss is not None:
            search = self._with_loss(search, seen.loss)
        if search.far >= IN_A_ROW:
            before = f"{search.lowest:.4g} to {search.highest:.4g}"
            why = f"the loss {seen.loss:.4g} is far above the losses before it, {before}"
            return self._ended(search, seen, why, curve=self._known(search))
        search = replace(search, rate=self._rate(x))
        due = self._due(seen, base_steps=proposed.base_steps)
        if due == search.checks or not search.losses.recorded:
            return search, f"warm-up: lr {search.rate:.4g}"
        curve = self._curve(search)
        risen = curve.risen(floor=FLOOR)
        votes = search.votes + 1 if self._rises(search, curve, risen) else 0
        search = replace(search, checks=due, votes=votes)
        why = (
            f"the loss rises with probability {risen:.3f}, "
            f"detected in {votes} of {self.patience} checks in a row"
        )
        if votes < self.patience:
            return search, f"warm-up: lr {search.rate:.4g}, {why}"
        return self._ended(search, seen, why, curve=curve)

    def _forced(self, search: WarmUpState, seen: Measurement) -> tuple[WarmUpState, str]:
        """Return the search after the longest warm-up, without a detected rise of the loss."""
        curve, part = self._known(search), self.backoff_at_high
        if part is None or curve is None:
            return self._ended(search, seen, NO_RISE, curve=curve)
        if falls(curve, confidence=self.confidence, floor=FLOOR):
            return self._ended(search, seen, met(self.high), safety=part)
        if is_flat(curve, confidence=self.confidence, certain=CERTAIN, floor=FLOOR):
            return self._ended(search, seen, met_flat(self.high), safety=part)
        return self._ended(search, seen, NO_RISE, curve=curve)

    def _with_loss(self, search: WarmUpState, loss: float) -> WarmUpState:
        """Return the search with one more loss, which is left out if it is far above the others."""
        low, high = search.lowest, search.highest
        started = search.losses.recorded >= EARLY_LOSSES and not self.paper
        if started and loss > high + FAR * (high - low):
            return replace(search, far=search.far + 1)
        losses = search.losses.add(loss)
        return replace(search, losses=losses, far=0, lowest=min(low, loss), highest=max(high, loss))

    def _known(self, search: WarmUpState) -> Posterior | None:
        """Return the curve whose minimum gives the learning rate, or None without recorded losses
        or if `paper` is True.

        The authors' program returns to the minimum only after a detected rise of the loss.
        """
        return self._curve(search) if search.losses.recorded and not self.paper else None

    def _curve(self, search: WarmUpState) -> Posterior:
        return search.losses.curve(fence=math.inf if self.paper else FENCE)

    def _rises(self, search: WarmUpState, curve: Posterior, risen: float) -> bool:
        """Return whether one check detects a rise of the loss."""
        if self.paper:
            return risen > self.confidence
        if search.checks < EARLY_CHECKS or search.losses.recorded < EARLY_LOSSES:
            return False
        lowest = curve.lowest
        rise, deviation = curve.rise(lowest)
        fall = float(curve.mean[: lowest + 1].max() - curve.mean[lowest])
        enough = rise > CERTAIN * deviation and rise > SHARE * fall
        return risen > self.confidence and enough

    def _ended(
        self,
        search: WarmUpState,
        seen: Measurement,
        why: str,
        *,
        curve: Posterior | None = None,
        safety: float = 1.0,
    ) -> tuple[WarmUpState, str]:
        """Return the search after the end of the warm-up.

        The decay starts at a fraction of the learning rate at the minimum of the curve, but not
        above the last learning rate. Without a curve, the decay starts at the last learning rate.
        """
        rate = search.rate or self._rate(0.0)
        if curve is not None:
            x = float(curve.x[curve.lowest]) * seen.progress / self.fraction
            rate = min(rate, self._rate(min(x, 1.0))) * self._backoff
        rate *= safety
        ended = replace(search, losses=Losses(), rate=rate, ended=seen.progress)
        why = f"warm-up ended at lr {search.rate:.4g}, decay starts at lr {rate:.4g}: {why}"
        return ended, why

    def _rate(self, x: float) -> float:
        return warm_up_rate(x=x, low=self.low, high=self.high, linear=self.growth == "linear")

    def _due(self, seen: Measurement, *, base_steps: float) -> int:
        """Return the number of checks that are due after the current step."""
        if self.paper:
            assert seen.dataset_size is not None
            return (seen.samples + seen.batch_size) // seen.dataset_size
        assert seen.budget is not None
        used = seen.budget.used(
            step=seen.step + 1,
            samples=seen.samples + seen.batch_size,
            base_steps=seen.base_steps + base_steps,
        )
        return int(used / self.fraction * self._checks + 1e-9)

    @property
    def _backoff(self) -> float:
        """Learning rate at which the decay starts, as a fraction of the learning rate at the
        minimum of the loss."""
        if self.backoff is not None:
            return self.backoff
        return 1.0 if self.paper else BACKOFF

    @property
    def _checks(self) -> int:
        """Number of checks in the longest warm-up."""
        if self.growth == "linear":
            return CHECKS
        return max(CHECKS, math.ceil(math.log(self.high / self.low) / math.log(GROWTH)))

    def _checked(self, search: WarmUpState, seen: Measurement, proposed: Decision) -> WarmUpState:
        """Return the state of the search, after checking batch size and budget."""
        batch_size = proposed.next_batch_size
        if batch_size == search.batch_size:
            return search
        if search.batch_size:
            raise LargeBatchError(
                f"The batch size changed from {search.batch_size} to {batch_size} samples during "
                "the warm-up of AutoWarmUp, which finds the learning rate of one batch size. "
                f"Change the batch size only after {self.fraction:.0%} of the budget is used, and "
                "pass a rule that follows the batch size: AutoWarmUp(after=AdaScale())"
            )
        assert seen.budget is not None
        one = seen.budget.used(step=1, samples=batch_size, base_steps=proposed.base_steps)
        steps = self.fraction / one
        if steps < EARLY_LOSSES + FEWEST and not self.paper:
            raise ValueError(
                f"The budget gives AutoWarmUp {steps:.0f} steps for its warm-up, but it needs at "
                f"least {EARLY_LOSSES + FEWEST}: {EARLY_LOSSES} losses and then {FEWEST} checks. "
                "Train for at least "
                f"{math.ceil((EARLY_LOSSES + FEWEST) / self.fraction)} optimizer steps, or use a "
                "smaller batch."
            )
        return replace(search, batch_size=batch_size)

    def _continue(
        self, state: Any, seen: Measurement, decision: Decision, *, base: int
    ) -> tuple[Any, Decision]:
        """Apply the rules in `after`, for which one base step is a step of the warm-up's batch."""
        if "clock" not in self.after.changes:
            return self.after.update(state, replace(seen, base_batch_size=base), decision)
        unit = base / seen.base_batch_size
        state, decision = self.after.update(
            state,
            replace(seen, base_batch_size=base),
            replace(decision, base_steps=decision.base_steps / unit),
        )
        return state, replace(decision, base_steps=decision.base_steps * unit)
