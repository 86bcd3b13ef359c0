"""Define the interface of a statistic, which is computed from the gradients of a step.

Each statistic adds scalars on the device to the step's sums. After the all-reduce, each statistic
computes moments, or one number, from the sums over all ranks.
"""

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
"""Name of the sum that holds the squared norm of the batch's gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Hold a step's sums over all ranks, and the factors that convert sums into means.

    Args:
        sums: Sums by name; "batch_sqnorm" is present in every step.
        parts: Number, samples and weights of the step's separately measured gradients. part_factor:
            Factor that turns the micro-batches' squared norms into squared norms of gradients whose
            mean is the batch's gradient.
        batch_factor: Factor that turns the squared norm of the measured gradient into the squared
            norm of the batch's mean gradient.
    """

    sums: Mapping[str, float]
    parts: Parts
    part_factor: float = 1.0
    batch_factor: float = 1.0

    def moments(self, *, of_parts: str, of_batch: str) -> GradientMoments | None:
        """Return the moments from the sum named `of_parts` and the sum named `of_batch`."""
        return moments_of_parts(
            self.parts,
            mean_sqnorm=self.sums[of_parts] * self.part_factor / self.parts.weight,
            batch_sqnorm=self.sums[of_batch] * self.batch_factor,
        )


class Statistic(Protocol):
    """Define the interface of one statistic of a measured step.

    Attributes:
        name: Name by which rules request the statistic.
        parts: Whether the statistic uses the gradients of micro-batches; if False, the statistic
            uses only the gradient of the batch. of_parts, of_batch: Names of the sums that the
            statistic computes from the micro-batches and from the batch.
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
        """Return whether the statistic can be measured with the optimizer."""
        ...

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        """Set the parameters whose gradients are measured; `bind` must be called only once."""
        ...

    def open(self) -> None:
        """Begin a measured step."""
        ...

    def see(self, index: int, gradient: Tensor) -> None:
        """Add one parameter's gradient; the index `WHOLE` means all parameters in one row."""
        ...

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        """Add a micro-batch's sums; `coefficient` is the factor of its squared norm."""
        ...

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """Add what the statistic needs of the batch's gradient, which is now in `.grad`.

        Args:
            sums: The step's sums.
            share: Factor of the added scalars: 1 on the first rank and 0 on all other ranks,
                because the batch's gradient is the same on every rank.
        """
        ...

    def read(self, totals: Totals) -> GradientMoments | float | None:
        """Return the statistic's value from the sums over all ranks; None if it is unknown."""
        ...


def gradients_of(parameters: Parameters) -> list[Tensor]:
    """Return the gradients of the parameters; a parameter without a gradient is left out."""
    return [p.grad for p in parameters.tensors if p.grad is not None]


def choose(statistics: Sequence[Statistic], names: frozenset[str]) -> list[Statistic]:
    """Return the statistics whose names are in `names`, in the order of the meter."""
    return [statistic for statistic in statistics if statistic.name in names]
