"""The critical batch from measured pairs (batch size, steps to a target), with an interval.

    Iiduka       1 / T = (1 - b* / (2 b)) / T_min     T b is least at b*, infinite at b* / 2
    McCandlish   T     = (1 + b* / b) T_min           T b grows with b, and is twice its least at b*

Both are lines in 1 / b, in 1 / T and in T, whose ratio of slope to intercept is the critical batch.
They are different curves and different meanings of "critical": report both. Steps scatter by a
share of themselves, so the line is that of `largebatch.theory.lines`, and the interval Fieller's
with Student's quantile. It takes the family for granted. No interval tells that the family is the
wrong one; compare the spreads, and look whether samples fall before they rise.

Umeda, Iiduka, 2025, arXiv 2508.05302 (the family is derived here from the bound of
`constant_rate`). McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018,
arXiv 1812.06162.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from largebatch.analysis.noise import NotEnough
from largebatch.analysis.student import t_quantile
from largebatch.theory.lines import Array, line_through

FEWEST_SIZES = 3
"""Two batch sizes lie on a curve of each family, so they say nothing about either."""

MISSING = {
    "intercept": (
        "the steps of an unlimited batch are not told from their scatter",
        "larger batches, or more runs of each",
    ),
    "slope": (
        "that steps depend on the batch is not told from their scatter",
        "smaller batches, or more runs of each",
    ),
}
"""Which end of the line is lost in the scatter: (reason, what is needed)."""

Family = Literal["Iiduka", "McCandlish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFit:
    """A curve of steps over batch sizes.

    >>> print(StepsFit(family="Iiduka", critical_batch_size=48.0, low=41.0, high=56.0,
    ...     fewest_steps=160.0, spread=0.05, pairs=8))
    Iiduka: critical batch 48 [41, 56] samples (95 % interval, 8 pairs, spread 5 %)

    Args:
        family: the curve's name.
        critical_batch_size: in samples; what it means depends on the family.
        low, high: ends of its interval.
        fewest_steps: T_min, those of an unlimited batch.
        spread: standard deviation of the measured numbers about the curve, as a share of it.
        pairs: how many were fitted.
        level: probability with which [low, high] covers the critical batch of the family.
    """

    family: Family
    critical_batch_size: float
    low: float
    high: float
    fewest_steps: float
    spread: float
    pairs: int
    level: float = 0.95

    def steps(self, batch_size: float) -> float:
        """Steps to the target with a batch, by the curve; `inf` where it is never reached."""
        if self.family == "McCandlish":
            return self.fewest_steps * (1.0 + self.critical_batch_size / batch_size)
        room = 1.0 - self.critical_batch_size / (2.0 * batch_size)
        return self.fewest_steps / room if room > 0.0 else math.inf

    @property
    def fewest_samples(self) -> float:
        """The fewest samples on the curve: at the critical batch, or of ever smaller batches."""
        share = 2.0 if self.family == "Iiduka" else 1.0
        return share * self.fewest_steps * self.critical_batch_size

    def __str__(self) -> str:
        return (
            f"{self.family}: critical batch {self.critical_batch_size:.3g} [{self.low:.3g}, "
            f"{self.high:.3g}] samples ({100 * self.level:g} % interval, {self.pairs} pairs, "
            f"spread {100 * self.spread:.2g} %)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFits:
    """The same pairs in both families."""

    iiduka: StepsFit | NotEnough
    mccandlish: StepsFit | NotEnough

    def __str__(self) -> str:
        return f"{self.iiduka}\n{self.mccandlish}"


def fit_steps(
    batch_sizes: Sequence[float] | Array, steps: Sequence[float] | Array, *, level: float = 0.95
) -> StepsFits:
    """Both families through measured pairs; for each a fit, or what is missing for one.

    >>> fits = fit_steps([60, 100, 200, 400], [266.67, 210.53, 181.82, 170.21])
    >>> round(fits.iiduka.critical_batch_size, 1)
    48.0
    >>> print(fit_steps([60, 100], [266.67, 210.53]).iiduka)
    not enough signal yet: 2 different batch sizes; needed: at least 3

    Args:
        batch_sizes: [K], in samples, each with a rate that is good for it. A size may come several
            times, with other seeds.
        steps: [K], to one and the same target.
        level: probability of covering the critical batch, in (0, 1).

    Raises:
        ValueError: series of different lengths, numbers that are not finite and above 0, or a level
            outside (0, 1).

    Reference: see the module.
    """
    b, t = _checked(batch_sizes, steps, level=level)
    return StepsFits(
        iiduka=_fit("Iiduka", b, t, level=level),
        mccandlish=_fit("McCandlish", b, t, level=level),
    )


def _fit(family: Family, b: Array, t: Array, *, level: float) -> StepsFit | NotEnough:
    sizes = len(np.unique(b))
    if sizes < FEWEST_SIZES:
        return NotEnough(reason=f"{sizes} different batch sizes", needed=f"at least {FEWEST_SIZES}")
    inverted = family == "Iiduka"
    line = line_through(1.0 / b, 1.0 / t if inverted else t)
    # per unit of the slope: Iiduka's is -b* / 2 over the intercept, McCandlish's b*
    factor = -2.0 if inverted else 1.0
    if line is None or line.intercept <= 0.0:
        return NotEnough(
            reason="no curve of the family lies near all pairs",
            needed="larger batches, and more runs of each",
        )
    if factor * line.slope <= 0.0:
        return NotEnough(
            reason="steps do not fall with the batch",
            needed="smaller batches, or more runs of each",
        )
    ends = line.ratio_interval(t_quantile(level, degrees=len(b) - 2))
    if not isinstance(ends, tuple):
        return NotEnough(reason=MISSING[ends][0], needed=MISSING[ends][1])
    low, high = sorted(factor * end for end in ends)
    return StepsFit(
        family=family,
        critical_batch_size=factor * line.slope / line.intercept,
        low=low,
        high=high,
        fewest_steps=1.0 / line.intercept if inverted else line.intercept,
        spread=line.spread,
        pairs=len(b),
        level=level,
    )


def _checked(
    batch_sizes: Sequence[float] | Array, steps: Sequence[float] | Array, *, level: float
) -> tuple[Array, Array]:
    b, t = (np.asarray(series, dtype=np.float64) for series in (batch_sizes, steps))
    if b.ndim != 1 or b.shape != t.shape:
        raise ValueError(
            "fit_steps takes one number of steps for each batch size, as in "
            f"fit_steps([32, 64, 128], [900, 500, 300]); got shapes {b.shape} and {t.shape}."
        )
    for name, series in (("batch_sizes", b), ("steps", t)):
        if not (np.isfinite(series) & (series > 0.0)).all():
            raise ValueError(
                f"{name} are finite numbers above 0; got {series.tolist()}. Leave out a run that "
                "did not reach the target."
            )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a probability within (0, 1), such as 0.95; got {level!r}.")
    return b, t
