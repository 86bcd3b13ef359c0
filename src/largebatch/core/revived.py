"""The state of a run that an earlier version saved, in today's form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from largebatch.core.measurement import OF_THE_STEP, STATISTICS
from largebatch.core.rule import Chain

COUNTED_GRADIENTS = 1
"""The version of states whose averages counted small gradients. They count base batches now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """The state of an earlier version's rule in today's form.

    Args:
        state: of the rules, as plain values.
        anew: names of the rules whose averages begin anew.
    """

    state: Any
    anew: tuple[str, ...]


Revive = Callable[[Any, Chain, Any], Revived | None]
"""Makes today's state of the saved rule and state, in plain values, and of today's rule. None says
that the saved rule is another one."""


def wanted(measure: frozenset[str], *, version: int, needs: frozenset[str]) -> frozenset[str]:
    """Return the statistics for the coming step of a resumed run.

    If the rule of an earlier version asked for one that today's does not need, today's rule gets
    its own.

    >>> sorted(wanted(frozenset({"moments"}), version=1, needs=frozenset({"full_sqnorm"})))
    []

    Args:
        measure: what the saved run asked for.
        version: of its state.
        needs: of today's rule.
    """
    if version == COUNTED_GRADIENTS and not measure <= needs:
        measure = (measure & needs) | (needs & OF_THE_STEP)
    return measure & STATISTICS


def notice_of(anew: tuple[str, ...], *, step: int) -> str:
    """Return what the user is to know of averages that begin anew; "" for nothing.

    >>> notice_of((), step=7), notice_of(("AdaScale",), step=0)
    ('', '')

    Args:
        anew: names of the rules whose averages they are.
        step: at which the run resumes.
    """
    if not anew or not step:
        return ""
    begin = "it begins" if len(anew) == 1 else "they begin"
    return (
        f"This run was saved by largebatch 0.1. The averages of {' and '.join(anew)} count base "
        f"batches now, where they counted gradients, so {begin} to average anew at step {step}. "
        "Everything else resumes as it was saved. There is nothing to do."
    )
