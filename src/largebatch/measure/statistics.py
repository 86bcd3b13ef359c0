"""The seam of what is computed of the parts' gradients: each statistic adds device scalars to the
step's sums and turns the sums over all ranks into moments, or into one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.estimate import Parts, moments_of_parts
from largebatch.measure.parameters import Parameters
from largebatch.measure.sums import Sums

BATCH = "batch_sqnorm"
"""The name of the sum that holds the squared norm of the batch's gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """A step's sums over all ranks, and what turns them into means.

    Args:
        sums: by name; "batch_sqnorm" is there in every step.
        parts: how the parts enter the step's gradient.
        part_factor: what the parts' squared norms must be multiplied with to be those of gradients
            whose mean is the batch's gradient.
        batch_factor: the same for squared norms of the batch's gradient.
    """

    sums: Mapping[str, float]
    parts: Parts
    part_factor: float = 1.0
    batch_factor: float = 1.0

    def moments(self, *, of_parts: str, of_batch: str) -> GradientMoments | None:
        """Moments from two of the sums."""
        return moments_of_parts(
            self.parts,
            mean_sqnorm=self.sums[of_parts] * self.part_factor / self.parts.weight,
            batch_sqnorm=self.sums[of_batch] * self.batch_factor,
        )


class Statistic(Protocol):
    """One statistic of a measured step.

    Attributes:
        name: the name under which rules ask for it.
        parts: whether it looks at the parts' gradients, or at the batch's alone.
        of_parts, of_batch: names of the sums that it fills from the parts and from the batch.
    """

    @property
    def name(self) -> str: ...
    @property
    def parts(self) -> bool: ...
    @property
    def of_parts(self) -> tuple[str, ...]: ...
    @property
    def of_batch(self) -> tuple[str, ...]: ...

    def supports(self, optimizer: Optimizer) -> bool:
        """Whether it can be measured with this optimizer."""
        ...

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        """Set once whose gradient to measure."""
        ...

    def open(self) -> None:
        """A measured step begins."""
        ...

    def see(self, index: int, gradient: Tensor) -> None:
        """One parameter's gradient of one part, or all of them in one row: index `WHOLE`."""
        ...

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        """A part is over: its squared norm counts `coefficient` times."""
        ...

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """`grad` holds the batch's gradient. It is the same on every rank, so what is seen of it
        counts `share` times: 1 on the first rank, 0 on the others."""
        ...

    def read(self, totals: Totals) -> GradientMoments | float | None:
        """The moments, or the number, from the sums over all ranks; None where it is unknown."""
        ...


def gradients_of(parameters: Parameters) -> list[Tensor]:
    """The gradients that are there; a parameter without one is left out."""
    return [p.grad for p in parameters.tensors if p.grad is not None]


def choose(statistics: Sequence[Statistic], names: frozenset[str]) -> list[Statistic]:
    """The statistics asked for by name, in the meter's order."""
    return [statistic for statistic in statistics if statistic.name in names]
