"""Parse texts such as "5ep" or "10M" as the length of a run, a number of samples or noise scales.

The error about an invalid text names the argument that received the text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from largebatch.core.amounts import Unit, parse_amount
from largebatch.core.measurement import Budget

FORMS = (
    "5ep (epochs), 10k, 500K, 2M, 1.5B or 1e6 (training samples), 500steps (optimizer steps), "
    "300base (steps of the base batch)"
)
"""Supported forms of a length, for help texts and errors."""

MAX_SAMPLES = 10**13
"""Largest supported number of samples of a run.

A float represents every whole number up to 2^53. The limit is smaller than 2^53, because a fraction
of a run is already inexact for numbers of samples below 2^53.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Hold the length of a run as an amount in a unit, before the size of an epoch is known.

    >>> Length(amount=5, unit="epochs").base_steps(dataset_size=320, base_batch_size=16)
    100.0
    >>> Length(amount=5, unit="epochs").budget(dataset_size=320, base_batch_size=16).unit
    'base_steps'

    Args:
        amount: Number of units, above 0; a whole number for samples and optimizer steps.
        unit: Unit of the amount. An epoch is N / B0 base steps for EVERY method, where N is the
            size of the data set and B0 the base batch size. An epoch uses N samples, except with a
            method that measures its gain: AdaScale uses more.
    """

    amount: float
    unit: Unit

    def budget(self, *, dataset_size: int, base_batch_size: int) -> Budget:
        """Return the budget of a run at any scale; epochs are converted into base steps.

        Args:
            dataset_size: Number N of samples in an epoch.
            base_batch_size: Base batch size B0, in samples.
        """
        if self.unit == "samples":
            return Budget(samples=round(self.amount))
        if self.unit == "steps":
            return Budget(steps=round(self.amount))
        return Budget(
            base_steps=self.base_steps(dataset_size=dataset_size, base_batch_size=base_batch_size)
        )

    def base_steps(self, *, dataset_size: int, base_batch_size: int) -> float:
        """Return the number T of base steps of a run of this length at scale 1.

        Args:
            dataset_size: Number N of samples in an epoch.
            base_batch_size: Base batch size B0, in samples.
        """
        if self.unit == "epochs":
            return self.amount * dataset_size / base_batch_size
        return self.amount / base_batch_size if self.unit == "samples" else float(self.amount)


def parse_length(text: str, *, argument: str = "budget") -> Length:
    """Return the length of a run that a text such as "5ep" describes.

    >>> parse_length("500k")
    Length(amount=500000.0, unit='samples')

    Args:
        text: Text in one of the `FORMS`.
        argument: Name of the argument whose value the text is, for errors.

    Raises:
        ValueError: The text has none of the `FORMS`, the amount is not above 0 and finite, or the
            amount is not a whole number of samples or steps.
    """
    found = parse_amount(text)
    if found is None:
        raise ValueError(f"{argument}={text!r} is not the length of a run. Write {FORMS}.")
    amount = found.value
    if not 0.0 < amount < math.inf:
        raise ValueError(
            f"{argument}={text!r} was given, but the length of a run must be above 0 and finite. "
            f"Write {FORMS}."
        )
    if found.unit in ("samples", "steps") and found.whole is None:
        raise ValueError(
            f"{argument}={text!r} is not a whole number of {found.unit}. Write {FORMS}."
        )
    return Length(amount=amount, unit=found.unit)


def parse_samples(text: str, *, argument: str = "budget") -> int:
    """Return the number of samples that a text such as "1.5B" describes.

    >>> parse_samples("1.5B"), parse_samples("10M"), parse_samples("1e12")
    (1500000000, 10000000, 1000000000000)

    Args:
        text: Text that holds a number without a unit.
        argument: Name of the argument whose value the text is, for errors.

    Raises:
        ValueError: The text is not a whole number of samples from 1 to 10^13.
    """
    found = parse_amount(text)
    samples = found.whole if found is not None and found.unit == "samples" else None
    if samples is None or not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(
            f"{argument}={text!r} is not a whole number of samples from 1 to {MAX_SAMPLES:,}. "
            f"Pass a number such as {argument}=10M"
        )
    return samples


def parse_noise_scales(text: str, *, argument: str = "noise_scales") -> tuple[float, ...]:
    """Return one noise scale, or the two noise scales of the first steps and of the last steps.

    >>> parse_noise_scales("4000"), parse_noise_scales("500,20K")
    ((4000.0,), (500.0, 20000.0))

    Args:
        text: One number without the name of a unit, or two such numbers separated by a comma.
        argument: Name of the argument whose value the text is, for errors.

    Raises:
        ValueError: The text is not one or two numbers, or a number is not above 0 and finite.
    """
    amounts = [parse_amount(part) for part in text.split(",")]
    found = tuple([one.value for one in amounts if one is not None and one.unit == "samples"])
    if not 1 <= len(amounts) <= 2 or len(found) < len(amounts) or not _positive(found):
        raise ValueError(
            f"{argument}={text!r} is not one or two noise scales, each a number of samples above "
            f"0. Pass {argument}=4000 or, for the first and the last steps, {argument}=500,20K."
        )
    return found


def _positive(numbers: tuple[float, ...]) -> bool:
    return all(0.0 < number < math.inf for number in numbers)
