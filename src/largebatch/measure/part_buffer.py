"""Adds up the gradients of a part that has several backward calls, before they are squared."""

from __future__ import annotations

from torch import Tensor

from largebatch.measure.taps import See


class PartBuffer:
    """Holds one part's gradients: as much memory as the model's gradient.

    Mutable: grows with each gradient.
    """

    def __init__(self) -> None:
        self._gradients: dict[int, Tensor] = {}

    def add(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient of one backward."""
        there = self._gradients.get(index)
        if there is None:  # autograd may go on in the same memory, so a copy is kept
            self._gradients[index] = gradient.detach().clone()
        elif there.is_sparse:  # torch adds a sparse tensor to a dense one, not the reverse
            self._gradients[index] = gradient + there
        else:
            self._gradients[index] = there + gradient

    def clear(self) -> None:
        """Drop what was added."""
        self._gradients.clear()

    def empty_into(self, see: See) -> None:
        """Give each parameter's sum to `see`, and drop it."""
        for index, gradient in self._gradients.items():
            see(index, gradient)
        self._gradients.clear()
