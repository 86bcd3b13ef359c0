"""Convert the saved state of an earlier version's run into today's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from largebatch.core.measurement import OF_THE_STEP, STATISTICS
from largebatch.core.rule import Chain

COUNTED_GRADIENTS = 1
"""Version of saved states whose averages counted gradients. Today's averages count base batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """Hold the state of an earlier version's rule in today's form.

    Args:
        state: State of the rules, as plain JSON values.
        anew: Names of the rules whose averages start again.
    """

    state: Any
    anew: tuple[str, ...]


Revive = Callable[[Any, Chain, Any], Revived | None]
"""Convert a saved rule and state (plain JSON values) to today's state of a given rule.

The function returns None if the saved rule differs from the given rule.
"""


def wanted(measure: frozenset[str], *, version: int, needs: frozenset[str]) -> frozenset[str]:
    """Return the names of the statistics that a resumed run measures in its next training step.

    If the saved rule requested a statistic that today's rule does not need, today's rule gets all
    the statistics that it needs.

    >>> sorted(wanted(frozenset({"moments"}), version=1, needs=frozenset({"full_sqnorm"})))
    []

    Args:
        measure: Names of the statistics that the saved run requested.
        version: Version of the saved state.
        needs: Names of the statistics and facts that today's rule needs.
    """
    if version == COUNTED_GRADIENTS and not measure <= needs:
        measure = (measure & needs) | (needs & OF_THE_STEP)
    return measure & STATISTICS


def notice_of(anew: tuple[str, ...], *, step: int) -> str:
    """Return the warning about averages that start again in a resumed run, or "" if none start
    again.

    >>> notice_of((), step=7), notice_of(("AdaScale",), step=0)
    ('', '')

    Args:
        anew: Names of the rules whose averages start again.
        step: Number of optimizer steps taken before the run was saved.
    """
    if not anew or not step:
        return ""
    return (
        "This run was saved by largebatch 0.1, where the averages of "
        f"{' and '.join(anew)} counted gradients. Averages count base batches now, so the averages "
        f"of {' and '.join(anew)} start again at step {step}. All other values resume as saved. "
        "You do not need to do anything."
    )
