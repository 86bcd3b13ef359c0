"""Parse numbers with a unit, as a user writes them: `5ep`, `10k`, `1.5B`, `1e6`, `500steps`.

    amount = number [K | M | B | G | T] [unit word]

The letters K, M, B and T stand for powers of 1000, and G means the same as B. Letters and words may
be in upper or lower case. A number may have decimals, an exponent, and underscores between the
digits. The number is kept as a fraction, so `0.1M` is exactly 100,000 without a rounding error. All
modules of largebatch parse amounts with this parser. Each caller rejects the units and sizes that
are invalid for its argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["samples", "epochs", "steps", "base_steps"]

WORDS: Mapping[str, Unit] = {"": "samples", "ep": "epochs", "steps": "steps", "base": "base_steps"}
"""Words that may follow a number, each with its unit. Add a new unit to `Unit`, too."""

FACTORS: Mapping[str, int] = {
    "": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12
}  # fmt: skip
"""Letters that may follow a number, each with the factor by which it multiplies the number."""

MAX_LENGTH = 1000
"""Longest text that is parsed, in characters. Python itself rejects numbers of 4300 digits."""

_AMOUNT = re.compile(
    r"(?P<number>[+-]?(?:\d[\d_]*(?:\.(?:\d[\d_]*)?)?|\.\d[\d_]*)(?:E[+-]?0*\d(?:_?\d){0,2})?)"
    rf"\s*(?P<letter>[{''.join(FACTORS)}]?)\s*(?P<word>{'|'.join(WORDS)})",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Hold a number and its unit.

    Args:
        number: Number of units, of any sign and size. The caller checks the range of the number.
        unit: Unit of the number.
    """

    number: Fraction
    unit: Unit

    @property
    def value(self) -> float:
        """Return the nearest float, or infinity if the number is larger than every float."""
        try:
            return float(self.number)
        except OverflowError:
            return math.inf if self.number > 0 else -math.inf

    @property
    def whole(self) -> int | None:
        """Return the number as an int if it is an integer, else None."""
        return int(self.number) if self.number.denominator == 1 else None


def parse_amount(text: str) -> Amount | None:
    """Return the amount that a text describes, or None if the text is no amount.

    >>> parse_amount("1.5B")
    Amount(number=Fraction(1500000000, 1), unit='samples')
    >>> parse_amount("0.25 ep").unit, parse_amount("five")
    ('epochs', None)

    Args:
        text: Number, then an optional letter that multiplies it, then an optional word for the
            unit. Spaces between number, letter and word are allowed. A text without a unit counts
            samples.
    """
    found = _AMOUNT.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    number = Fraction(found["number"].replace("_", ""))
    factor = FACTORS[found["letter"].upper()]
    return Amount(number=number * factor, unit=WORDS[found["word"].lower()])
