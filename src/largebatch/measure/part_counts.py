"""Define the interface that counts the samples and the parts of a step and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from largebatch.core.measurement import Source
from largebatch.measure.estimate import source_of
from largebatch.measure.statistics import Statistic


class PartCounts(Protocol):
    """Define how the samples and the parts of one step on this rank are counted.

    Attributes:
        rows: Number of samples in each measured backward call of the step; empty if they are not
            counted.
    """

    @property
    def rows(self) -> Sequence[int]: ...

    def least_samples(self, least_parts: int) -> int:
        """Return the least number of samples per step, over all ranks, for `least_parts` parts."""
        ...

    def count(self, backwards: int) -> int:
        """Return the number of parts on this rank in a step with `backwards` backward calls."""
        ...

    def label(self, *, ranks: int, parts: int) -> Source:
        """Return the kind of the parts, such as "micro-batches", for `parts` parts on all ranks."""
        ...

    def groups(self, backwards: int) -> Sequence[int]:
        """Return the number of parts in each of `backwards` backward calls on this rank."""
        ...

    def check_micro_batch(self, samples: int) -> None:
        """Check that the last backward call had the given number of samples.

        Raises:
            LargeBatchError: The last backward call had another number of samples.
        """
        ...

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        """Check the number and the sizes of a step's backward calls.

        Args:
            count: Expected number of backward calls.
            sizes: Expected number of samples in each backward call; empty if the user passed none.

        Raises:
            LargeBatchError: The number or the sizes of the observed backward calls differ.
        """
        ...

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        """Check that a step's number of samples over all ranks equals `batch_size`.

        Raises:
            LargeBatchError: The number of samples differs from the batch size.
        """
        ...

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        """Return the text of the error for a step of one part, which has no variance.

        The result is None if none of the chosen statistics needs several parts.
        """
        ...


class BackwardCounts:
    """Count each backward call as one part, without counting samples."""

    rows: Sequence[int] = ()

    def least_samples(self, least_parts: int) -> int:
        return least_parts  # each part has at least one sample

    def count(self, backwards: int) -> int:
        return backwards

    def label(self, *, ranks: int, parts: int) -> Source:
        return source_of(ranks=ranks, parts=parts)

    def groups(self, backwards: int) -> Sequence[int]:
        return [1] * backwards

    def check_micro_batch(self, samples: int) -> None:
        """Do nothing, because no samples are counted."""

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        """Do nothing, because no samples are counted."""

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        """Do nothing, because no samples are counted."""

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        if not any(statistic.parts for statistic in chosen):
            return None
        return (
            "The loop makes one backward call per step on one process, and a single gradient has "
            "no variance. Split the batch into two or more micro-batches, run several processes, "
            "measure single examples, meter=lb.Meter(model, examples=lb.PerExample()), or use the "
            "approximate estimate from pairs of steps: "
            "meter=lb.Meter(model, statistics=[lb.measure.TemporalMoments()])."
        )
