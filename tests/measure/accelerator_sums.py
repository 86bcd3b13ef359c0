"""Sums that treat the CPU as an accelerator, whose every read and copy counts."""

from __future__ import annotations

from largebatch.measure.sums import Sums


def as_on_accelerator(sums: Sums) -> Sums:
    """Let sums read and copy as they do on an accelerator that has float64."""
    sums._adds_on_host = False
    sums._scalars._at_hand, sums._scalars._wide = False, True
    return sums
