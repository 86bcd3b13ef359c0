"""Define what one training step measured, as plain numbers that have the same bits on every rank.

This module uses names in place of the papers' symbols: B is `batch_size` (samples of one training
step over all ranks), B0 is `base_batch_size`, S = B / B0 is `scale`, tr Sigma is `variance` (of one
sample's gradient), and |g_B|^2 is `batch_sqnorm`. The squared norm of the true gradient, |G|^2, is
estimated by `sqnorm`.
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
"""Names of the statistics that a meter can measure from one training step's own gradients."""

STATISTICS = OF_THE_STEP | {"full_sqnorm"}
"""Names of all statistics that a meter can measure.

Measuring takes time, so a rule requests the statistics of each training step by name. The full
gradient needs a pass over the data set and is never measured in the first training step.
"""

FACTS = frozenset({"loss", "budget", "dataset_size"})
"""Names of facts that a rule may need and that take no time to measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientMoments:
    """Hold the first and second moment of the gradient, measured in one training step.

    The moments are computed from parts: groups of samples whose gradients were measured separately,
    usually micro-batches. The `variance` is the variance of ONE sample's gradient (tr Sigma), so it
    does not depend on the batch size of the measurement. `sqnorm` is unbiased and may therefore be
    negative.

    >>> m = GradientMoments(batch_size=8, parts=2, batch_sqnorm=3.0, variance=8.0)
    >>> m.sqnorm, m.noise_scale
    (2.0, 4.0)

    Args:
        batch_size: Number of samples B whose mean gradient has the squared norm `batch_sqnorm`. If
            the samples have unequal weights, `batch_size` is the size of an equally weighted batch
            whose gradient has the same variance.
        parts: Number of gradients that were measured separately, usually one per micro-batch.
        batch_sqnorm: Squared norm |g_B|^2 of the batch gradient. Noise makes |g_B|^2 too large on
            average.
        variance: Trace of the covariance of one sample's gradient, unbiased.
        source: Kind of the separately measured gradients, such as "micro-batches" or "ranks".

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
        """Return the unbiased estimate of |G|^2, batch_sqnorm - variance / batch_size.

        Noise can make this estimate of |G|^2 negative.
        """
        return self.batch_sqnorm - self.variance / self.batch_size

    @property
    def noise_scale(self) -> float:
        """Return variance / sqnorm in samples, or `inf` if noise makes sqnorm zero or negative."""
        return noise_scale(variance=self.variance, sqnorm=self.sqnorm)

    def __add__(self, other: GradientMoments) -> GradientMoments:
        """Return the joint moments of two disjoint sets of parameters, measured in the same step.

        Raises:
            ValueError: The two operands differ in `batch_size`, `parts` or `source`.
        """
        same = (self.batch_size, self.parts, self.source)
        if same != (other.batch_size, other.parts, other.source):
            raise ValueError(
                "The moments of two different training steps were added: (batch_size, parts, "
                f"source) is {same} and {(other.batch_size, other.parts, other.source)}. Add only "
                "moments of disjoint sets of parameters, measured in the same training step."
            )
        return GradientMoments(
            batch_size=self.batch_size,
            parts=self.parts,
            batch_sqnorm=self.batch_sqnorm + other.batch_sqnorm,
            variance=self.variance + other.variance,
            source=self.source,
        )


