"""Compute each micro-batch's share of the step's gradient from the samples and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from largebatch.core.errors import MicroBatchMissed
from largebatch.core.measurement import Source
from largebatch.measure.estimate import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedSizes:
    """Hold the samples and the weight that the user passed for one micro-batch.

    Args:
        samples: Number of samples in the micro-batch, at least 1; None if only a weight was passed.
        weight: Weight of the micro-batch's mean loss in the loss of the training step, above 0;
            None means that all weights are equal.
    """

    samples: float | None = None
    weight: float | None = None


def passed_sizes(samples: float | Tensor | None, weight: float | Tensor | None) -> PassedSizes:
    """Return the user's samples and weight of one micro-batch as plain numbers.

    >>> passed_sizes(8, 70)
    PassedSizes(samples=8.0, weight=70.0)

    Raises:
        ValueError: The number of samples is below 1, the weight is not above 0, or a value is not
            finite.
    """
    size = None if samples is None else float(samples)
    share = None if weight is None else float(weight)
    if size is not None and not 1.0 <= size < math.inf:
        raise ValueError(
            f"samples={size:g} was given, but a micro-batch has at least one sample. Pass the "
            "number of samples: control.micro_batch(len(x))."
        )
    if share is not None and not 0.0 < share < math.inf:
        raise ValueError(
            f"weight={share:g} was given, but the weight of a micro-batch must be above 0. Pass "
            "the number of tokens in the mean loss: control.micro_batch(len(x), weight=tokens). "
            "Skip a micro-batch without tokens, or pass weight=1e-6 if every rank must run a "
            "backward call."
        )
    return PassedSizes(samples=size, weight=share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Hold the samples and weights of the micro-batches on this rank, in their order.

    Args:
        samples: Number of samples in each micro-batch. weights: Weight of each micro-batch; empty
            if all weights are equal. groups: Number of separately measured gradients in each
            micro-batch: 1, or the number of examples or groups of examples.
    """

    samples: Sequence[float]
    weights: Sequence[float]
    groups: Sequence[int]

    @property
    def weight_of_each(self) -> Sequence[float]:
        """Return the weight of each micro-batch, or 1 for each if no weights were passed."""
        return self.weights or [1.0] * len(self.samples)

    def numbers(self) -> dict[str, float]:
        """Return the numbers that must be summed over the ranks for `parts_of`."""
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


def shares_of(
    passed: Sequence[PassedSizes], *, usual: Sequence[float], groups: Sequence[int]
) -> Shares:
    """Return the samples and the weights of the micro-batches on this rank.

    Args: passed: The user's samples and weight of each micro-batch; empty if the user passed
    neither samples nor weights. usual: Number of samples of each micro-batch, used if the user
    passed no samples. groups: Number of separately measured gradients in each micro-batch.

    Raises: MicroBatchMissed: The user passed samples for more or fewer micro-batches than were
    measured, or passed weights only for some of the micro-batches.
    """
    if passed and len(passed) != len(usual):
        raise MicroBatchMissed(
            f"control.micro_batch was called {len(passed)} times in this step, but {len(usual)} "
            "micro-batches had a backward call. Call control.micro_batch once for each "
            "micro-batch: control.micro_batch(len(x))."
        )
    samples = [
        size if one.samples is None else one.samples
        for one, size in zip(passed or [PassedSizes()] * len(usual), usual, strict=True)
    ]
    weights = [one.weight for one in passed if one.weight is not None]
    if len(weights) not in (0, len(usual)):
        raise MicroBatchMissed(missing_weights(passed=len(weights), parts=len(usual)))
    return Shares(samples=samples, weights=weights, groups=groups)


def equal_samples(sums: dict[str, float], *, batch_size: int) -> None:
    """Assume equal samples for all micro-batches in the sums of `Shares.numbers`, in place."""
    each = batch_size / sums["parts"]
    sums |= {
        "samples": batch_size,
        "groups per sample": sums["groups"] / each,
        "per sample": sums["parts"] / each,
    }


def missing_weights(*, passed: int, parts: int) -> str:
    """Return the text of the error for weights that only some micro-batches have."""
    return (
        f"A weight was passed for {passed} of the {parts} micro-batches of this step. Pass a "
        "weight for every micro-batch, or for no micro-batch: "
        "control.micro_batch(len(x), weight=tokens)."
    )


def parts_of(sums: Mapping[str, float], *, source: Source) -> Parts:
    """Return number, samples and weights of the separately measured gradients of all ranks.

    Micro-batch i has n_i samples, the weight w_i and k_i separately measured gradients. Each of the
    k_i gradients has the weight w_i / k_i and n_i / k_i samples. If the weights differ, as for
    tokens, the noise is measured per unit of weight. If all weights are equal, the noise is
    measured per sample.

    Args:
        sums: Sums of `Shares.numbers` over all ranks. Either all micro-batches have a weight, or no
            micro-batch has a weight. source: What the separately measured gradients belong to, such
            as "micro-batches".
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
