"""What was seen in one optimizer step: plain numbers, the same bits on every rank.

Symbols of the papers: B is `batch_size` (samples of one step over all ranks), B0 is
`base_batch_size`, S = B / B0 is `scale`, tr Sigma is `variance` (of one sample's gradient),
|g_B|^2 is `batch_sqnorm`, |G|^2 (of the true gradient) is estimated by `sqnorm`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from largebatch.core.codec import LATER

Source = Literal["micro-batches", "ranks", "micro-batches x ranks", "examples", "temporal"]
Unit = Literal["base_steps", "samples", "steps"]

OF_THE_STEP = frozenset(
    {"moments", "preconditioned_moments", "inner_product_variance", "coordinate_noise_scale"}
)
"""What a meter may be asked for of the step's own gradients."""

STATISTICS = OF_THE_STEP | {"full_sqnorm"}
"""What it may be asked for; measuring one costs time, so each step asks by name. The full gradient
takes a pass over the data set, so the first step, in which no rule has asked, is without it."""

FACTS = frozenset({"loss", "budget", "dataset_size"})
"""What a rule may need that costs nothing to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientMoments:
    """First and second moment of the gradient, from the parts of one step.

    The `variance` is that of ONE sample (tr Sigma), so nothing here depends on the batch size
    that measured it. `sqnorm` is unbiased and may therefore be negative.

    >>> m = GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=8.0)
    >>> m.sqnorm, m.noise_scale
    (2.0, 4.0)

    Args:
        batch_size: samples B behind `batch_sqnorm` (for unequal weights, the equal-weight
            batch of the same variance).
        parts: number of independent small gradients.
        batch_sqnorm: |g_B|^2, the squared norm of the batch gradient (biased upwards).
        variance: trace of the covariance of one sample's gradient, unbiased.
        source: where the parts came from.

    Reference: Johnson et al., AdaScale SGD, 2020, arXiv 2007.05105; McCandlish et al.,
    An Empirical Model of Large-Batch Training, 2018, arXiv 1812.06162, appendix A.1.
    """

    batch_size: float
    parts: int
    batch_sqnorm: float
    variance: float
    source: Source = "micro-batches"

    @property
    def sqnorm(self) -> float:
        """|G|^2 of the true gradient: |g_B|^2 - variance / B; unbiased, may be negative."""
        return self.batch_sqnorm - self.variance / self.batch_size

    @property
    def noise_scale(self) -> float:
        """variance / |G|^2 in samples; `inf` where the gradient is lost in the noise."""
        return noise_scale(variance=self.variance, sqnorm=self.sqnorm)

    def __add__(self, other: GradientMoments) -> GradientMoments:
        """The moments of two disjoint blocks of parameters, seen in the same step."""
        same = (self.batch_size, self.parts, self.source)
        if same != (other.batch_size, other.parts, other.source):
            raise ValueError("moments add over blocks of the same step only")
        return GradientMoments(
            batch_size=self.batch_size,
            parts=self.parts,
            batch_sqnorm=self.batch_sqnorm + other.batch_sqnorm,
            variance=self.variance + other.variance,
            source=self.source,
        )


def noise_scale(*, variance: float, sqnorm: float) -> float:
    """variance / sqnorm, the simple noise scale in samples; 0 without noise, else `inf` where
    the signal is not positive.

    >>> noise_scale(variance=8.0, sqnorm=2.0), noise_scale(variance=1.0, sqnorm=-0.1)
    (4.0, inf)

    Reference: McCandlish et al., 2018, arXiv 1812.06162, section 2.2.
    """
    if variance <= 0.0:
        return 0.0
    return variance / sqnorm if sqnorm > 0.0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a run is, in exactly one unit.

    >>> Budget(samples=1000).used(step=3, samples=250, base_steps=4.0)
    0.25

    Args:
        base_steps: steps of the base batch, the clock that AdaScale's gain advances.
        samples: training samples, over all ranks.
        steps: optimizer steps.

    Raises:
        ValueError: not exactly one unit, or an amount that is not positive and finite, or of
            samples or steps not whole.
    """

    base_steps: float | None = None
    samples: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        amounts = [a for a in (self.base_steps, self.samples, self.steps) if a is not None]
        whole = all(isinstance(a, int) for a in (self.samples, self.steps) if a is not None)
        if len(amounts) != 1 or not (0 < amounts[0] < math.inf) or not whole:
            raise ValueError(
                "A budget is one positive amount in one unit: "
                "Budget(base_steps=10_000), Budget(samples=5_000_000) or Budget(steps=500), where "
                f"samples and steps are whole numbers; got {self!r}."
            )

    @property
    def unit(self) -> Unit:
        """The unit it is given in."""
        if self.base_steps is not None:
            return "base_steps"
        return "samples" if self.samples is not None else "steps"

    @property
    def amount(self) -> float:
        """How many of that unit."""
        return float(self.base_steps or self.samples or self.steps or 0)

    def used(self, *, step: int, samples: int, base_steps: float) -> float:
        """The fraction of the budget that a clock has used; 1 or more when it is over."""
        at = base_steps if self.base_steps is not None else samples if self.samples else step
        return at / self.amount

    def over(self, *, step: int, samples: int, base_steps: float) -> bool:
        """Whether the clock has used it all; base steps may lack what their sum was rounded by."""
        if self.base_steps is not None:
            return 1.0 - base_steps / self.base_steps <= 1e-9
        return self.used(step=step, samples=samples, base_steps=base_steps) >= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a meter read in one step, after the ranks were combined.

    Args:
        samples: true number of samples B behind the gradient, over all ranks.
        finite: whether loss and gradient were finite on every rank.
        loss: mean loss of the step's samples over all ranks; None where nobody told it.
        batch_sqnorm: squared norm of the gradient that the optimizer gets, before clipping.
        weight: the true total weight W of the step (samples, unless the user gave weights).
        moments: of the bare gradient; None where not asked for or not known.
        preconditioned_moments: of the gradient as the optimizer divides it: by Adam's sqrt(v) + eps
            or Adagrad's, and by nothing under SGD; None in the first steps of Adam and Adagrad.
        inner_product_variance: variance of <g_i, g_B> over single samples.
        coordinate_noise_scale: maximum or quantile over coordinates of variance / g_B^2.
        full_sqnorm: squared norm of the mean loss's gradient over the whole data set.
        extra_samples: samples spent on measuring besides the training samples.
        exhausted: whether some rank has no more data.
    """

    samples: int
    finite: bool = True
    loss: float | None = None
    batch_sqnorm: float | None = None
    weight: float = 0.0
    moments: GradientMoments | None = None
    preconditioned_moments: GradientMoments | None = None
    inner_product_variance: float | None = None
    coordinate_noise_scale: float | None = None
    full_sqnorm: float | None = None
    extra_samples: int = 0
    exhausted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """All that a rule may look at. The clocks `step`, `samples`, `base_steps` are those BEFORE
    this step; `batch_size` is that of the gradient in hand.

    Args:
        step: optimizer steps taken.
        samples: training samples used, over all ranks.
        base_steps: steps of the base batch that the run is worth so far.
        batch_size: samples B in this step, over all ranks.
        base_batch_size: the batch B0 for which the learning rate was tuned.
        ranks: processes that share the batch.
        base_lr: the first parameter group's learning rate before any multiplier.
        loss, finite, moments, ...: as in `Reading`.
        dataset_size: samples in one epoch, where known.
        budget: how long the run is, where known.
        extra_samples: samples spent on measuring in this step besides the training samples.
        skipped: steps lost to non-finite values before this one.
    """

    step: int
    samples: int
    base_steps: float
    batch_size: int
    base_batch_size: int
    ranks: int = 1
    base_lr: float = 1.0
    loss: float | None = None
    finite: bool = True
    batch_sqnorm: float | None = None
    moments: GradientMoments | None = None
    preconditioned_moments: GradientMoments | None = None
    inner_product_variance: float | None = None
    coordinate_noise_scale: float | None = None
    dataset_size: int | None = None
    budget: Budget | None = None
    extra_samples: int = 0
    skipped: int = 0
    full_sqnorm: float | None = field(default=None, metadata=LATER)

    @property
    def scale(self) -> float:
        """S = B / B0 of the gradient in hand."""
        return self.batch_size / self.base_batch_size

    @property
    def progress(self) -> float:
        """Fraction of the budget used before this step, in [0, 1].

        Raises:
            ValueError: the run has no budget.
        """
        return self.progress_of(None)

    def progress_of(self, budget: Budget | None) -> float:
        """Fraction of another budget, or of the run's own where it is None, in [0, 1].

        Raises:
            ValueError: neither is given.
        """
        used = self._horizon(budget).used(
            step=self.step, samples=self.samples, base_steps=self.base_steps
        )
        return min(used, 1.0)

    def progress_after(self, budget: Budget | None, *, base_steps: float) -> float:
        """The same after this step, which is worth so many `base_steps`.

        Raises:
            ValueError: neither is given.
        """
        used = self._horizon(budget).used(
            step=self.step + 1,
            samples=self.samples + self.batch_size,
            base_steps=self.base_steps + base_steps,
        )
        return min(used, 1.0)

    def _horizon(self, budget: Budget | None) -> Budget:
        budget = budget or self.budget
        if budget is None:
            raise ValueError(
                "A schedule over the run needs its length: control.steps(samples=...) or "
                "lb.attach(..., budget=lb.Budget(base_steps=10_000))."
            )
        return budget

    def unmeasured(self) -> Measurement:
        """The same without any statistic, as a step is that measures none."""
        if all(getattr(self, name) is None for name in STATISTICS):
            return self
        nothing: Any = dict.fromkeys(STATISTICS)
        return replace(self, **nothing)
