"""Find how the user's own all-reduce and clipping changed the gradient.

Let C_r be the sum of the gradients that autograd gave to rank r, and g the gradient that the
optimizer gets. A mean over the ranks, a sum, and either of them clipped or unscaled as a whole give
g = q sum_r C_r with one factor q (1 / ranks for a mean, 1 for a sum). Then

    q = |g|^2 / sum_r <C_r, g>,

which some of the elements show as well as all of them. Random projections s (vectors of +1 and -1)
show whether such a q exists: <s, g> = q sum_r <s, C_r> for each s, and <s, g> is the same on all
ranks. C_r is added up in the hooks, before autograd adds it to `.grad`, so that a loop may reduce
as soon as a parameter's gradient is there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from largebatch.core.errors import LargeBatchError, RanksDisagree
from largebatch.measure.complex_gradients import as_real
from largebatch.measure.ranks import Ranks
from largebatch.measure.sums import Sums

TENSORS, ELEMENTS = 64, 1024
"""At most so many parameters are compared, spread over the model, and of each the first rows up to
so many elements, but at least one row."""

GROUPS, SIGNS = 4, 3
"""The parameters are compared in so many groups, each by so many projections."""

PRODUCT = "own product"
OWN, NOW = "own projection", "reduced projection"
OWN_SQNORM, NOW_SQNORM = "own sqnorm", "reduced sqnorm"
PROJECTIONS = [f"{group} {sign}" for group in range(GROUPS) for sign in range(SIGNS)]
NAMES = (
    PRODUCT,
    *(f"{name} {group}" for name in (OWN_SQNORM, NOW_SQNORM) for group in range(GROUPS)),
    *(f"{name} {at}" for name in (OWN, NOW) for at in PROJECTIONS),
    *(f"{name} {at} squared" for name in (OWN, NOW) for at in PROJECTIONS),
)

TOLERANCE = 0.02
"""A difference is found from this part of a group's norm on. An all-reduce in bfloat16 changes the
projections by up to 0.008 of it; a difference below 0.02 changes q by less than 2 %."""

ALIKE = 1e-3
"""The same for gradients that must be the same on all ranks, as an all-reduce leaves them."""

LEAST_SHARE = 1e-6
"""A group with a smaller share of the squared norm may consist of rounding errors."""


class HandReduced:
    """Compares some elements of the gradients before and after the user's own all-reduce.

    Mutable: holds the sums of the step's gradients.

    Args:
        parameters: of the model.
        ranks: that share the batch.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters = parameters
        self._rows: dict[int, int] = {}
        self._zeros: dict[int, Tensor] = {}
        device = parameters[0].device
        for index in _spread(len(parameters)):
            parameter = parameters[index]
            if parameter.numel() and parameter.device == device:
                self._rows[index] = _rows_of(parameter)
                self._zeros[index] = torch.zeros_like(_piece(parameter, self._rows[index]))
        indices = list(self._rows)
        self._groups = [indices[group::GROUPS] for group in range(GROUPS)]
        sizes = [sum(self._zeros[index].numel() for index in group) for group in self._groups]
        self._signs = [_signs(size, seed).to(device) for seed, size in enumerate(sizes)]
        self.forget()

    def forget(self) -> None:
        """Begin a step."""
        self._own: dict[int, Tensor] = {}

    def see(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient of one backward on this rank."""
        rows = self._rows.get(index)
        if rows is None:
            return
        piece, own = _piece(gradient, rows), self._own.get(index)
        if own is None:
            self._own[index] = piece.clone()
        else:
            own.add_(piece)  # in the gradient's own type, so that it rounds as `.grad` does

    def compare(self, sums: Sums) -> None:
        """Add what the optimizer is about to get to the step's sums."""
        for group, (indices, signs) in enumerate(zip(self._groups, self._signs, strict=True)):
            if not indices:
                continue
            own = _row([self._own.get(index, self._zeros[index]) for index in indices])
            now = _row([self._now(index) for index in indices])
            sums.add(PRODUCT, torch.dot(own, now))
            for sqnorm, name, row in ((OWN_SQNORM, OWN, own), (NOW_SQNORM, NOW, now)):
                sums.add(f"{sqnorm} {group}", torch.dot(row, row))
                for sign, projection in enumerate((signs @ row).unbind()):
                    sums.add(f"{name} {group} {sign}", projection)
                    sums.add(f"{name} {group} {sign} squared", projection.square())

    def factor(self, sums: Mapping[str, float]) -> float | None:
        """Return q: how often the optimizer's gradient holds the sum of the ranks' gradients.

        It is None if the step does not show it: the compared elements are 0, or not finite.

        Raises:
            RanksDisagree: the ranks' gradients differ, so nobody reduced them.
            LargeBatchError: no single factor leads from the ranks' gradients to the optimizer's.
        """
        count = self._ranks.count
        if not all(math.isfinite(sums[name]) for name in NAMES):
            return None
        if not self._alike(sums, NOW, NOW_SQNORM):
            raise RanksDisagree(
                f"The gradients of the {count} ranks differ at optimizer.step(), so every rank "
                "would train its own model. Average them before the step: "
                "torch.distributed.all_reduce(p.grad, op=torch.distributed.ReduceOp.AVG)."
            )
        sqnorm = sum(sums[f"{NOW_SQNORM} {group}"] for group in range(GROUPS)) / count
        product = sums[PRODUCT]
        if sqnorm == 0.0:
            return None
        q = sqnorm / product if product else math.inf
        if math.isinf(q) or not self._fits(sums, q):
            raise LargeBatchError(
                "The gradients at optimizer.step() are not one factor times the sum of the "
                f"{count} ranks' gradients, so their variance cannot be measured. After the "
                "backward they were changed by clipping by value or per parameter, weight decay or "
                "noise added to p.grad, or an average with a weight for each rank. Clip all of "
                "them together, leave weight decay to the optimizer, and average with equal "
                "weights: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0). If you need the "
                "change, use torch.nn.parallel.DistributedDataParallel(model), which is measured "
                "before it."
            )
        return q

    def reduced_early(self, sums: Mapping[str, float]) -> bool:
        """Return whether the backward gave the same gradients, other than 0, on all ranks."""
        seen = any(sums[f"{OWN_SQNORM} {group}"] for group in range(GROUPS))
        return seen and self._alike(sums, OWN, OWN_SQNORM)

    def _now(self, index: int) -> Tensor:
        gradient = self._parameters[index].grad
        return self._zeros[index] if gradient is None else _piece(gradient, self._rows[index])

    def _alike(self, sums: Mapping[str, float], name: str, sqnorm: str) -> bool:
        count = self._ranks.count
        for at in PROJECTIONS:
            spread = sums[f"{name} {at} squared"] / count - (sums[f"{name} {at}"] / count) ** 2
            if spread > ALIKE**2 * sums[f"{sqnorm} {at.split()[0]}"] / count:
                return False
        return True

    def _fits(self, sums: Mapping[str, float], q: float) -> bool:
        count = self._ranks.count
        # of the ranks' own gradients, too: where they cancel, their rounding errors remain
        sizes = [
            max(sums[f"{NOW_SQNORM} {group}"] / count, q**2 * sums[f"{OWN_SQNORM} {group}"])
            for group in range(GROUPS)
        ]
        for at in PROJECTIONS:
            size = sizes[int(at.split()[0])]
            rest = sums[f"{NOW} {at}"] / count - q * sums[f"{OWN} {at}"]
            if size > LEAST_SHARE * sum(sizes) and rest**2 > TOLERANCE**2 * size:
                return False
        return True


def _spread(count: int) -> list[int]:
    """Return at most `TENSORS` of so many indices, the first and the last among them."""
    if count <= TENSORS:
        return list(range(count))
    return [round(at * (count - 1) / (TENSORS - 1)) for at in range(TENSORS)]


def _rows_of(parameter: Tensor) -> int:
    """Return how many rows to compare; 0 stands for a parameter without dimensions."""
    if parameter.dim() == 0:
        return 0
    length = parameter.shape[0]
    return max(1, min(length, ELEMENTS * length // parameter.numel()))


def _piece(tensor: Tensor, rows: int) -> Tensor:
    """Return the first rows, dense and as real numbers; it may share memory with the tensor."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.narrow_copy(0, 0, rows).to_dense() if rows else tensor.to_dense()
    elif rows:
        tensor = tensor.narrow(0, 0, rows)
    return as_real(tensor)


def _row(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.flatten() for piece in pieces]).double()


def _signs(size: int, seed: int) -> Tensor:
    """Return random numbers +1 and -1, the same on every rank: [SIGNS, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (SIGNS, size), generator=generator).double() * 2.0 - 1.0
