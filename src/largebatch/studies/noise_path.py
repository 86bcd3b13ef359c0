"""Represent the noise of a probe as a function of the base step, and make random variations of it.

A simulated step that counts as several base steps uses the mean noise over these base steps.
Averages of unbiased estimates are unbiased, and pooling makes their errors as small as those of a
larger batch.

A variation adds random errors that resemble the measured errors (wild bootstrap over blocks of
consecutive steps):

    x*_t = x_t + z_j * e_t,    e_t = sqrt(m / (m - l)) * (x_t - mean of the m steps around t)

One z_j is drawn from N(0, 1) per block j of l consecutive steps. The errors keep their size along
the run and their dependence within a block, and the trend of the measured values stays at the same
steps. Resampling blocks would move the steep fall of a gradient at the start of a run to other
steps. Subtracting the mean removes the share l / m of a block's own error, and the square root
compensates for this loss.

Wu: Jackknife, Bootstrap and Other Resampling Methods in Regression Analysis, 1986, Annals of
Statistics. Shao: The Dependent Wild Bootstrap, 2010, Journal of the American Statistical
Association.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from largebatch.analysis.bootstrap import Series
from largebatch.analysis.noise import Pairs
from largebatch.studies.noise_of_run import LAST

LONGEST = 20
"""A block of consecutive steps has at most 1 / LONGEST of the steps of the series. With longer
blocks, the size of the errors would be estimated less precisely. With shorter blocks, errors that
last longer than a block would be missed.
"""

EARLY = 4
"""A block of consecutive steps has at most 1 / EARLY of the number of steps before the block,
because the gradient changes fastest at the start of a run.
"""

REACH = 2
"""Number of block lengths on each side of a step over which the mean around the step is computed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePath:
    """Hold the variance and the squared norm along a run; steps after the probe have the mean
    values of the probe's last quarter.

    >>> path = NoisePath.of([(8.0, 4.0), (8.0, 2.0), (8.0, 0.0), (8.0, 0.0)])
    >>> path.mean(0.5, 2.5), path.mean(4.0, 9.0)
    ((8.0, 2.0), (8.0, 0.0))

    Args:
        variance_sums, sqnorm_sums: Sums over the steps before step t, for t from 0 to the number of
            steps.
        last: Pair (variance, sqnorm) of the steps that were not measured.
    """

    variance_sums: tuple[float, ...]
    sqnorm_sums: tuple[float, ...]
    last: tuple[float, float]

    @classmethod
    def of(cls, series: Pairs) -> NoisePath:
        """Return the path of a series that has one pair (variance, sqnorm) per step, and at least
        one step.
        """
        pairs = np.asarray(series, dtype=np.float64)
        sums = np.concatenate([np.zeros((1, 2)), np.cumsum(pairs, axis=0)])
        variance, sqnorm = pairs[int(LAST * len(pairs)) :].mean(axis=0)
        return cls(
            variance_sums=tuple(sums[:, 0].tolist()),
            sqnorm_sums=tuple(sums[:, 1].tolist()),
            last=(float(variance), float(sqnorm)),
        )

    @property
    def steps(self) -> int:
        """Number of measured steps."""
        return len(self.sqnorm_sums) - 1

    def mean(self, start: float, stop: float) -> tuple[float, float]:
        """Return the mean (variance, sqnorm) from `start` to `stop`, in base steps.

        A step that lies only partly in the range is weighted by its fraction in the range.

        Args:
            start: Start in base steps, at least 0.
            stop: End in base steps, above `start`.
        """
        length = stop - start
        low, high = self._integral(start), self._integral(stop)
        return (high[0] - low[0]) / length, (high[1] - low[1]) / length

    def around(self, base_steps: float, width: float) -> tuple[float, float]:
        """Return the mean (variance, sqnorm) over `width` base steps around one base step.

        At the start of the run, the range is shorter than `width`, so that the given step is in the
        middle of the range.

        >>> NoisePath.of([(8.0, 4.0), (8.0, 2.0), (8.0, 0.0)]).around(0.0, 3.0)
        (8.0, 4.0)

        Args:
            base_steps: Position in the run in base steps, at least 0; a whole number is a measured
                step.
            width: Width of the range in base steps, above 0.
        """
        middle = base_steps + 0.5
        half = min(width / 2.0, middle)
        return self.mean(middle - half, middle + half)

    def _integral(self, stop: float) -> tuple[float, float]:
        """Return the sums of (variance, sqnorm) from the start of the run to `stop`."""
        step, variances, sqnorms = int(stop), self.variance_sums, self.sqnorm_sums
        if step >= self.steps:
            more = stop - self.steps
            return variances[-1] + more * self.last[0], sqnorms[-1] + more * self.last[1]
        part = stop - step
        return (
            variances[step] + part * (variances[step + 1] - variances[step]),
            sqnorms[step] + part * (sqnorms[step + 1] - sqnorms[step]),
        )


def variations(series: Pairs, *, count: int, seed: int) -> Iterator[NoisePath]:
    """Yield paths that differ from a series by random errors that resemble the errors of the
    series.

    Args:
        series: Pair (variance, sqnorm) of each step, at least 3 steps.
        count: Number of paths.
        seed: Seed of the random generator; the same seed gives the same paths.
    """
    pairs = np.asarray(series, dtype=np.float64)
    lengths = block_lengths(len(pairs))
    errors = errors_of(pairs, lengths)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        factors = np.repeat(generator.standard_normal(len(lengths)), lengths)
        yield NoisePath.of(pairs + factors[:, np.newaxis] * errors)


def block_lengths(steps: int) -> list[int]:
    """Return the lengths of the blocks of consecutive steps into which a series is cut.

    >>> block_lengths(100)[:12], block_lengths(100)[-2:]
    ([1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3], [5, 3])
    """
    lengths: list[int] = []
    done = 0
    while done < steps:
        length = max(min(done // EARLY, steps // LONGEST), 1)
        lengths.append(min(length, steps - done))
        done += lengths[-1]
    return lengths


def errors_of(pairs: Series, lengths: Sequence[int]) -> Series:
    """Return the difference of each step from the mean of the steps around it, multiplied by
    sqrt(m / (m - l)).

    The module's description explains the factor sqrt(m / (m - l)).

    >>> errors_of(np.array([[1.0], [1.0], [7.0], [1.0]]), [1, 1, 1, 1]).ravel().round(2).tolist()
    [-2.45, -1.73, 5.2, -2.45]

    Args:
        pairs: Array [T, any], with T at least 3.
        lengths: Lengths of the blocks, whose sum is T.
    """
    block = np.repeat(lengths, lengths)
    steps = np.arange(len(pairs))
    start = np.maximum(steps - REACH * block, 0)
    stop = np.minimum(steps + REACH * block + 1, len(pairs))
    sums = np.concatenate([np.zeros((1, pairs.shape[1])), np.cumsum(pairs, axis=0)])
    count = stop - start
    away = pairs - (sums[stop] - sums[start]) / count[:, np.newaxis]
    errors: Series = away * np.sqrt(count / (count - block))[:, np.newaxis]
    return errors
