"""The seam of what the parts of a step are: whole backward calls, or the examples in them.

A meter drives one `PartSource` and asks it whatever depends on the parts. The sequence in a step is
`open`, then for each backward `begin`, `end` and `release`.
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
    """What the parts of a step are.

    Attributes:
        counts: the samples and the parts of the step in hand.
        adds_up: whether gradients of several backward calls may be added up before they are seen.
    """

    @property
    def counts(self) -> PartCounts: ...
    @property
    def adds_up(self) -> bool: ...

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Check that it can measure this model with this tap; None is the usual one.

        Raises:
            ValueError: it cannot.
        """
        ...

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        """Return the statistics that can be measured; `given` is the user's choice.

        Raises:
            ValueError: a statistic that these parts do not have.
        """
        ...

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Set once whose gradient to measure.

        Raises:
            ValueError: a model whose parts have no gradients of their own.
        """
        ...

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Take the running backward's number from `task`, as nobody announces each one."""
        ...

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        """Return what each parameter's gradient goes to; None if these statistics need none."""
        ...

    def open(self, chosen: Sequence[Statistic]) -> None:
        """Begin a step that measures these statistics."""
        ...

    def begin(self) -> None:
        """Begin a backward."""
        ...

    def end(self, task: int) -> None:
        """End the backward of this number; 0 if backward calls are announced."""
        ...

    def release(self) -> None:
        """Release what the statistics have read of the last backward."""
        ...

    def rest(self) -> None:
        """Take every hook off the model."""
        ...


class BackwardParts:
    """Each backward on each rank is one part: the default."""

    counts = BackwardCounts()
    adds_up = True

    def check(self, model: nn.Module, *, tap: Tap | None) -> None:
        """Any model, any tap."""

    def statistics(self, given: Sequence[Statistic] | None) -> tuple[Statistic, ...]:
        return (SquaredNorms(), PreconditionedNorms()) if given is None else tuple(given)

    def bind(self, model: nn.Module, parameters: Parameters) -> None:
        """Nothing to prepare."""

    def number_backwards(self, task: Callable[[], int]) -> None:
        """Nothing to number: the statistics close each part in turn."""

    def see_for(self, chosen: Sequence[Statistic]) -> See | None:
        return _see_all([statistic.see for statistic in chosen if statistic.parts])

    def open(self, chosen: Sequence[Statistic]) -> None:
        """Nothing to hold."""

    def begin(self) -> None:
        """Nothing to prepare."""

    def end(self, task: int) -> None:
        """Nothing to add up: the statistics saw the gradient."""

    def release(self) -> None:
        """Nothing to release."""

    def rest(self) -> None:
        """No hooks: the tap has them."""


def _see_all(sees: Sequence[See]) -> See | None:
    if len(sees) < 2:
        return sees[0] if sees else None

    def see(index: int, gradient: Tensor) -> None:
        for one in sees:
            one(index, gradient)

    return see
