"""How long a run is, as one writes it on the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from largebatch.core.measurement import Budget

FORMS = (
    "5ep (epochs), 10k, 500k or 2M (training samples), 500steps (optimizer steps), "
    "300base (steps of the base batch)"
)
"""What can be written, for help and errors."""

_UNITS: dict[str, Literal["epochs", "samples", "steps", "base_steps"]] = {
    "ep": "epochs",
    "": "samples",
    "k": "samples",
    "K": "samples",
    "M": "samples",
    "G": "samples",
    "steps": "steps",
    "base": "base_steps",
}
_NUMBER = r"(?:(?:[0-9]+_)*[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


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
    unit: Literal["epochs", "samples", "steps", "base_steps"]

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


def parse_length(text: str) -> Length:
    """The length that a text such as "5ep" names.

    >>> parse_length("500k")
    Length(amount=500000.0, unit='samples')

    Raises:
        ValueError: another form, an amount that is not positive and finite, or half a sample.
    """
    found = re.fullmatch(rf"(-?{_NUMBER})\s*([A-Za-z]*)", text.strip())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"There is no budget {text!r}. Forms: {FORMS}.")
    unit = _UNITS[found[2]]
    amount = float(found[1]) * _FACTORS.get(found[2], 1.0)
    if not 0.0 < amount < math.inf:
        raise ValueError(f"A budget is above 0 and finite; got {text!r}. Forms: {FORMS}.")
    if unit in ("samples", "steps") and amount != round(amount):
        raise ValueError(f"A budget in {unit} is a whole number; got {text!r}. Forms: {FORMS}.")
    return Length(amount=amount, unit=unit)
