"""Rank correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of ranks; what diverged is last."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def ranks(values: Sequence[float]) -> list[float]:
    """From 0 on, of the least value; equal ones share theirs."""
    ordered = sorted(values)
    return [ordered.index(x) + 0.5 * (ordered.count(x) - 1) for x in values]
