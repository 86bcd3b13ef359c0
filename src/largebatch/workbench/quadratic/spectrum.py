"""A quadratic loss by its eigen-directions: what a noisy quadratic run starts from.

    loss          = floor + 1/2 sum w lambda e        sqnorm   = sum w lambda^2 e
    variance      = sum w c                           noise scale = variance / sqnorm

lambda is the curvature of a direction, e = E theta^2 the second moment of the weights in it, c the
variance of one sample's gradient in it, w how many directions are alike. The loss is a quadratic
for ever, its noise does not change along the run, and nothing is said of generalisation.

Zhang, Li, Nado et al.: Which Algorithmic Choices Matter at Which Batch Sizes? Insights From a Noisy
Quadratic Model, 2019, studies such a model; of it the abstract was read, and the formulas here are
derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from largebatch.core.measurement import noise_scale

Array: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = npt.ArrayLike

EXAMPLE = "Spectrum(curvature=[1.0, 0.1], noise=[1.0, 0.1], second_moment=[1.0, 1.0])"


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Spectrum:
    """Curvature, gradient noise and weights of a quadratic loss, by bins of alike directions.

    >>> spectrum = Spectrum(curvature=[1.0, 0.5], noise=[2.0, 1.0], second_moment=[1.0, 4.0])
    >>> spectrum.loss, spectrum.sqnorm, spectrum.variance, spectrum.noise_scale
    (1.5, 2.0, 3.0, 1.5)

    Args:
        curvature: lambda, [D], above 0. A direction without curvature has no part in the loss:
            leave it out.
        noise: c, [D], variance of one sample's gradient, at least 0.
        second_moment: e = E theta^2, [D], of the distance to the minimum, at least 0.
        weight: w, [D], directions a bin, above 0; 1 each if left out.
        floor: loss at the minimum.

    Raises:
        ValueError: arrays that are not of one length, or hold a number outside its range.
    """

    curvature: Array
    noise: Array
    second_moment: Array
    weight: Array
    floor: float

    def __init__(
        self,
        *,
        curvature: Numbers,
        noise: Numbers,
        second_moment: Numbers,
        weight: Numbers = 1.0,
        floor: float = 0.0,
    ) -> None:
        given = {"curvature": curvature, "noise": noise, "second_moment": second_moment}
        arrays = {name: np.array(values, dtype=np.float64) for name, values in given.items()}
        ones = np.ones(arrays["curvature"].shape)
        arrays["weight"] = np.array(weight, dtype=np.float64) * ones
        for name, values in _checked(arrays).items():
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if not math.isfinite(floor):
            raise ValueError(f"floor is a finite loss, as in floor=0.0; got {floor!r}.")
        object.__setattr__(self, "floor", floor)

    @classmethod
    def power_law(
        cls,
        dimensions: int,
        *,
        curvature_exponent: float,
        start_exponent: float,
        curvature: float = 1.0,
        start: float = 1.0,
        noise: float = 1.0,
        noise_exponent: float | None = None,
        floor: float = 0.0,
        bins: int = 2000,
    ) -> Self:
        """Powers of the index i = 1 ... dimensions of a direction.

        lambda = curvature i^-p, e = start i^-q, c = noise i^-r. Beyond the first few hundred
        directions neighbours share a bin, so that `bins` bounds the work and not the dimensions.

        >>> spectrum = Spectrum.power_law(4, curvature_exponent=1.0, start_exponent=0.0)
        >>> spectrum.curvature.round(3).tolist(), round(spectrum.loss, 3)
        ([1.0, 0.5, 0.333, 0.25], 1.042)

        Args:
            dimensions: of the weights, at least 1.
            curvature_exponent: p.
            start_exponent: q.
            curvature, start, noise: those of the first direction.
            noise_exponent: r; as the curvature's if left out, which is what one sample's gradients
                do where a likelihood has its maximum.
            floor: loss at the minimum.
            bins: how many at most.

        Raises:
            ValueError: no dimension or bin, or numbers that `Spectrum` refuses.
        """
        if not (dimensions >= 1 and bins >= 1):
            raise ValueError(f"at least one dimension in one bin; got {dimensions} in {bins}.")
        index, weight = _binned(dimensions, bins)
        r = curvature_exponent if noise_exponent is None else noise_exponent
        return cls(
            curvature=curvature * index**-curvature_exponent,
            noise=noise * index**-r,
            second_moment=start * index**-start_exponent,
            weight=weight,
            floor=floor,
        )

    @property
    def loss(self) -> float:
        """The expected loss."""
        return self.floor + 0.5 * float(self.weight @ (self.curvature * self.second_moment))

    @property
    def sqnorm(self) -> float:
        """The expected squared norm of the true gradient."""
        return float(self.weight @ (self.curvature**2 * self.second_moment))

    @property
    def variance(self) -> float:
        """The variance of one sample's gradient, tr Sigma."""
        return float(self.weight @ self.noise)

    @property
    def noise_scale(self) -> float:
        """The simple noise scale, tr Sigma / |G|^2, in samples."""
        return noise_scale(variance=self.variance, sqnorm=self.sqnorm)

    @property
    def curvature_noise_scale(self) -> float:
        """The noise scale that weighs by the curvature, tr(H Sigma) / G'HG, in samples."""
        return noise_scale(
            variance=float(self.weight @ (self.curvature * self.noise)),
            sqnorm=float(self.weight @ (self.curvature**3 * self.second_moment)),
        )

    @property
    def max_lr(self) -> float:
        """The rate at which plain gradient descent ceases to fall, 2 / lambda_max."""
        return 2.0 / float(self.curvature.max())


def _binned(dimensions: int, bins: int) -> tuple[Array, Array]:
    """(index, how many share it): every index by itself while bins last, then geometric ones."""
    if dimensions <= bins:
        return np.arange(1.0, dimensions + 1.0), np.ones(dimensions)
    edges = np.unique(np.geomspace(1.0, dimensions + 1.0, bins + 1).round())
    first, last = edges[:-1], edges[1:] - 1.0
    return np.sqrt(first * last), last - first + 1.0


def _checked(arrays: dict[str, Array]) -> dict[str, Array]:
    shapes = {name: values.shape for name, values in arrays.items()}
    shape = shapes["curvature"]
    if len(shape) != 1 or not shape[0] or set(shapes.values()) != {shape}:
        raise ValueError(
            f"A spectrum has one number of each for a bin, as in {EXAMPLE}; got {shapes}."
        )
    for name, values in arrays.items():
        least = "above 0" if name in ("curvature", "weight") else "at least 0"
        inside = values > 0.0 if least == "above 0" else values >= 0.0
        if not (inside & np.isfinite(values)).all():
            wrong = values[~(inside & np.isfinite(values))][0]
            raise ValueError(f"{name} holds finite numbers {least}, as in {EXAMPLE}; got {wrong}.")
    return arrays
