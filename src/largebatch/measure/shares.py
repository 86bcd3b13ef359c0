"""How the parts of a step enter its gradient: their samples and weights, as the user told them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from largebatch.core.errors import MicroBatchMissed
from largebatch.core.measurement import Source
from largebatch.measure.estimate import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the user told of one micro-batch.

    Args:
        samples: in it, at least 1; None if only a weight was told.
        weight: of its mean loss in the step's loss, above 0; None means that all weights are equal.
    """

    samples: float | None = None
    weight: float | None = None


def told_of(samples: float | Tensor | None, weight: float | Tensor | None) -> Told:
    """Return what the user told of one micro-batch, as plain numbers; the host reads a tensor.

    >>> told_of(8, 70)
    Told(samples=8.0, weight=70.0)

    Raises:
        ValueError: samples below 1, a weight that is not above 0, or a value that is not finite.
    """
    size = None if samples is None else float(samples)
    share = None if weight is None else float(weight)
    if size is not None and not 1.0 <= size < math.inf:
        raise ValueError(
            f"A micro-batch has at least one sample; got {size:g}. Pass the number of samples: "
            "control.micro_batch(len(x))."
        )
    if share is not None and not 0.0 < share < math.inf:
        raise ValueError(
            f"The weight of a micro-batch is a number above 0; got {share:g}. Pass the tokens of "
            "its mean loss: control.micro_batch(len(x), weight=tokens). Leave out a micro-batch "
            "without tokens, or, where every rank needs its backward, pass weight=1e-6."
        )
    return Told(samples=size, weight=share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The samples and weights of this rank's parts, in their order.

    Args:
        samples: of each part.
        weights: of each part; empty if all are equal.
        groups: in how many pieces each part was measured: 1, or its examples.
    """

    samples: Sequence[float]
    weights: Sequence[float]
    groups: Sequence[int]

    @property
    def weight_of_each(self) -> Sequence[float]:
        """Return the weight of each part; 1 if none was told."""
        return self.weights or [1.0] * len(self.samples)

    def numbers(self) -> dict[str, float]:
        """Return what `parts_of` needs, to be summed over the ranks."""
        pairs = list(zip(self.groups, self.samples, strict=True))
        return {
            "parts": len(self.samples),
            "samples": sum(self.samples),
            "weight": sum(self.weight_of_each),
            "weight squared": sum(weight**2 for weight in self.weight_of_each),
            "weighted": len(self.weights),
            "groups": sum(self.groups),
            "groups per sample": sum(groups / samples for groups, samples in pairs),
            "per sample": sum(1.0 / samples for samples in self.samples),
        }


def shares_of(told: Sequence[Told], *, usual: Sequence[float], groups: Sequence[int]) -> Shares:
    """Return the shares of a rank's parts.

    Args:
        told: one for each part, or nothing.
        usual: samples of each part where they were not told.
        groups: pieces of each part.

    Raises:
        MicroBatchMissed: another number of micro-batches told than measured, or weights told for
            some of them only.
    """
    if told and len(told) != len(usual):
        raise MicroBatchMissed(
            f"control.micro_batch was called {len(told)} times in this step, but {len(usual)} "
            "micro-batches had a backward. Call it once for each: control.micro_batch(len(x))."
        )
    samples = [
        size if one.samples is None else one.samples
        for one, size in zip(told or [Told()] * len(usual), usual, strict=True)
    ]
    weights = [one.weight for one in told if one.weight is not None]
    if len(weights) not in (0, len(usual)):
        raise MicroBatchMissed(missing_weights(told=len(weights), parts=len(usual)))
    return Shares(samples=samples, weights=weights, groups=groups)


def equal_samples(sums: dict[str, float], *, batch_size: int) -> None:
    """Give all parts of all ranks equal samples of the batch, in the sums of `Shares.numbers`."""
    each = batch_size / sums["parts"]
    sums |= {
        "samples": batch_size,
        "groups per sample": sums["groups"] / each,
        "per sample": sums["parts"] / each,
    }


def missing_weights(*, told: int, parts: int) -> str:
    """Return the text of the error for weights that were told for some parts only."""
    return (
        f"A weight was passed for {told} of the {parts} micro-batches of this step. Pass one for "
        "every micro-batch, or for none: control.micro_batch(len(x), weight=tokens)."
    )


def parts_of(sums: Mapping[str, float], *, source: Source) -> Parts:
    """Return how the parts of all ranks enter the step's gradient.

    With n_i samples, k_i pieces and weight w_i of part i: a piece has the weight w_i / k_i and
    n_i / k_i samples. Weights that differ are the unit of the noise, as tokens are; if all weights
    are equal, samples are.

    Args:
        sums: of `Shares.numbers` over all ranks; either all parts have a weight or none.
        source: where the parts came from.
    """
    weight, count = sums["weight"], round(sums["groups"])
    equal = abs(sums["parts"] * sums["weight squared"] / weight**2 - 1.0) < 1e-9
    each = weight / sums["parts"]
    return Parts(
        count=count,
        samples=sums["samples"],
        units=sums["samples"] if equal else weight,
        weight=weight,
        weight_per_unit=each * sums["groups per sample"] if equal else count,
        squared_weight_per_unit=each**2 * sums["per sample"] if equal else weight,
        source=source,
    )