def noise_scale(*, variance: float, sqnorm: float) -> float:
    """Return the gradient noise scale, variance / sqnorm, in samples.

    The result is 0 if the variance is not positive. If the variance is positive and sqnorm is not,
    the result is `inf`.

    >>> noise_scale(variance=8.0, sqnorm=2.0), noise_scale(variance=1.0, sqnorm=-0.1)
    (4.0, inf)

    Args:
        variance: Variance of one sample's gradient (tr Sigma).
        sqnorm: Estimate of the true gradient's squared norm |G|^2.

    Reference: McCandlish et al., 2018, arXiv 1812.06162, section 2.2.
    """
    if variance <= 0.0:
        return 0.0
    return variance / sqnorm if sqnorm > 0.0 else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Define the length of a run in exactly one unit.

    >>> Budget(samples=1000).used(step=3, samples=250, base_steps=4.0)
    0.25

    Args:
        base_steps: Length of the run in base steps. With AdaScale, one training step counts as
            `gain` base steps.
        samples: Length of the run in training samples over all ranks.
        steps: Length of the run in optimizer steps.

    Raises:
        ValueError: Not exactly one unit is set, the amount is not positive and finite, or a number
            of samples or steps is not whole.
    """

    base_steps: float | None = None
    samples: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        amounts = [a for a in (self.base_steps, self.samples, self.steps) if a is not None]
        whole = all(isinstance(a, int) for a in (self.samples, self.steps) if a is not None)
        if len(amounts) != 1 or not (0 < amounts[0] < math.inf) or not whole:
            raise ValueError(
                f"{self!r} was given, but a budget must be one positive amount in exactly one "
                "unit, and samples and steps must be whole numbers. Pass "
                "Budget(base_steps=10_000), Budget(samples=5_000_000) or Budget(steps=500)."
            )

    @property
    def unit(self) -> Unit:
        """Return the unit of the budget."""
        if self.base_steps is not None:
            return "base_steps"
        return "samples" if self.samples is not None else "steps"

    @property
    def amount(self) -> float:
        """Return the amount of the budget, in its unit."""
        return float(self.base_steps or self.samples or self.steps or 0)

    def used(self, *, step: int, samples: int, base_steps: float) -> float:
        """Return the used fraction of the budget. The fraction is 1 or more when the run is over.

        Args:
            step: Number of optimizer steps taken.
            samples: Number of training samples used over all ranks.
            base_steps: Number of base steps that the run counts as so far.
        """
        at = base_steps if self.base_steps is not None else samples if self.samples else step
        return at / self.amount

    def over(self, *, step: int, samples: int, base_steps: float) -> bool:
        """Return whether the budget is used up.

        A budget in base steps counts as used up if at most the fraction 1e-9 of the budget remains,
        because sums of base steps are rounded.

        Args:
            step: Number of optimizer steps taken.
            samples: Number of training samples used over all ranks.
            base_steps: Number of base steps that the run counts as so far.
        """
        if self.base_steps is not None:
            return 1.0 - base_steps / self.base_steps <= 1e-9
        return self.used(step=step, samples=samples, base_steps=base_steps) >= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Hold the result of a meter for one training step, combined over all ranks.

    Args:
        samples: Number of samples B from which the gradient was computed, over all ranks.
        finite: Whether loss and gradient were finite on every rank.
        loss: Mean loss of the step's samples over all ranks, or None if the loop passed no loss.
        batch_sqnorm: Squared norm of the gradient that the optimizer receives, before clipping.
        weight: Total weight W of the training step: the number of samples, unless the user passed
            weights.
        moments: Moments of the raw gradient, or None if they were not requested or are unknown.
        preconditioned_moments: Moments of the preconditioned gradient. Adam divides the gradient by
            sqrt(v) + eps, Adagrad divides the gradient by its denominator, and SGD does not divide
            the gradient. `preconditioned_moments` is None in the first training steps of Adam and
            Adagrad.
        inner_product_variance: Variance over single samples i of <g_i, g_B>, the inner product of
            the sample's gradient and the batch gradient.
        coordinate_noise_scale: Maximum or quantile of variance / g_B^2 over the coordinates of the
            gradient.
        full_sqnorm: Squared norm of the mean loss's gradient over the whole data set.
        extra_samples: Number of samples used only for measuring, in addition to training samples.
        exhausted: Whether at least one rank has used up its data.
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
    """Hold everything that a rule may use to decide about one training step.

    The counters `step`, `samples` and `base_steps` have their values BEFORE this training step. The
    field `batch_size` is the size of the current batch. A statistic is None if it was not measured.

    >>> seen = Measurement(step=10, samples=2560, base_steps=40.0, batch_size=256,
    ...     base_batch_size=64, budget=Budget(samples=10_240))
    >>> seen.scale, seen.progress
    (4.0, 0.25)

    Args:
        step: Number of optimizer steps taken.
        samples: Number of training samples used over all ranks.
        base_steps: Number of base steps that the run counts as so far.
        batch_size: Number of samples B in this training step, over all ranks.
        base_batch_size: Base batch size B0 in samples, for which the learning rate was tuned.
        ranks: Number of processes that share the batch.
        base_lr: Learning rate of the first parameter group before any multiplier.
        loss: Mean loss of the step's samples over all ranks, or None if the loss is unknown.
        finite: Whether loss and gradient were finite on every rank.
        batch_sqnorm: Squared norm of the gradient that the optimizer receives, before clipping.
        moments: Moments of the raw gradient.
        preconditioned_moments: Moments of the preconditioned gradient, which Adam divides by
            sqrt(v) + eps.
        inner_product_variance: Variance over single samples i of <g_i, g_B>, the inner product of
            the sample's gradient and the batch gradient.
        coordinate_noise_scale: Maximum or quantile of variance / g_B^2 over the coordinates of the
            gradient.
        dataset_size: Number of samples in one epoch, or None if it is unknown.
        budget: Length of the run, or None if the run has no fixed length.
        extra_samples: Number of samples used only for measuring in this step, in addition to
            training samples.
        skipped: Number of earlier training steps skipped because loss or gradient was not finite.
        full_sqnorm: Squared norm of the mean loss's gradient over the whole data set.
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
        """Return the scale S = B / B0 of the current batch."""
        return self.batch_size / self.base_batch_size

    @property
    def progress(self) -> float:
        """Return the fraction of the run's budget used before this training step, in [0, 1].

        Raises:
            ValueError: The run has no budget.
        """
        return self.progress_of(None)

    def progress_of(self, budget: Budget | None) -> float:
        """Return the fraction of a budget used before this training step, in [0, 1].

        Args:
            budget: Budget to compare with, or None for the run's own budget.

        Raises:
            ValueError: `budget` is None and the run has no budget.
        """
        used = self._horizon(budget).used(
            step=self.step, samples=self.samples, base_steps=self.base_steps
        )
        return min(used, 1.0)

    def progress_after(self, budget: Budget | None, *, base_steps: float) -> float:
        """Return the fraction of a budget used after this training step, in [0, 1].

        Args:
            budget: Budget to compare with, or None for the run's own budget.
            base_steps: Number of base steps that this training step counts as.

        Raises:
            ValueError: `budget` is None and the run has no budget.
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
                "A schedule over the whole run requires the length of the run, but the run has no "
                "budget. Pass the length: control.steps(samples=5_000_000), or "
                "lb.attach(..., budget=lb.Budget(base_steps=10_000))."
            )
        return budget

    def unmeasured(self) -> Measurement:
        """Return this measurement without statistics, as in a step that measures no statistics."""
        if all(getattr(self, name) is None for name in STATISTICS):
            return self
        nothing: Any = dict.fromkeys(STATISTICS)
        return replace(self, **nothing)
