"""Compute by which factor the user's own all-reduce and clipping changed the gradient.

Let C_r be the sum of the gradients that autograd computed on rank r, and g the gradient that the
optimizer gets. If the loop averages or sums the gradients over the ranks, and perhaps clips or
unscales all gradients together, then g = q * sum_r C_r. The factor q is 1 / ranks for a mean and 1
for a sum, times the factor of clipping or unscaling. The factor is computed as

    q = |g|^2 / sum_r <C_r, g>,

and some elements of the gradients are enough to compute the factor q. Random projections s (vectors
of +1 and -1) show whether a single factor q exists: <s, g> = q * sum_r <s, C_r> for each s, and <s,
g> is the same on all ranks. The hooks add up C_r before autograd adds the gradient to `.grad`, so
the loop may all-reduce each parameter's gradient as soon as it is computed.
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
"""Largest number of compared parameters, and largest number of compared elements per parameter.

The first rows of each parameter are compared, at least one row.
"""

GROUPS, SIGNS = 4, 3
"""Number of groups of compared parameters, and number of projections of each group."""

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
"""Smallest difference of projections that is an error, as a fraction of the group's norm.

An all-reduce in bfloat16 changes the projections by up to 0.008 of the norm. A difference below
0.02 changes the factor q by less than 2 %.
"""

ALIKE = 1e-3
"""Smallest difference of two ranks' gradients, as a fraction of the norm, that counts as different.
"""

LEAST_SHARE = 1e-6
"""Smallest share of a group of parameters in the squared norm for which the group is compared.

A group with a smaller share may consist of rounding errors.
"""


class HandReduced:
    """Compare some elements of the gradients before and after the user's own all-reduce.

    Mutable: holds the sums of the step's gradients.

    Args:
        parameters: The measured parameters of the model.
        ranks: The ranks that share the batch.
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
        """Forget all gradients at the beginning of a training step."""
        self._own: dict[int, Tensor] = {}

    def see(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient of one backward call on this rank."""
        rows = self._rows.get(index)
        if rows is None:
            return
        piece, own = _piece(gradient, rows), self._own.get(index)
        if own is None:
            self._own[index] = piece.clone()
        else:
            own.add_(piece)  # in the gradient's own type, to round as autograd rounds `.grad`

    def compare(self, sums: Sums) -> None:
        """Add the projections of the optimizer's gradient to the step's sums."""
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
        """Return q, the optimizer's gradient divided by the sum of the ranks' gradients.

        The factor q is None if the compared elements are 0 or not finite.

        Raises:
            RanksDisagree: The gradients of the ranks differ, so the user's loop did not reduce the
                gradients.
            LargeBatchError: The optimizer's gradient is not one factor times the sum of the ranks'
                gradients.
        """
        count = self._ranks.count
        if not all(math.isfinite(sums[name]) for name in NAMES):
            return None
        if not self._alike(sums, NOW, NOW_SQNORM):
            raise RanksDisagree(
                f"The gradients of the {count} ranks differ at optimizer.step(), so every rank "
                "would train a different model. Average the gradients before optimizer.step(): "
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
                f"{count} ranks' gradients, so the variance cannot be measured. Possible causes "
                "are clipping by value or per parameter, weight decay or noise added to p.grad, "
                "and an average with different weights of the ranks. Clip all gradients together, "
                "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), leave weight decay to "
                "the optimizer, and average with equal weights. If you need the change, use "
                "torch.nn.parallel.DistributedDataParallel(model), whose gradients are measured "
                "before the change."
            )
        return q

    def reduced_early(self, sums: Mapping[str, float]) -> bool:
        """Return whether the backward call gave the same nonzero gradients on all ranks."""
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
        # The norms of the ranks' own gradients count, too, because rounding errors remain if the
        # gradients cancel each other in the sum.
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
    """Return at most `TENSORS` of `count` indices, including the first and the last."""
    if count <= TENSORS:
        return list(range(count))
    return [round(at * (count - 1) / (TENSORS - 1)) for at in range(TENSORS)]


def _rows_of(parameter: Tensor) -> int:
    """Return the number of rows to compare, or 0 for a parameter without dimensions."""
    if parameter.dim() == 0:
        return 0
    length = parameter.shape[0]
    return max(1, min(length, ELEMENTS * length // parameter.numel()))


def _piece(tensor: Tensor, rows: int) -> Tensor:
    """Return the first rows as dense real numbers, which may share memory with the tensor."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.narrow_copy(0, 0, rows).to_dense() if rows else tensor.to_dense()
    elif rows:
        tensor = tensor.narrow(0, 0, rows)
    return as_real(tensor)


def _row(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.flatten() for piece in pieces]).double()


def _signs(size: int, seed: int) -> Tensor:
    """Return random numbers +1 and -1 in the shape [SIGNS, size], the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (SIGNS, size), generator=generator).double() * 2.0 - 1.0
