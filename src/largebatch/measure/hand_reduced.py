"""How the user's own all-reduce and clipping changed the gradient.

With C_r the gradient that rank r accumulated and g what the optimizer gets, g = q sum_r C_r for a
mean (q = 1 / ranks), a sum (q = 1), and either of them clipped or unscaled by one factor. Then

    q = |g|^2 / sum_r <C_r, g>,

which a few parameters show as well as all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from largebatch.core.errors import RanksDisagree
from largebatch.measure.ranks import Ranks
from largebatch.measure.squares import squared_norm
from largebatch.measure.sums import Sums

ELEMENTS = 1 << 16
"""At least so many elements are compared, if the model has them: the smallest parameters."""

PRODUCT, SQNORM, SQUARE = "own product", "reduced sqnorm", "reduced sqnorm squared"
NAMES = (PRODUCT, SQNORM, SQUARE)


class HandReduced:
    """Compares a few gradients before and after the user's own all-reduce.

    Mutable: holds copies of gradients.

    Args:
        parameters: of the model.
        ranks: that share the batch.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters: list[Tensor] = []
        left = ELEMENTS
        for parameter in sorted(parameters, key=lambda p: p.numel()):
            if left <= 0:
                break
            self._parameters.append(parameter)
            left -= parameter.numel()
        self.forget()

    def forget(self) -> None:
        """Begin a step."""
        self._own: list[tuple[Tensor, Tensor]] = []

    def note(self) -> None:
        """Copy what this rank has accumulated, after a backward."""
        self._own = [(p, p.grad.detach().clone()) for p in self._parameters if p.grad is not None]

    def compare(self, sums: Sums) -> None:
        """Add what the optimizer is about to get to the step's sums."""
        pairs = [(own, p.grad) for p, own in self._own if p.grad is not None]
        if not pairs:
            return
        products = [_product(own, now) for own, now in pairs]
        sqnorm = torch.stack([squared_norm(now).double() for _, now in pairs]).sum()
        sums.add(PRODUCT, *products)
        sums.add(SQNORM, sqnorm)
        sums.add(SQUARE, sqnorm.square())

    def factor(self, sums: Mapping[str, float]) -> float:
        """Return q: how often the optimizer's gradient holds the sum of the ranks' gradients.

        Raises:
            RanksDisagree: the ranks' gradients differ, so nobody reduced them.
        """
        count = self._ranks.count
        mean = sums[SQNORM] / count
        spread = sums[SQUARE] / count - mean**2
        if spread > 1e-6 * mean**2:
            raise RanksDisagree(
                f"The gradients of the {count} ranks differ at optimizer.step(), so every rank "
                "would train its own model. Average them before the step: "
                "torch.distributed.all_reduce(p.grad, op=torch.distributed.ReduceOp.AVG)."
            )
        product = sums[PRODUCT]
        return mean / product if product > 0.0 else math.nan


def _product(own: Tensor, now: Tensor) -> Tensor:
    if own.is_sparse or now.is_sparse:
        own, now = own.to_dense(), now.to_dense()
    if own.is_complex():
        own, now = torch.view_as_real(own), torch.view_as_real(now)
    return torch.dot(own.flatten().double(), now.flatten().double())
