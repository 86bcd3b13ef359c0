"""Compute rank correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; an infinite value (a diverged run) has the last rank."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, from 0 for the smallest; equal values share their mean rank.

    >>> ranks([0.3, 0.1, 0.3])
    [1.5, 0.0, 1.5]
    """
    ordered = sorted(values)
    return [ordered.index(x) + 0.5 * (ordered.count(x) - 1) for x in values]
