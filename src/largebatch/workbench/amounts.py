"""What a text stands for: the length of a run, a number of samples, noise scales.

Each function reads its text by `core.amounts` and refuses what means nothing for it. Its errors
name the argument that the text was given for.
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
"""How a length can be written, for help and errors."""

MAX_SAMPLES = 10**13
"""Most samples of a run that are counted. Beyond 2^53 a float misses whole samples, and a fraction
of the run does so long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """An amount in a unit, before the size of an epoch is known.

    >>> Length(amount=5, unit="epochs").base_steps(dataset_size=320, base_batch_size=16)
    100.0
    >>> Length(amount=5, unit="epochs").budget(dataset_size=320, base_batch_size=16).unit
    'base_steps'

    Args:
        amount: above 0; samples and optimizer steps are whole.
        unit: what is counted. An epoch is N / B0 base steps for EVERY method: a method with the
            fixed clock then uses N samples an epoch, as at scale 1, while AdaScale, whose clock
            counts its gain, uses more.
    """

    amount: float
    unit: Unit

    def budget(self, *, dataset_size: int, base_batch_size: int) -> Budget:
        """The budget of one run at any scale: epochs become base steps, the rest stays.

        Args:
            dataset_size: N, samples in an epoch.
            base_batch_size: B0, in samples.
        """
        if self.unit == "samples":
            return Budget(samples=round(self.amount))
        if self.unit == "steps":
            return Budget(steps=round(self.amount))
        return Budget(
            base_steps=self.base_steps(dataset_size=dataset_size, base_batch_size=base_batch_size)
        )

    def base_steps(self, *, dataset_size: int, base_batch_size: int) -> float:
        """T, the base steps of a run of this length at scale 1.

        Args:
            dataset_size: N, samples in an epoch.
            base_batch_size: B0, in samples.
        """
        if self.unit == "epochs":
            return self.amount * dataset_size / base_batch_size
        return self.amount / base_batch_size if self.unit == "samples" else float(self.amount)


def parse_length(text: str, *, argument: str = "budget") -> Length:
    """Return the length that a text such as "5ep" names.

    >>> parse_length("500k")
    Length(amount=500000.0, unit='samples')

    Args:
        text: one of `FORMS`.
        argument: that the text was given for; errors name it.

    Raises:
        ValueError: another form, an amount that is not positive and finite, or half a sample.
    """
    found = parse_amount(text)
    if found is None:
        raise ValueError(f"{argument}={text!r} is no length of a run. Write {FORMS}.")
    amount = found.value
    if not 0.0 < amount < math.inf:
        raise ValueError(f"{argument}={text!r} is not above 0 and finite. Write {FORMS}.")
    if found.unit in ("samples", "steps") and found.whole is None:
        raise ValueError(
            f"{argument}={text!r} is not a whole number of {found.unit}. Write {FORMS}."
        )
    return Length(amount=amount, unit=found.unit)


def parse_samples(text: str, *, argument: str = "budget") -> int:
    """Return the number of samples that a text names.

    >>> parse_samples("1.5B"), parse_samples("10M"), parse_samples("1e12")
    (1500000000, 10000000, 1000000000000)

    Args:
        text: a number without a unit word.
        argument: that the text was given for; errors name it.

    Raises:
        ValueError: another form, part of a sample, nothing, or more than 10^13.
    """
    found = parse_amount(text)
    samples = found.whole if found is not None and found.unit == "samples" else None
    if samples is None or not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(
            f"{argument}={text!r} is not a whole number of samples from 1 to {MAX_SAMPLES:,}. "
            f"Write {argument}=10M, 1.5B or 1e12."
        )
    return samples


def parse_noise_scales(text: str, *, argument: str = "noise_scales") -> tuple[float, ...]:
    """Return one noise scale, or that of the first and that of the last steps of a run.

    >>> parse_noise_scales("4000"), parse_noise_scales("500,20K")
    ((4000.0,), (500.0, 20000.0))

    Args:
        text: one number without a unit word, or two with a comma between.
        argument: that the text was given for; errors name it.

    Raises:
        ValueError: another form, or a number that is not above 0 and finite.
    """
    amounts = [parse_amount(part) for part in text.split(",")]
    found = tuple([one.value for one in amounts if one is not None and one.unit == "samples"])
    if not 1 <= len(amounts) <= 2 or len(found) < len(amounts) or not _positive(found):
        raise ValueError(
            f"{argument}={text!r} is not one or two noise scales, each a number of samples above "
            f"0. Write {argument}=4000 or, for the first and the last steps, {argument}=500,20K."
        )
    return found


def _positive(numbers: tuple[float, ...]) -> bool:
    return all(0.0 < number < math.inf for number in numbers)
