"""Measure gradients: meters, the taps that observe them and the statistics computed from them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from largebatch.core.lazy import lazy_names

if TYPE_CHECKING:
    from largebatch.measure.blocks import BlockNorms as BlockNorms
    from largebatch.measure.coordinates import CoordinateNoiseScale as CoordinateNoiseScale
    from largebatch.measure.examples.per_example import PerExample as PerExample
    from largebatch.measure.full_gradient import FullGradient as FullGradient
    from largebatch.measure.meter import Meter as Meter
    from largebatch.measure.preconditioned import PreconditionedNorms as PreconditionedNorms
    from largebatch.measure.squared_norms import SquaredNorms as SquaredNorms
    from largebatch.measure.taps import Detached as Detached
    from largebatch.measure.taps import Flat as Flat
    from largebatch.measure.taps import LeafHooks as LeafHooks
    from largebatch.measure.temporal import TemporalMoments as TemporalMoments

NAMES: Mapping[str, str] = {
    "BlockNorms": "largebatch.measure.blocks",
    "CoordinateNoiseScale": "largebatch.measure.coordinates",
    "Detached": "largebatch.measure.taps",
    "Flat": "largebatch.measure.taps",
    "FullGradient": "largebatch.measure.full_gradient",
    "LeafHooks": "largebatch.measure.taps",
    "Meter": "largebatch.measure.meter",
    "PerExample": "largebatch.measure.examples.per_example",
    "PreconditionedNorms": "largebatch.measure.preconditioned",
    "SquaredNorms": "largebatch.measure.squared_norms",
    "TemporalMoments": "largebatch.measure.temporal",
}

__all__ = [*NAMES]

if not TYPE_CHECKING:  # type checkers read the imports above
    __getattr__ = lazy_names(__name__, NAMES)


def __dir__() -> list[str]:
    """Return all public names, including those that are not imported yet."""
    return sorted(__all__)
