"""Numbers of samples as one writes them on the command line."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from largebatch.rules.batch_steps import UNITS
from largebatch.workbench.planner.clock_run import MOST_BUDGET

_AMOUNT = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:[eE]\+?\d{1,3})?)([KMBGT]?)", re.ASCII)


def samples_of(text: str, *, option: str = "--budget") -> int:
    """The samples that a text names: 500k, 10M, 1.5B (or 1.5G), 1T, 1e12.

    >>> samples_of("1.5B"), samples_of("10M"), samples_of("1e12")
    (1500000000, 10000000, 1000000000000)

    Args:
        text: a number, and K, M, B, G or T for a power of 1000.
        option: what it was given for.

    Raises:
        ValueError: another form, part of a sample, nothing, or more than 10^13.
    """
    found = _AMOUNT.fullmatch(text.strip().upper().replace("E+", "E"))
    amount = Fraction(0)
    if found is not None:
        amount = Fraction(found[1].replace("_", "")) * {**UNITS, "G": 10**9}[found[2]]
    if not 1 <= amount <= MOST_BUDGET or amount.denominator != 1:
        raise ValueError(
            f"{option} is a whole number of samples up to {MOST_BUDGET:,}, as in {option} 10M, "
            f"1.5B or 1T; got {text!r}."
        )
    return int(amount)


def noise_scales_of(text: str) -> tuple[float, ...]:
    """One noise scale, or the first and the last of a run.

    >>> noise_scales_of("4000"), noise_scales_of("500,20K")
    ((4000.0,), (500.0, 20000.0))

    Raises:
        ValueError: another form, or a number that is not above 0.
    """
    try:
        found = tuple([_number(part) for part in text.split(",")])
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 2 or not all(0.0 < n < math.inf for n in found):
        raise ValueError(
            "A noise scale is a number of samples above 0, or two: that of the first steps and "
            f"that of the last ones, as in --noise-scale 500,20000; got {text!r}."
        )
    return found


def _number(text: str) -> float:
    stripped = text.strip().upper()
    unit = stripped[-1:] if stripped[-1:] in ("K", "M", "B", "T") else ""
    return float(stripped.removesuffix(unit)) * UNITS[unit]
