"""Describe a noisy quadratic loss by its eigen-directions, and the start of a run on this loss.

    loss     = floor + 1/2 * sum(w * lambda * e)     sqnorm      = sum(w * lambda^2 * e)
    variance = sum(w * c)                            noise scale = variance / sqnorm

For each direction, lambda is the curvature, e = E theta^2 is the second moment of the weights, c is
the variance of one sample's gradient, and w is the number of equal directions. The model assumes
that the loss stays quadratic and that the noise does not change along the run. The model says
nothing about the test loss.

Zhang, Li, Nado et al.: Which Algorithmic Choices Matter at Which Batch Sizes? Insights From a Noisy
Quadratic Model, 2019, study such a model. Only the abstract of their paper was read; the formulas
in this file are this library's own derivation.
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
    """Hold curvature, gradient noise and weights of a quadratic loss, in bins of equal directions.

    >>> spectrum = Spectrum(curvature=[1.0, 0.5], noise=[2.0, 1.0], second_moment=[1.0, 4.0])
    >>> spectrum.loss, spectrum.sqnorm, spectrum.variance, spectrum.noise_scale
    (1.5, 2.0, 3.0, 1.5)

    Args:
        curvature: Curvature lambda of each bin, [D], above 0. Leave out directions without
            curvature, because they do not change the loss.
        noise: Variance c of one sample's gradient, [D], at least 0.
        second_moment: Second moment e = E theta^2 of the distance to the minimum, [D], at least 0.
        weight: Number w of directions per bin, [D], above 0. The default weight is 1.
        floor: Loss at the minimum.

    Raises:
        ValueError: The arrays have different lengths, or a number is outside its range.
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
            raise ValueError(
                f"floor={floor!r} was given, but the loss at the minimum must be finite. Pass "
                "floor=0.0."
            )
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
        """Return a spectrum whose values are powers of the index i = 1 ... dimensions.

        lambda = curvature * i^-p, e = start * i^-q, c = noise * i^-r. With more dimensions than
        bins, neighboring directions share a bin, so the computation time depends on `bins` only.

        >>> spectrum = Spectrum.power_law(4, curvature_exponent=1.0, start_exponent=0.0)
        >>> spectrum.curvature.round(3).tolist(), round(spectrum.loss, 3)
        ([1.0, 0.5, 0.333, 0.25], 1.042)

        Args:
            dimensions: Number of directions, at least 1.
            curvature_exponent: Exponent p of the curvature.
            start_exponent: Exponent q of the second moment of the weights.
            curvature: Curvature of the first direction.
            start: Second moment of the weights in the first direction.
            noise: Variance of one sample's gradient in the first direction.
            noise_exponent: Exponent r of the noise. The default is r = p, because noise and
                curvature have the same exponent at the maximum of a likelihood.
            floor: Loss at the minimum.
            bins: Largest number of bins, at least 1.

        Raises:
            ValueError: The number of dimensions or of bins is below 1, or another number is outside
                its range.
        """
        if not (dimensions >= 1 and bins >= 1):
            raise ValueError(
                f"dimensions={dimensions} and bins={bins} were given, but both must be at least "
                "1. Pass dimensions=1000, bins=200."
            )
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
        """Return the expected loss at the start."""
        return self.floor + 0.5 * float(self.weight @ (self.curvature * self.second_moment))

    @property
    def sqnorm(self) -> float:
        """Return the expected squared norm of the true gradient at the start."""
        return float(self.weight @ (self.curvature**2 * self.second_moment))

    @property
    def variance(self) -> float:
        """Return the variance of one sample's gradient, tr Sigma."""
        return float(self.weight @ self.noise)

    @property
    def noise_scale(self) -> float:
        """Return the simple noise scale at the start, tr Sigma / |G|^2, in samples."""
        return noise_scale(variance=self.variance, sqnorm=self.sqnorm)

    @property
    def curvature_noise_scale(self) -> float:
        """Return the noise scale weighted by the curvature, tr(H Sigma) / G'HG, in samples."""
        return noise_scale(
            variance=float(self.weight @ (self.curvature * self.noise)),
            sqnorm=float(self.weight @ (self.curvature**3 * self.second_moment)),
        )

    @property
    def max_lr(self) -> float:
        """Return the stability limit 2 / lambda_max of the learning rate of gradient descent."""
        return 2.0 / float(self.curvature.max())


def _binned(dimensions: int, bins: int) -> tuple[Array, Array]:
    """Return the mean index of each bin and the number of directions in the bin.

    Each direction has its own bin if there are enough bins. If there are too few bins, the bins are
    spaced geometrically.
    """
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
            "A spectrum needs one-dimensional arrays of the same length, but the shapes "
            f"{shapes} were given. Example: {EXAMPLE}"
        )
    for name, values in arrays.items():
        least = "above 0" if name in ("curvature", "weight") else "at least 0"
        inside = values > 0.0 if least == "above 0" else values >= 0.0
        if not (inside & np.isfinite(values)).all():
            wrong = values[~(inside & np.isfinite(values))][0]
            raise ValueError(
                f"{name} holds the number {wrong}, but all numbers must be finite and {least}. "
                f"Example: {EXAMPLE}"
            )
    return arrays
