"""The seam of how many samples and parts a step has, and what to check of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from largebatch.core.measurement import Source
from largebatch.measure.estimate import source_of
from largebatch.measure.statistics import Statistic


class PartCounts(Protocol):
    """The samples and the parts of one step on this rank.

    Attributes:
        rows: samples in each measured backward of the step, if they are counted; else empty.
    """

    @property
    def rows(self) -> Sequence[int]: ...

    def least_samples(self, least_parts: int) -> int:
        """Return how many samples a step needs over all ranks, if it needs so many parts."""
        ...

    def count(self, backwards: int) -> int:
        """Return the parts of this rank in a step of so many backward calls."""
        ...

    def label(self, *, ranks: int, parts: int) -> Source:
        """Return what to call the step's parts, of which there are so many over all ranks."""
        ...

    def groups(self, backwards: int) -> Sequence[int]:
        """Return how many parts each of so many backward calls has on this rank."""
        ...

    def check_micro_batch(self, samples: int) -> None:
        """Check that the last backward was one of so many samples.

        Raises:
            LargeBatchError: it was not.
        """
        ...

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        """Check a step of `count` backward calls, whose `sizes` are empty if nobody gave them.

        Raises:
            LargeBatchError: other backward calls were seen, or of other sizes.
        """
        ...

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        """Check that the samples of a whole step over all ranks are those expected.

        Raises:
            LargeBatchError: they are not.
        """
        ...

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        """Return why a step of one part gives no variance, and what to do; None if none of these
        statistics needs several parts."""
        ...


class BackwardCounts:
    """Each backward is one part; nothing is counted, so nothing can differ from what was given."""

    rows: Sequence[int] = ()

    def least_samples(self, least_parts: int) -> int:
        return least_parts  # a part has one or more

    def count(self, backwards: int) -> int:
        return backwards

    def label(self, *, ranks: int, parts: int) -> Source:
        return source_of(ranks=ranks, parts=parts)

    def groups(self, backwards: int) -> Sequence[int]:
        return [1] * backwards

    def check_micro_batch(self, samples: int) -> None:
        """Nothing is counted that could differ."""

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        """Nothing is counted that could differ."""

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        """Nothing is counted that could differ."""

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        if not any(statistic.parts for statistic in chosen):
            return None
        return (
            "One backward a step on one process gives one gradient, of which no variance can "
            "be known. Split the batch into two or more micro-batches, run several processes, "
            "take single examples for the parts, meter=lb.Meter(model, "
            "examples=lb.PerExample()), or the rough temporal estimate: "
            "meter=lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
        )
