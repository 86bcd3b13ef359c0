"""A warm-up that ends itself: the learning rate rises until the training loss no longer falls.

    rate = low (high / low)^(x / fraction)    for x < fraction, x the part of the budget used
    p    = max over earlier points i of P(f_i < f_now)

with f the Gaussian process behind the losses so far (`gaussian_process`), over the elapsed part of
the warm-up scaled to [0, 1]. After `patience` checks in a row with p > confidence the warm-up ends.
The rate goes back to that at the minimum of the posterior mean, or a part of it, and decays.

Kim, Kim, Kim, Lee, Kim: Automated Learning Rate Scheduler for Large-batch Training (AutoWU), 2021,
arXiv 2107.05855; confidence, patience and length scale are those of the authors' program.
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
"""Checks in a warm-up, and how much the rate grows between two at most."""

FEWEST = 10
"""Checks, below which a budget is too short."""

EARLY_CHECKS, EARLY_LOSSES = 10, 30
"""Before so many of both nothing is decided."""

CERTAIN, SHARE = 3.0, 0.05
"""By how many standard deviations, and by what share of the fall before, the loss has to rise. If
no two points of the whole curve differ by as many, the loss has hardly moved."""

FENCE = 50.0
"""A loss that lies so many times farther above the median than the lower quartile does below it
counts by its logarithm."""

FLOOR = 1e-4
"""Variance that is added to that of a difference, in units of the variance of all losses."""

FAR, IN_A_ROW = 0.5, 2
"""So many losses in a row, each above all before by more than FAR times their range, end the
warm-up at once: past the edge of stability the loss grows from step to step."""

BACKOFF = 0.25
"""The rate that decays, as a part of the one at the minimum of the loss."""

LOST, SAFETY = 3, 0.5
"""So many losses in a row that are not finite end the warm-up, at this part of the rate; not before
EARLY_CHECKS, where a gradient scaler still looks for its scale."""


def warm_up_rate(*, x: float, low: float, high: float, linear: bool = False) -> float:
    """The rate at the fraction x in [0, 1] of the longest warm-up.

    >>> round(warm_up_rate(x=0.5, low=1e-4, high=1.0), 6)
    0.01
    """
    return low + (high - low) * x if linear else low * (high / low) ** x


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUpState:
    """The state of a warm-up.

    Args:
        losses: so far; empty when it has ended.
        checks: that were due.
        votes: checks in a row that saw the loss rise.
        lowest, highest: of the losses that are not far above the others.
        far: losses in a row that are.
        skipped: steps lost to non-finite values before the last one.
        batch_size: of the warm-up; 0 before the first step.
        rate: of the last step of the warm-up, later the one that decays.
        ended: the fraction of the budget used at its end; None before.
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
    """Sets the learning rate without one being given: it rises from `low`, the loss says when that
    is enough, and it decays over the rest of the budget.

    The optimizer's own rate only says how the parameter groups compare. The loss is the mean over
    the global batch, so all ranks decide alike.

    >>> from largebatch.core.measurement import Budget
    >>> rule, seen = AutoWarmUp(), Measurement(step=0, samples=0, base_steps=0, batch_size=64,
    ...     base_batch_size=64, base_lr=0.1, loss=2.3, budget=Budget(steps=1000))
    >>> rule.update(rule.init(), seen, Decision(next_batch_size=64, base_steps=1))[1].reason
    'warm-up 1e-05'

    Args:
        low, high: the first rate, and that at the end of the longest warm-up, of the first
            parameter group. The narrower, the finer is the search.
        fraction: the part of the budget that the warm-up may take, in (0, 1).
        growth: how the rate rises.
        decay: factor on the rate over the rest of the budget.
        cooldown: the decay takes the last part of the budget of this length, in (0, 1], and the
            rate is held until then; 1 decays at once.
        after: rules that go on when the warm-up has ended, with its batch as their base batch, as
            AdaScale() where the batch changes later.
        confidence: that the loss rises, in [0.5, 1).
        patience: checks in a row that see it.
        backoff: the rate that decays, as a part of the one at the minimum, in (0, 1]. None for
            0.25, or 1 where `paper` is given, since the authors' program has none.
        backoff_at_high: the rate that decays if `high` was met while the loss still fell or had
            hardly moved, as a part of the last one, in (0, 1]. None treats that as any other end,
            with `backoff`, as version 0.1 did.
        paper: decides as the authors' program: checks once an epoch, has none of the guards, and
            where nothing ended the warm-up decays from the last rate.

    Raises:
        ValueError: an argument outside its bounds or of another type; at the first step, a budget
            too short for FEWEST checks; at any, an optimizer whose rate is 0.
        LargeBatchError: the batch changes during the warm-up, where the rate is sought for it.

    Reference: arXiv 2107.05855.
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
                "What comes after a warm-up follows the batch, as in AutoWarmUp(after=AdaScale()); "
                "a second AutoWarmUp would look for the rate anew."
            )

    @property
    def rule(self) -> Rule:
        """What is within, for the checks of a chain."""
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
        # any other rule for the learning rate would multiply the one that is searched for
        return self.after.forbids | {"AutoWarmUp", LR_RULES}

    def init(self) -> tuple[WarmUpState, Any]:
        return WarmUpState(), self.after.init()

    def update(
        self, state: tuple[WarmUpState, Any], seen: Measurement, proposed: Decision
    ) -> tuple[tuple[WarmUpState, Any], Decision]:
        if not seen.base_lr > 0.0:
            raise ValueError(
                "AutoWarmUp multiplies the optimizer's learning rates, which keep their ratios, "
                f"and the first is {seen.base_lr}. Any rate above 0 will do: "
                "torch.optim.SGD(model.parameters(), lr=0.1). A scheduler would be undone: leave "
                "it out."
            )
        search, after = state
        why = notice = ""
        if search.ended is None:
            search, why = self._search(search, seen, proposed)
            notice = notice_of_ceiling(why, high=self.high, rate=search.rate)
        if search.ended is None:
            return (search, after), proposed.scaled(search.rate / seen.base_lr, because=why)
        left = min(1.0 - search.ended, self.cooldown)  # of the budget, when the decay begins
        factor = self.decay(1.0 - min((1.0 - seen.progress) / left, 1.0) if left else 1.0)
        why = why or f"rate {search.rate:.4g} x{factor:.4g}"
        decision = proposed.scaled(search.rate * factor / seen.base_lr, because=why)
        after, decision = self._go_on(after, seen, decision, base=search.batch_size)
        return (search, after), decision.noticed(notice)

    def _search(
        self, search: WarmUpState, seen: Measurement, proposed: Decision
    ) -> tuple[WarmUpState, str]:
        """The warm-up with one more loss in it, and why."""
        search = self._checked(search, seen, proposed)
        x = seen.progress / self.fraction
        lost, search = seen.skipped - search.skipped, replace(search, skipped=seen.skipped)
        if lost >= LOST and search.checks >= EARLY_CHECKS and not self.paper:
            why = f"{lost} losses were not finite"
            return self._ended(search, seen, why, curve=self._known(search), safety=SAFETY)
        if x >= 1.0:
            return self._forced(search, seen)
        if seen.loss is not None:
            search = self._heard(search, seen.loss)
        if search.far >= IN_A_ROW:
            why = f"a loss of {seen.loss:.4g} after {search.lowest:.4g} to {search.highest:.4g}"
            return self._ended(search, seen, why, curve=self._known(search))
        search = replace(search, rate=self._rate(x))
        due = self._due(seen, base_steps=proposed.base_steps)
        if due == search.checks or not search.losses.recorded:
            return search, f"warm-up {search.rate:.4g}"
        curve = self._curve(search)
        risen = curve.risen(floor=FLOOR)
        votes = search.votes + 1 if self._rises(search, curve, risen) else 0
        search = replace(search, checks=due, votes=votes)
        why = f"the loss rises with P = {risen:.3f}, {votes} of {self.patience} times"
        if votes < self.patience:
            return search, f"warm-up {search.rate:.4g}: {why}"
        return self._ended(search, seen, why, curve=curve)

    def _forced(self, search: WarmUpState, seen: Measurement) -> tuple[WarmUpState, str]:
        """The search after the longest warm-up, which nothing ended before."""
        curve, part = self._known(search), self.backoff_at_high
        if part is None or curve is None:
            return self._ended(search, seen, "nothing ended it", curve=curve)
        if falls(curve, confidence=self.confidence, floor=FLOOR):
            return self._ended(search, seen, met(self.high), safety=part)
        if is_flat(curve, confidence=self.confidence, certain=CERTAIN, floor=FLOOR):
            return self._ended(search, seen, met_flat(self.high), safety=part)
        return self._ended(search, seen, "nothing ended it", curve=curve)

    def _heard(self, search: WarmUpState, loss: float) -> WarmUpState:
        """The search with one more loss; one that is far above the others is not among them."""
        low, high = search.lowest, search.highest
        started = search.losses.recorded >= EARLY_LOSSES and not self.paper
        if started and loss > high + FAR * (high - low):
            return replace(search, far=search.far + 1)
        losses = search.losses.add(loss)
        return replace(search, losses=losses, far=0, lowest=min(low, loss), highest=max(high, loss))

    def _known(self, search: WarmUpState) -> Posterior | None:
        """The curve whose minimum an end goes back to; None where there is none, and for `paper`,
        which goes back where the loss rose alone."""
        return self._curve(search) if search.losses.recorded and not self.paper else None

    def _curve(self, search: WarmUpState) -> Posterior:
        return search.losses.curve(fence=math.inf if self.paper else FENCE)

    def _rises(self, search: WarmUpState, curve: Posterior, risen: float) -> bool:
        """Whether one check sees the loss rise."""
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
        """The search after the warm-up, which decays from a part of the rate at the least of the
        curve, and of none above the last one; without a curve, from the last one."""
        rate = search.rate or self._rate(0.0)
        if curve is not None:
            x = float(curve.x[curve.lowest]) * seen.progress / self.fraction
            rate = min(rate, self._rate(min(x, 1.0))) * self._backoff
        rate *= safety
        ended = replace(search, losses=Losses(), rate=rate, ended=seen.progress)
        return ended, f"warm-up ended at {search.rate:.4g}, decays from {rate:.4g}: {why}"

    def _rate(self, x: float) -> float:
        return warm_up_rate(x=x, low=self.low, high=self.high, linear=self.growth == "linear")

    def _due(self, seen: Measurement, *, base_steps: float) -> int:
        """Checks that are due once this step is taken."""
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
        """The part of the rate at the minimum that decays."""
        if self.backoff is not None:
            return self.backoff
        return 1.0 if self.paper else BACKOFF

    @property
    def _checks(self) -> int:
        """Checks of the longest warm-up."""
        if self.growth == "linear":
            return CHECKS
        return max(CHECKS, math.ceil(math.log(self.high / self.low) / math.log(GROWTH)))

    def _checked(self, search: WarmUpState, seen: Measurement, proposed: Decision) -> WarmUpState:
        """The search, once it is sure that it can be one."""
        batch_size = proposed.next_batch_size
        if batch_size == search.batch_size:
            return search
        if search.batch_size:
            raise LargeBatchError(
                f"The batch went from {search.batch_size} to {batch_size} samples in AutoWarmUp, "
                "which looks for the rate of one batch. Change it later, once "
                f"{self.fraction:.0%} of the budget is used, with AutoWarmUp(after=AdaScale())."
            )
        assert seen.budget is not None
        one = seen.budget.used(step=1, samples=batch_size, base_steps=proposed.base_steps)
        steps = self.fraction / one
        if steps < EARLY_LOSSES + FEWEST and not self.paper:
            raise ValueError(
                f"AutoWarmUp has {steps:.0f} steps for its warm-up, too few for {FEWEST} checks "
                f"after {EARLY_LOSSES} losses. Train for at least "
                f"{math.ceil((EARLY_LOSSES + FEWEST) / self.fraction)} optimizer steps, or with a "
                "smaller batch."
            )
        return replace(search, batch_size=batch_size)

    def _go_on(
        self, state: Any, seen: Measurement, decision: Decision, *, base: int
    ) -> tuple[Any, Decision]:
        """The rules after the warm-up, whose clock counts steps of its batch."""
        if "clock" not in self.after.changes:
            return self.after.update(state, replace(seen, base_batch_size=base), decision)
        unit = base / seen.base_batch_size
        state, decision = self.after.update(
            state,
            replace(seen, base_batch_size=base),
            replace(decision, base_steps=decision.base_steps / unit),
        )
        return state, replace(decision, base_steps=decision.base_steps * unit)
