"""Compare the answers of several methods for the critical batch size, and report its change.

Two intervals that share only a bound do not overlap. An interval from branches starts at a batch
size that holds and ends at the first batch size that is too large, so the upper bound itself is
outside of it. For the confidence intervals of the other methods, a shared bound is an exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from largebatch.analysis.efficiency import Range
from largebatch.workbench.studies.critical.result import Critical
from largebatch.workbench.studies.critical.settings import CriticalMethod
from largebatch.workbench.studies.critical.values import CriticalBatch

ALONG: tuple[CriticalMethod, ...] = ("noise", "branches")
"""Methods that give an answer for each piece of the run."""

NAMES: Mapping[CriticalMethod, str] = {
    "noise": "noise scale",
    "branches": "branches",
    "sweep": "sweep",
}
"""Method -> name of the method on the page."""

FAMILIES = ("McCandlish", "Iiduka")
"""Names of the two curves that the sweep fits."""

FACTORS = (2, 4)
"""Ratios of two answers up to which agreement is counted."""


def pieces(found: Critical, method: CriticalMethod) -> list[CriticalBatch]:
    """Return the answers of a method for the pieces of the run, from the first piece on."""
    (answer,) = (a for a in found.answers if a.method == method)
    return [finding for finding in answer.findings if finding.start is not None]


def curves(found: Critical) -> list[CriticalBatch]:
    """Return the answers of the sweep; empty if the sweep was not measured."""
    return [f for answer in found.answers if answer.method == "sweep" for f in answer.findings]


def change(first: Range | None, last: Range | None) -> str:
    """Return what the intervals of the first and the last piece show about the change.

    >>> change(Range(value=60.0, low=40.0, high=90.0), Range(value=200.0, low=100.0, high=400.0))
    'rises'
    """
    if first is None or last is None:
        return "not known to change"
    if last.low >= first.high:
        return "rises"
    return "falls" if last.high <= first.low else "not shown to change"


def factor(one: Range, other: Range) -> float | None:
    """Return the larger answer divided by the smaller one; None if one has no upper bound.

    >>> factor(Range(value=60.0, low=40.0, high=160.0), Range(value=16.0, low=0.0, high=64.0))
    3.75
    """
    if math.isinf(one.high) or math.isinf(other.high):
        return None
    low, high = sorted((one.value, other.value))
    return high / low


def _clause(seen: str) -> str:
    """Return the result of `change` as the predicate of a sentence."""
    return f"is {seen}" if seen.startswith("not") else seen


def overlap(one: Range, other: Range) -> bool:
    """Return whether two intervals share a batch size; one without upper bound easily does."""
    return one.low < other.high and other.low < one.high


def agreement(pairs: Sequence[tuple[CriticalBatch, CriticalBatch]]) -> str:
    """Return how well the answers of two methods agree, in words.

    Args:
        pairs: Answers of the first and the second method, one pair or more.
    """
    both = [(a.batch, b.batch) for a, b in pairs if a.batch is not None and b.batch is not None]
    apart = [found for found in (factor(a, b) for a, b in both) if found is not None]
    sides = [change(a, b) for a, b in both]
    shared = (
        f"The intervals overlap in {sum(overlap(a, b) for a, b in both)} of {len(both)} pairs. The "
        f"interval of the second method lies above that of the first in {sides.count('rises')} "
        f"pairs and below it in {sides.count('falls')}."
    )
    missing = len(pairs) - len(both)
    if missing:
        shared += f" In {missing} more pairs, one of the two answers is unknown."
    if not apart:
        return f"No pair has two upper bounds. {shared}"
    factors = ", ".join(f"{found:.2g}" for found in apart)
    within = " and ".join(
        f"at most {most} in {sum(found <= most for found in apart)}" for most in FACTORS
    )
    return (
        f"In {len(apart)} pairs both intervals have an upper bound, and the larger answer divided "
        f"by the smaller one is {factors}. The ratio is {within} of these pairs. {shared}"
    )


def verdict(found: Critical) -> str:
    """Return what the table shows about the change along the run and the agreement of methods."""
    words = []
    for method in ALONG:
        first, *_, last = pieces(found, method)
        words.append(
            f"- According to the {NAMES[method]}, the critical batch size "
            f"{_clause(change(first.batch, last.batch))}. First piece: {first}. Last piece: {last}."
        )
    pairs = list(zip(pieces(found, "noise"), pieces(found, "branches"), strict=True))
    words.append(
        "- The noise scale (first method) is compared with branches (second method) for each piece "
        f"of the run. {agreement(pairs)}"
    )
    for name, curve in zip(FAMILIES, curves(found), strict=False):
        firsts = [(curve, pieces(found, method)[0]) for method in ALONG]
        words.append(
            f"- The sweep with the curve of {name} (first method) is compared with the noise scale "
            f"and with branches (second methods) for the first piece of the run. "
            f"{agreement(firsts)}"
        )
    return "\n".join(words)


def summary(every: Sequence[Critical]) -> str:
    """Return the first paragraph of the page: the question, and what all workloads show."""
    words = [
        "Does the critical batch size rise along training, and do three methods agree about it?"
    ]
    for method in ALONG:
        ends = [
            (pieces(found, method)[0].batch, pieces(found, method)[-1].batch) for found in every
        ]
        seen = [change(first, last) for first, last in ends]
        rising = [found.name for found, what in zip(every, seen, strict=True) if what == "rises"]
        words.append(
            f"According to the {NAMES[method]}, the critical batch size is shown to rise from the "
            f"first to the last piece of the run in {len(rising)} of {len(every)} workloads "
            f"({', '.join(rising) or 'none'}) and to fall in {seen.count('falls')}."
        )
    both = [
        pair
        for found in every
        for pair in zip(pieces(found, "noise"), pieces(found, "branches"), strict=True)
    ]
    words.append(
        "The noise scale (first method) is compared with branches (second method) for all pieces "
        f"of all workloads. {agreement(both)}"
    )
    return " ".join(words)
