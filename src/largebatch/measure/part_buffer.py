"""Add up the gradients of one micro-batch's backward calls, before the sum is squared."""

from __future__ import annotations

from torch import Tensor

from largebatch.measure.taps import See


class PartBuffer:
    """Hold the sum of one micro-batch's gradients, in as much memory as the model's gradient.

    Mutable: grows with each gradient.
    """

    def __init__(self) -> None:
        self._gradients: dict[int, Tensor] = {}

    def add(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient of one backward call."""
        there = self._gradients.get(index)
        if there is None:  # a copy is kept, because autograd may reuse the memory
            self._gradients[index] = gradient.detach().clone()
        elif there.is_sparse:  # torch supports dense + sparse, not sparse + dense
            self._gradients[index] = gradient + there
        else:
            self._gradients[index] = there + gradient

    def clear(self) -> None:
        """Discard all gradients."""
        self._gradients.clear()

    def empty_into(self, see: See) -> None:
        """Pass the sum of each parameter's gradients to `see`, and then discard all sums."""
        for index, gradient in self._gradients.items():
            see(index, gradient)
        self._gradients.clear()
