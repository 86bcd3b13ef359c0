"""Define what the parts of a step are: whole backward calls, or the examples in them.

A part is a gradient that is measured separately within a step. A meter uses one `PartSource` for
everything that depends on the parts. In each step the meter calls `open`, and then `begin`, `end`
and `release` for each backward call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from largebatch.measure.parameters import Parameters
from largebatch.measure.part_counts import BackwardCounts, PartCounts
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.statistics import Statistic
from largebatch.measure.taps import See, Tap


class PartSource(Protocol):
    """Define the interface of a source of parts.

    Attributes:
        counts: Counter of the samples and the parts of the current step.
        adds_up: Whether the gradients of several backward calls may be added up before they are
            measured.
    """

    @property
    def counts(self) -> PartCounts: ...
    @property
    def adds_up(self) -> bool: ...

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Check that the parts of a model can be measured with a tap.

        Args:
            model: The model.
            tap: The user's tap; None if the user passed none.

        Raises:
            ValueError: The parts of the model cannot be measured with the tap.
        """
        ...

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        """Return the statistics that can be measured.

        Args:
            given: The user's statistics; None if the user passed none.

        Raises:
            ValueError: A statistic of the user cannot be computed from parts of this kind.
        """
        ...

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Set the model and the parameters to measure; call it once.

        Raises:
            ValueError: The parts of the model do not have separate gradients.
        """
        ...

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Use `task` to get the number of the running backward call, if `begin` is not called."""
        ...

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        """Return the function that receives each gradient; None if no statistic needs it."""
        ...

    def open(self, chosen: Sequence[Statistic]) -> None:
        """Begin a step that measures the chosen statistics."""
        ...

    def begin(self) -> None:
        """Begin a backward call."""
        ...

    def end(self, task: int) -> None:
        """End the backward call number `task`, which is 0 if `begin` was called."""
        ...

    def release(self) -> None:
        """Release the memory of the last backward call, which the statistics have read."""
        ...

    def rest(self) -> None:
        """Remove all hooks from the model."""
        ...


class BackwardParts:
    """Treat each backward call on each rank as one part, which is the default."""

    counts = BackwardCounts()
    adds_up = True

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Do nothing, because every model and every tap is supported."""

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        return (SquaredNorms(), PreconditionedNorms()) if given is None else tuple(given)

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Do nothing, because nothing must be prepared."""

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Do nothing, because the statistics close one part after the other."""

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        return _see_all([statistic.see for statistic in chosen if statistic.parts])

    def open(self, chosen: Sequence[Statistic]) -> None:
        """Do nothing, because the step needs no data."""

    def begin(self) -> None:
        """Do nothing, because nothing must be prepared."""

    def end(self, task: int) -> None:
        """Do nothing, because the statistics have received the gradient."""

    def release(self) -> None:
        """Do nothing, because no memory is held."""

    def rest(self) -> None:
        """Do nothing, because the tap has the hooks."""


def _see_all(sees: Sequence[See]) -> See | None:
    if len(sees) < 2:
        return sees[0] if sees else None

    def see(index: int, gradient: Tensor) -> None:
        for one in sees:
            one(index, gradient)

    return see
