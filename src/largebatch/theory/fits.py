"""Fit the critical batch size to measured pairs (batch size, steps to a target), with an interval.

    Iiduka       1 / T = (1 - b* / (2 * b)) / T_min   T * b is smallest at b*, infinite at b* / 2
    McCandlish   T     = (1 + b* / b) * T_min         T * b grows with b, twice its minimum at b*

Plotted over 1 / b, both curves are straight lines: 1 / T for Iiduka's curve, and T for McCandlish's
curve. The ratio of slope to intercept gives the critical batch size. The two curves define
"critical" differently, so report the critical batch sizes of both curves. The scatter of the
measured steps is proportional to the number of steps, so `largebatch.theory.lines` fits the line.
The confidence interval is Fieller's interval with Student's quantile. The confidence interval
assumes that the curve is right, and it cannot show that the curve is wrong. To judge the curves,
compare their spreads, and check whether the measured samples fall before they rise as the batch
size grows.

References: Umeda and Iiduka, 2025, arXiv 2508.05302 (the first curve was derived for largebatch
from the bound of `constant_rate`). McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch
Training, 2018, arXiv 1812.06162.
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
"""Fewest different batch sizes for a fit, because every curve passes through two points."""

MISSING = {
    "intercept": (
        "scatter hides the number of steps at very large batch sizes",
        "batch sizes above the measured ones, or more runs of each batch size",
    ),
    "slope": (
        "scatter hides whether the number of steps depends on the batch size",
        "batch sizes below the measured ones, or more runs of each batch size",
    ),
}
"""Reason and needed data for each coefficient of the line that scatter makes uncertain."""

Family = Literal["Iiduka", "McCandlish"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFit:
    """Hold a fitted curve of steps over batch sizes.

    >>> print(StepsFit(family="Iiduka", critical_batch_size=48.0, low=41.0, high=56.0,
    ...     fewest_steps=160.0, spread=0.05, pairs=8))
    Iiduka: critical batch 48 [41, 56] samples (95 % interval, 8 pairs, spread 5 %)

    Args:
        family: Name of the curve.
        critical_batch_size: Critical batch size in samples. The meaning of "critical" depends on
            the curve.
        low: Lower bound of the interval of the critical batch size.
        high: Upper bound of the interval of the critical batch size.
        fewest_steps: Number of steps T_min of an infinite batch.
        spread: Standard deviation of the measured numbers from the curve, relative to the curve.
        pairs: Number of fitted pairs.
        level: Probability that [low, high] contains the critical batch size, if the curve is right.
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
        """Return the number of steps to the target at a batch size, by the fitted curve.

        The result is `inf` if the curve never reaches the target.

        Args:
            batch_size: Batch size in samples.
        """
        if self.family == "McCandlish":
            return self.fewest_steps * (1.0 + self.critical_batch_size / batch_size)
        room = 1.0 - self.critical_batch_size / (2.0 * batch_size)
        return self.fewest_steps / room if room > 0.0 else math.inf

    @property
    def fewest_samples(self) -> float:
        """Return the fewest samples on the curve.

        Iiduka's curve needs the fewest samples at the critical batch size. McCandlish's curve needs
        the fewest samples in the limit of small batch sizes.
        """
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
    """Hold the fits of both curves to the same pairs.

    >>> fits = fit_steps([60, 100, 200, 400], [266.67, 210.53, 181.82, 170.21])
    >>> round(fits.iiduka.fewest_steps)
    160

    Args:
        iiduka: Fit of Iiduka's curve, or the reason why there is no fit.
        mccandlish: Fit of McCandlish's curve, or the reason why there is no fit.
    """

    iiduka: StepsFit | NotEnough
    mccandlish: StepsFit | NotEnough

    def __str__(self) -> str:
        return f"{self.iiduka}\n{self.mccandlish}"


def fit_steps(
    batch_sizes: Sequence[float] | Array, steps: Sequence[float] | Array, *, level: float = 0.95
) -> StepsFits:
    """Fit both curves to measured pairs. Each result is a fit, or the reason why there is no fit.

    >>> fits = fit_steps([60, 100, 200, 400], [266.67, 210.53, 181.82, 170.21])
    >>> round(fits.iiduka.critical_batch_size, 1)
    48.0
    >>> print(fit_steps([60, 100], [266.67, 210.53]).iiduka)
    not enough signal yet: 2 different batch sizes; needed: at least 3

    Args:
        batch_sizes: Batch sizes in samples, of shape [K], each measured with a learning rate that
            suits the batch size. A batch size may appear several times, with different seeds.
        steps: Number of steps of each run to the same target, of shape [K].
        level: Probability in (0, 1) that the interval contains the critical batch size.

    Raises:
        ValueError: The series differ in length, a number is not finite or not above 0, or the level
            is outside (0, 1).

    Reference: see the docstring of the module.
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
    # slope / intercept is -b* / 2 for Iiduka's curve and b* for McCandlish's curve
    factor = -2.0 if inverted else 1.0
    if line is None or line.intercept <= 0.0:
        return NotEnough(
            reason="no curve of this kind is close to all pairs",
            needed="batch sizes above the measured ones, and more runs of each batch size",
        )
    if factor * line.slope <= 0.0:
        return NotEnough(
            reason="the number of steps does not fall as the batch size grows",
            needed="batch sizes below the measured ones, or more runs of each batch size",
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
            f"Series of the shapes {b.shape} and {t.shape} were given, but fit_steps takes one "
            "number of steps for each batch size. Example: "
            "fit_steps([32, 64, 128], [900, 500, 300])."
        )
    for name, series in (("batch_sizes", b), ("steps", t)):
        if not (np.isfinite(series) & (series > 0.0)).all():
            raise ValueError(
                f"{name}={series.tolist()} was given, but all numbers must be finite and above 0. "
                "Leave out runs that did not reach the target."
            )
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"level={level!r} was given, but it must be a probability in (0, 1). Pass level=0.95."
        )
    return b, t
