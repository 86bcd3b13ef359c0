"""Compute statistics of a training step from the gradients of its single examples.

Example i of a micro-batch with n examples contributes c_i to the micro-batch's gradient, so the
example's own gradient is n * c_i. For N examples with equal weights, the formulas of the module
`estimate` hold for N separately measured gradients of one sample each. If a micro-batch has k
groups of examples, the gradient of group j alone is k * c_j.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.measurement import GradientMoments
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.estimate import moments_of_parts
from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.part import Part
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.parameters import Parameters
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.squared_norms import SquaredNorms
from largebatch.measure.statistics import BATCH, Statistic, Totals
from largebatch.measure.sums import Sums


def statistics_of(
    examples: ExampleGradients, *, also: Sequence[Statistic] | None = None
) -> tuple[Statistic, ...]:
    """Return all statistics of single examples: the default and the user-supplied statistics.

    Raises:
        ValueError: A user-supplied statistic cannot be computed from single examples.
    """
    usual = ExampleNorms(examples), ExamplePreconditioned(examples), ExampleProducts(examples)
    given = [s for s in also or () if not isinstance(s, SquaredNorms | PreconditionedNorms)]
    strict = [ExampleCoordinates(examples, s) for s in given if isinstance(s, CoordinateNoiseScale)]
    if len(strict) < len(given):
        raise ValueError(
            "lb.PerExample() has its own statistics and supports no other statistic except "
            "lb.measure.CoordinateNoiseScale(). Leave statistics= out: "
            "lb.Meter(model, examples=lb.PerExample())."
        )
    return *usual, *strict


def want_of(chosen: Sequence[Statistic]) -> WantedSums:
    """Return the sums over examples that the chosen statistics need."""
    names = {statistic.name for statistic in chosen}
    bare = any(isinstance(s, ExamplePreconditioned) and s.bare for s in chosen)
    divided = PreconditionedNorms.name in names and not bare
    return WantedSums(
        sqnorm="moments" in names or bare,
        squares=divided or CoordinateNoiseScale.name in names,
        products="inner_product_variance" in names,
    )


class ExampleNorms:
    """Compute the moments of the raw gradient from squared norms of single examples' gradients."""

    name = "moments"
    parts = False
    of_parts = ("moments",)
    of_batch = ()

    def __init__(self, examples: ExampleGradients) -> None:
        self._examples = examples

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        """Do nothing, because nothing must be prepared."""

    def open(self) -> None:
        """Do nothing, because the step needs no data."""

    def see(self, index: int, gradient: Tensor) -> None:
        """Do nothing: single examples are measured by hooks on modules."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        part = self._examples.part
        sums.add(self.name, *part.sqnorm(), coefficient=coefficient * part.parts)

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """Do nothing: the meter adds the batch's squared norm to the sums in every step."""

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=BATCH)


class ExamplePreconditioned:
    """Compute the moments of the preconditioned gradient from squares of examples' gradients."""

    name = PreconditionedNorms.name
    parts = False
    of_parts = PreconditionedNorms.of_parts
    of_batch = PreconditionedNorms.of_batch

    def __init__(self, examples: ExampleGradients) -> None:
        self._examples = examples
        self._norms = PreconditionedNorms()

    @property
    def bare(self) -> bool:
        """Return whether the optimizer uses the raw gradient, as SGD does."""
        return self._norms.bare

    def supports(self, optimizer: Optimizer) -> bool:
        return self._norms.supports(optimizer)

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._norms.bind(parameters, optimizer)

    def open(self) -> None:
        self._norms.open()

    def see(self, index: int, gradient: Tensor) -> None:
        """Do nothing: single examples are measured by hooks on modules."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        part = self._examples.part
        if self.bare:
            sums.add(self.name, *part.sqnorm(), coefficient=coefficient * part.parts)
            return
        for index, squares in part.squares.items():
            self._norms.see(index, squares.sqrt())  # |sqrt(squares)|^2 = squares.sum()
        self._norms.close_part(sums, coefficient=coefficient * part.parts)

    def close_batch(self, sums: Sums, *, share: float) -> None:
        self._norms.close_batch(sums, share=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        return self._norms.read(totals)


class ExampleCoordinates:
    """Compute the noise scale of single coordinates from squares of examples' gradients."""

    name = CoordinateNoiseScale.name
    parts = False
    of_parts = ()
    of_batch = ()

    def __init__(self, examples: ExampleGradients, strict: CoordinateNoiseScale) -> None:
        self._examples = examples
        self._strict = strict

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._strict.bind(parameters, optimizer)

    def open(self) -> None:
        self._strict.open()

    def see(self, index: int, gradient: Tensor) -> None:
        """Do nothing: single examples are measured by hooks on modules."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        part = self._examples.part
        for index, squares in part.squares.items():
            self._strict.add(index, squares)
        self._strict.close_part(sums, coefficient=coefficient * part.parts)

    def close_batch(self, sums: Sums, *, share: float) -> None:
        self._strict.close_batch(sums, share=share)

    def read(self, totals: Totals) -> float | None:
        return self._strict.read(totals)


class ExampleProducts:
    """Compute the variance of <g_i, g> over the examples i, with the gradient g of the whole step.

    The products need the input and the output's gradient of every module until g is complete. So
    the inputs and gradients of all modules are kept for all micro-batches of a step. With one
    backward call per step, the inputs and gradients of all modules are in memory anyway.

    Mutable: holds the sums of the current step's backward calls.
    """

    name = "inner_product_variance"
    parts = False
    of_parts = ()
    of_batch = ("example products",)

    def __init__(self, examples: ExampleGradients) -> None:
        self._examples = examples
        self._held: list[tuple[Part, float]] = []

    def supports(self, optimizer: Optimizer) -> bool:
        return True

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters

    def open(self) -> None:
        self._held = []

    def see(self, index: int, gradient: Tensor) -> None:
        """Do nothing: single examples are measured by hooks on modules."""

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        part = self._examples.part
        self._held.append((part, coefficient * part.parts))

    def close_batch(self, sums: Sums, *, share: float) -> None:
        """Add the products of this rank's examples to the sums."""
        pairs = enumerate(self._parameters.tensors)
        gradients = {index: p.grad for index, p in pairs if p.grad is not None}
        for part, coefficient in self._held:
            products = self._examples.products(part, gradients)
            sums.add(*self.of_batch, products.square().sum(), coefficient=coefficient)

    def read(self, totals: Totals) -> float | None:
        """Return the unbiased variance of the inner products; the mean of all products is |g|^2."""
        self._held = []  # releases the memory of the activations
        factor = totals.part_factor * totals.batch_factor / totals.parts.weight
        moments = moments_of_parts(
            totals.parts,
            mean_sqnorm=totals.sums[self.of_batch[0]] * factor,
            batch_sqnorm=(totals.sums[BATCH] * totals.batch_factor) ** 2,
        )
        return None if moments is None else moments.variance
