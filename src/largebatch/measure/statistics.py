"""What is computed of the parts' gradients. Each statistic adds device scalars to the step's sums
and turns the sums over all ranks into moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from largebatch.core.measurement import GradientMoments
from largebatch.measure.estimate import Parts, moments_of_parts
from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.squares import ROW, squared_norm, squared_norms, squarer
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
        """Told once what is measured."""
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

    def read(self, totals: Totals) -> GradientMoments | None:
        """The moments from the sums over all ranks; None where they are unknown."""
        ...


def gradients_of(parameters: Parameters) -> list[Tensor]:
    """The gradients that are there; a parameter without one is left out."""
    return [p.grad for p in parameters.tensors if p.grad is not None]


class SquaredNorms:
    """The moments of the bare gradient, from the squared norms of the parts and of the batch.

    Mutable: holds the scalars of the part in hand.
    """

    name = "moments"
    parts = True
    of_parts = ("moments",)
    of_batch = ()

    def __init__(self) -> None:
        self._part: list[Tensor] = []

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        # the last one is for the index WHOLE, -1
        self._squares = [*map(squarer, parameters.tensors), squared_norm]

    def open(self) -> None:
        self._part.clear()

    def see(self, index: int, gradient: Tensor) -> None:
        self._part.append(self._squares[index](gradient))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """The batch's squared norm is in the sums already: every step needs it."""

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=BATCH)


class PreconditionedNorms:
    """The moments of the gradient divided by Adam's sqrt(v) + eps, with v before this step.

    In the first `WARM` steps, in which v says little, nothing is divided. To v is added `RARE`
    times its mean over the parameter: an element that hardly ever got a gradient, as a rare word's
    embedding, is else divided by nearly nothing and rules the sum (on a small transformer 130 times
    all other elements together in single steps). There is no proof that these moments should set
    Adam's learning rate.

    Reference: Qiao et al., Pollux, OSDI 2021 (preconditioned gradient noise scale); `RARE` is ours.

    Mutable: holds the denominators of the step in hand.
    """

    name = "preconditioned_moments"
    parts = True
    of_parts = ("preconditioned_moments",)
    of_batch = ("preconditioned batch",)
    WARM = 5
    RARE = 1e-3

    def __init__(self) -> None:
        self._part: list[Tensor] = []
        self._denominators: list[Tensor | None] | None = None

    def supports(self, optimizer: Optimizer) -> bool:
        return isinstance(optimizer, (Adam, AdamW, NAdam, RAdam))

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer

    def open(self) -> None:
        self._part.clear()
        self._denominators = None

    def see(self, index: int, gradient: Tensor) -> None:
        if index == WHOLE:
            for each, piece in enumerate(self._parameters.split(gradient)):
                self.see(each, piece)
            return
        self._part.append(squared_norm(self._preconditioned(index, gradient)))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        (name,) = self.of_batch
        for index, parameter in enumerate(self._parameters.tensors):
            if parameter.grad is not None:
                scalar = squared_norm(self._preconditioned(index, parameter.grad))
                sums.add(name, scalar, coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=self.of_batch[0])

    def _preconditioned(self, index: int, gradient: Tensor) -> Tensor:
        if self._denominators is None:  # late, so that a state loaded after `open` counts
            state = self._optimizer.state
            groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
            self._denominators = [
                self._denominator(state.get(p, {}), groups[p]) for p in self._parameters.tensors
            ]
        denominator = self._denominators[index]
        return gradient if denominator is None else gradient / denominator

    def _denominator(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
        if "exp_avg_sq" not in state:
            return None
        second = state["exp_avg_sq"]
        steps = torch.as_tensor(state["step"], device=second.device)
        # 1 - beta^t would lose four of its seven digits in the first steps
        corrected = second / -torch.expm1(steps * math.log(group["betas"][1]))
        return torch.where(
            steps < self.WARM,
            torch.ones_like(second),
            (corrected + self.RARE * corrected.mean()).sqrt().add_(group["eps"]),
        )


class TemporalMoments:
    """A rough estimate for one process with one backward a step: this step's gradient and the last
    one's are taken as two parts of one batch.

    It is biased, since the weights moved between the two; its moments say `source="temporal"`.
    Costs two copies of the gradient and no hooks.

    Mutable: holds the last step's gradients.
    """

    name = "moments"
    parts = False
    of_parts = ()
    of_batch = ("temporal product", "temporal last")

    def __init__(self) -> None:
        self._now: dict[int, Tensor] = {}
        self._last: dict[int, Tensor] = {}
        self._last_samples = 0.0
        self._last_factor = 1.0

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters

    def open(self) -> None:
        """Nothing to prepare: it looks at whole batches."""

    def see(self, index: int, gradient: Tensor) -> None:
        """Looks at no part."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        """Looks at no part."""

    def close_batch(self, sums: Sums, *, share: float) -> None:
        product, last = self.of_batch
        gradients = ((i, p.grad) for i, p in enumerate(self._parameters.tensors))
        self._now = {
            index: gradient.detach().reshape(-1).to(torch.float32, copy=True)
            for index, gradient in gradients
            if gradient is not None
        }
        for index in self._now.keys() & self._last.keys():
            pairs = zip(self._now[index].split(ROW), self._last[index].split(ROW), strict=True)
            sums.add(product, *(torch.dot(a, b) for a, b in pairs), coefficient=share)
        sums.add(last, *squared_norms(list(self._last.values())), coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        product, last = (totals.sums[name] for name in self.of_batch)
        factor, samples = math.sqrt(totals.batch_factor), totals.parts.samples
        moments = None
        if self._last:
            moments = temporal_moments(
                sqnorm=totals.sums[BATCH] * factor**2,
                samples=samples,
                last_sqnorm=last * self._last_factor**2,
                last_samples=self._last_samples,
                product=product * factor * self._last_factor,
            )
        if math.isfinite(totals.sums[BATCH]):  # else it would spoil the next step, too
            self._last, self._last_samples, self._last_factor = self._now, samples, factor
        return moments


def temporal_moments(
    *, sqnorm: float, samples: float, last_sqnorm: float, last_samples: float, product: float
) -> GradientMoments | None:
    """Moments from two whole gradients g and h of n and m samples, as two parts of one batch.

    >>> temporal_moments(
    ...     sqnorm=1.0, samples=4, last_sqnorm=1.0, last_samples=4, product=0.0).variance
    4.0

    Args:
        sqnorm, samples: |g|^2 and n of this step.
        last_sqnorm, last_samples: |h|^2 and m of the step before.
        product: <g, h>.
    """
    both = samples + last_samples
    p, q = samples / both, last_samples / both
    return moments_of_parts(
        Parts.proportional(count=2, samples=both, weight=both, source="temporal"),
        mean_sqnorm=p * sqnorm + q * last_sqnorm,
        batch_sqnorm=p * p * sqnorm + q * q * last_sqnorm + 2 * p * q * product,
    )


def choose(statistics: Sequence[Statistic], names: frozenset[str]) -> list[Statistic]:
    """The statistics asked for by name, in the meter's order."""
    return [statistic for statistic in statistics if statistic.name in names]
