"""Define the interface that counts and checks the samples and micro-batches of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from largebatch.core.measurement import Source
from largebatch.measure.estimate import source_of
from largebatch.measure.statistics import Statistic


class PartCounts(Protocol):
    """Define how samples and separately measured gradients (parts) of one step are counted.

    Attributes:
        rows: Number of samples in each measured backward call of the step; empty if samples are not
            counted.
    """

    @property
    def rows(self) -> Sequence[int]: ...

    def least_samples(self, least_parts: int) -> int:
        """Return the least samples per step, over all ranks, for `least_parts` gradients."""
        ...

    def count(self, backwards: int) -> int:
        """Return the number of separately measured gradients in `backwards` calls on this rank."""
        ...

    def label(self, *, ranks: int, parts: int) -> Source:
        """Return what `parts` separately measured gradients belong to, such as "micro-batches"."""
        ...

    def groups(self, backwards: int) -> Sequence[int]:
        """Return the number of separately measured gradients in each of `backwards` calls."""
        ...

    def check_micro_batch(self, samples: int) -> None:
        """Check that the last backward call had `samples` samples.

        Raises: LargeBatchError: The last backward call had more or fewer samples than `samples`.
        """
        ...

    def check_backwards(self, count: int, *, sizes: Sequence[float]) -> None:
        """Check the number and the sizes of a step's backward calls.

        Args:
            count: Expected number of backward calls.
            sizes: Expected number of samples in each backward call; empty if the user passed no
                samples.

        Raises:
            LargeBatchError: The observed number of backward calls, or the samples in a backward
                call, are not the expected ones.
        """
        ...

    def check_batch(self, samples: float, *, batch_size: int) -> None:
        """Check that a step's number of samples over all ranks equals `batch_size`.

        Raises:
            LargeBatchError: The number of samples differs from the batch size.
        """
        ...

    def missing_variance(self, chosen: Sequence[Statistic]) -> str | None:
        """Return the text of the error for a step with one gradient, which has no variance.

        The text is None if no chosen statistic needs several separately measured gradients.
        """
        ...


class BackwardCounts:
    """Count each backward call as one micro-batch, without counting samples."""

    rows: Sequence[int] = ()

    def least_samples(self, least_parts: int) -> int:
        return least_parts  # each micro-batch has at least one sample

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
