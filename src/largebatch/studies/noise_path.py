"""The noise of a probe as a function of the base step, and random variations of it.

A step that stands for several base steps reads the mean over them. Averages of unbiased estimates
are unbiased, and pooling makes their errors as small as those of a larger batch.

A variation adds errors that are like the measured ones (wild bootstrap over blocks):

    x*_t = x_t + z_j e_t,    e_t = sqrt(m / (m - l)) (x_t - mean of the m steps around t)

with one z_j from N(0, 1) per block j of l consecutive steps. The errors keep their size along the
run and their dependence within a block, and the trend stays where it is; resampling blocks would
move the steep fall of a gradient at the start of a run to other steps. The root makes up for the
share l / m of a block's own error that its mean takes off.

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
"""A block is at most 1/20 of the series. Longer blocks know the errors' size less well; shorter
ones miss errors that last longer."""

EARLY = 4
"""A block is at most 1/4 of the steps before it, as the gradient moves fastest at the start."""

REACH = 2
"""The mean around a step reaches so many blocks to each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisePath:
    """The variance and the squared norm along a run; later steps are like the last quarter.

    >>> path = NoisePath.of([(8.0, 4.0), (8.0, 2.0), (8.0, 0.0), (8.0, 0.0)])
    >>> path.mean(0.5, 2.5), path.mean(4.0, 9.0)
    ((8.0, 2.0), (8.0, 0.0))

    Args:
        variance_sums, sqnorm_sums: over the steps before step t, for t from 0 to the last.
        last: (variance, sqnorm) of the steps that were not measured.
    """

    variance_sums: tuple[float, ...]
    sqnorm_sums: tuple[float, ...]
    last: tuple[float, float]

    @classmethod
    def of(cls, series: Pairs) -> NoisePath:
        """Return the path of a series of (variance, sqnorm), one pair per step, at least one."""
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
        """How many steps were measured."""
        return len(self.sqnorm_sums) - 1

    def mean(self, start: float, stop: float) -> tuple[float, float]:
        """Return the mean (variance, sqnorm) from `start` to `stop`, in base steps.

        Fractions of a step count as such.

        Args:
            start: at least 0.
            stop: above `start`.
        """
        length = stop - start
        low, high = self._integral(start), self._integral(stop)
        return (high[0] - low[0]) / length, (high[1] - low[1]) / length

    def around(self, base_steps: float, width: float) -> tuple[float, float]:
        """Return the mean (variance, sqnorm) over `width` base steps around one of them.

        At the start of the run the range is shorter, so that it has the given step in its middle.

        >>> NoisePath.of([(8.0, 4.0), (8.0, 2.0), (8.0, 0.0)]).around(0.0, 3.0)
        (8.0, 4.0)

        Args:
            base_steps: the clock, at least 0; a whole number is a measured step.
            width: in base steps, above 0.
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
    """Yield paths that differ from a series by errors like its own.

    Args:
        series: (variance, sqnorm) of each step, at least 3 steps.
        count: how many paths.
        seed: of the generator; the same seed gives the same paths.
    """
    pairs = np.asarray(series, dtype=np.float64)
    lengths = block_lengths(len(pairs))
    errors = errors_of(pairs, lengths)
    generator = np.random.default_rng(seed)
    for _ in range(count):
        factors = np.repeat(generator.standard_normal(len(lengths)), lengths)
        yield NoisePath.of(pairs + factors[:, np.newaxis] * errors)


def block_lengths(steps: int) -> list[int]:
    """Return the lengths of the blocks of a series.

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
    """Return by how much each step differs from the mean of the steps around it, times the root.

    >>> errors_of(np.array([[1.0], [1.0], [7.0], [1.0]]), [1, 1, 1, 1]).ravel().round(2).tolist()
    [-2.45, -1.73, 5.2, -2.45]

    Args:
        pairs: [T, any], T at least 3.
        lengths: of the blocks; their sum is T.
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
