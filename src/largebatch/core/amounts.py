"""Numbers with a unit, as a user writes them: `5ep`, `10k`, `1.5B`, `1e6`, `500steps`.

    amount = number [K | M | B | G | T] [unit word]

K, M, B and T are powers of 1000, G is another letter for B, and either case will do. A number may
have underscores between its digits, decimals and an exponent. It is kept as a fraction, so that
0.1M is 100,000 and not a float beside it. This is the one parser of the package: whoever takes
amounts refuses units and sizes that mean nothing there.
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
"""The word after a number -> what is counted. A new unit is a line here and a member of `Unit`."""

FACTORS: Mapping[str, int] = {
    "": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12
}  # fmt: skip
"""The letter after a number -> what it multiplies the number by."""

MAX_LENGTH = 1000
"""Longest text that is read, in characters. Python itself refuses numbers of 4300 digits."""

_AMOUNT = re.compile(
    r"(?P<number>[+-]?(?:\d[\d_]*(?:\.(?:\d[\d_]*)?)?|\.\d[\d_]*)(?:E[+-]?0*\d(?:_?\d){0,2})?)"
    rf"\s*(?P<letter>[{''.join(FACTORS)}]?)\s*(?P<word>{'|'.join(WORDS)})",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number and what it counts.

    Args:
        number: of any sign and size; whoever asked for the amount checks it.
        unit: what is counted.
    """

    number: Fraction
    unit: Unit

    @property
    def value(self) -> float:
        """The nearest float, infinite if the number is larger than any."""
        try:
            return float(self.number)
        except OverflowError:
            return math.inf if self.number > 0 else -math.inf

    @property
    def whole(self) -> int | None:
        """The number if it is an integer, else None."""
        return int(self.number) if self.number.denominator == 1 else None


def parse_amount(text: str) -> Amount | None:
    """Return the amount that a text names, or None if it names none.

    >>> parse_amount("1.5B")
    Amount(number=Fraction(1500000000, 1), unit='samples')
    >>> parse_amount("0.25 ep").unit, parse_amount("five")
    ('epochs', None)

    Args:
        text: a number, a letter that multiplies it, and a word for the unit, with or without
            spaces between. Without a word samples are counted.
    """
    found = _AMOUNT.fullmatch(text.strip()) if len(text) <= MAX_LENGTH else None
    if found is None:
        return None
    number = Fraction(found["number"].replace("_", ""))
    factor = FACTORS[found["letter"].upper()]
    return Amount(number=number * factor, unit=WORDS[found["word"].lower()])
