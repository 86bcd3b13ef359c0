"""Define which gradients are measured separately: of whole backward calls, or of examples.

A part is a gradient that is measured separately within a training step. A meter uses one
`PartSource` for everything that depends on the choice of separately measured gradients. In each
step, the meter calls `open`, and then `begin`, `end` and `release` for each backward call.
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
    """Define the interface that chooses the separately measured gradients (parts).

    Attributes:
        counts: Counter of the samples and separately measured gradients of the current step.
        adds_up: Whether the gradients of several backward calls may be added up before the sum is
            measured.
    """

    @property
    def counts(self) -> PartCounts: ...
    @property
    def adds_up(self) -> bool: ...

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Check that the gradients of a model can be measured with a tap.

        Args:
            model: The model.
            tap: The user's tap; None if the user passed no tap.

        Raises:
            ValueError: The gradients of the model cannot be measured with the tap.
        """
        ...

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        """Return the statistics that can be measured.

        Args:
            given: The user's statistics; None if the user passed no statistics.

        Raises:
            ValueError: A user-supplied statistic cannot be computed from the separately measured
                gradients.
        """
        ...

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Set the model and the measured parameters; `bind` must be called only once.

        Raises: ValueError: The gradients of the model cannot be measured separately.
        """
        ...

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Set the function that returns the running backward call's number, to replace `begin`."""
        ...

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        """Return the function that receives each gradient; None if no statistic needs gradients."""
        ...

    def open(self, chosen: Sequence[Statistic]) -> None:
        """Begin a training step that measures the chosen statistics."""
        ...

    def begin(self) -> None:
        """Prepare for a backward call that begins now."""
        ...

    def end(self, task: int) -> None:
        """Process the end of the backward call with the number `task`; 0 if `begin` was called."""
        ...

    def release(self) -> None:
        """Release the memory of the last backward call after the statistics have read it."""
        ...

    def rest(self) -> None:
        """Remove all hooks from the model."""
        ...


class BackwardParts:
    """Measure the gradient of each backward call on each rank separately, which is the default."""

    counts = BackwardCounts()
    adds_up = True

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Do nothing, because every model and every tap is supported."""

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        return (SquaredNorms(), PreconditionedNorms()) if given is None else tuple(given)

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Do nothing, because nothing must be prepared."""

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Do nothing, because no function needs the number of the backward call."""

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
