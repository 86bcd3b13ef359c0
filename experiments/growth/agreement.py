"""What answers to the critical batch say of its course, and beside one another.

An interval of branches begins with a batch that surely holds and ends before one that surely is too
large, so two that share no more than an end do not overlap; for the others an end has no weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from largebatch.analysis.efficiency import Range
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.settings import CriticalMethod
from largebatch.workbench.studies.critical.values import CriticalBatch

ALONG: tuple[CriticalMethod, ...] = ("noise", "branches")
"""The methods that answer for each piece."""

NAMES: Mapping[CriticalMethod, str] = {
    "noise": "noise scale",
    "branches": "branches",
    "sweep": "sweep",
}
FAMILIES = ("McCandlish", "Iiduka")

FACTORS = (2, 4)
"""Within which two methods are said to agree."""


def pieces(found: Critical, method: CriticalMethod) -> list[CriticalBatch]:
    """Along the run, from its beginning."""
    (answer,) = (a for a in found.answers if a.method == method)
    return [finding for finding in answer.findings if finding.start is not None]


def curves(found: Critical) -> list[CriticalBatch]:
    """Of the sweep, or none where it was not measured."""
    return [f for answer in found.answers if answer.method == "sweep" for f in answer.findings]


def change(first: Range | None, last: Range | None) -> str:
    """What the intervals of the first and of the last piece show.

    >>> change(Range(value=60.0, low=40.0, high=90.0), Range(value=200.0, low=100.0, high=400.0))
    'rises'
    """
    if first is None or last is None:
        return "not known to change"
    if last.low >= first.high:
        return "rises"
    return "falls" if last.high <= first.low else "not shown to change"


def factor(one: Range, other: Range) -> float | None:
    """The larger over the smaller; None where one has no upper end, and so is no more than a bound.

    >>> factor(Range(value=60.0, low=40.0, high=160.0), Range(value=16.0, low=0.0, high=64.0))
    3.75
    """
    if math.isinf(one.high) or math.isinf(other.high):
        return None
    low, high = sorted((one.value, other.value))
    return high / low


def overlap(one: Range, other: Range) -> bool:
    """Whether they share a batch; one without an upper end does so easily."""
    return one.low < other.high and other.low < one.high


def agreement(pairs: Sequence[tuple[CriticalBatch, CriticalBatch]]) -> str:
    """Of pairs that two methods give, in words.

    Args:
        pairs: one or more.
    """
    both = [(a.batch, b.batch) for a, b in pairs if a.batch is not None and b.batch is not None]
    apart = [found for found in (factor(a, b) for a, b in both) if found is not None]
    sides = [change(a, b) for a, b in both]
    shared = (
        f"the intervals overlap in {sum(overlap(a, b) for a, b in both)} of {len(both)}, the "
        f"second's lies above in {sides.count('rises')}, below in {sides.count('falls')}"
    )
    missing = len(pairs) - len(both)
    if missing:
        shared += f"; in {missing} one of the two is unknown"
    if not apart:
        return f"no pair with two upper ends; {shared}"
    factors = ", ".join(f"{found:.2g}" for found in apart)
    within = [f"within {most} in {sum(found <= most for found in apart)}" for most in FACTORS]
    return f"factors {factors} ({', '.join(within)} of {len(apart)} with upper ends); {shared}"


def verdict(found: Critical) -> str:
    """What the table shows of the rise, and of the methods beside one another."""
    words = []
    for method in ALONG:
        first, *_, last = pieces(found, method)
        words.append(
            f"By {NAMES[method]}, from the first piece, {first}, to the last, {last}: "
            f"{change(first.batch, last.batch)}."
        )
    beside = list(zip(pieces(found, "noise"), pieces(found, "branches"), strict=True))
    words.append(f"Noise scale and branches, over pieces: {agreement(beside)}.")
    for name, curve in zip(FAMILIES, curves(found), strict=False):
        firsts = [(curve, pieces(found, method)[0]) for method in ALONG]
        words.append(
            f"The sweep by {name}, beside noise scale and branches of the first piece: "
            f"{agreement(firsts)}."
        )
    return " ".join(words)


def summary(every: Sequence[Critical]) -> str:
    """Over all workloads."""
    words = []
    for method in ALONG:
        ends = [
            (pieces(found, method)[0].batch, pieces(found, method)[-1].batch) for found in every
        ]
        seen = [change(first, last) for first, last in ends]
        rising = [found.name for found, what in zip(every, seen, strict=True) if what == "rises"]
        words.append(
            f"By {NAMES[method]} the critical batch is shown to rise from the first piece to the "
            f"last in {len(rising)} of {len(every)} workloads ({', '.join(rising) or 'none'}), to "
            f"fall in {seen.count('falls')}."
        )
    beside = [
        pair
        for found in every
        for pair in zip(pieces(found, "noise"), pieces(found, "branches"), strict=True)
    ]
    words.append(f"Noise scale and branches, over all pieces: {agreement(beside)}.")
    return " ".join(words)
