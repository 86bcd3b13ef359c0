"""What a reader should know of a record that an earlier version wrote.

Until version 0.2 running averages counted small gradients. Now they count base batches, so a rule
that has averages decides otherwise about the same measurements.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from largebatch.core.codec import decode
from largebatch.core.errors import RecordError
from largebatch.core.rule import Rule
from largebatch.record import Record
from largebatch.rules.kinds import KINDS
from largebatch.rules.old_states import averaging_names

COUNTED_GRADIENTS = re.compile(r"0\.1(\.|$)")
"""Versions whose averages counted small gradients."""


def recorded_note(record: Record) -> str:
    """Return what to know of the decisions in a record; "" if its rule decides the same today."""
    names = _old_averages(record)
    if not names:
        return ""
    return (
        f"Recorded by largebatch {record.header['version']}, where the averages of {names} counted "
        "gradients. They count base batches since 0.2, so a replay decides otherwise than what is "
        "shown here."
    )


def replayed_note(record: Record, rule: Rule) -> str:
    """Return why a rule decides otherwise than the record says; "" if its version is not why.

    Args:
        record: which may be of an earlier version.
        rule: that is replayed.
    """
    names = " and ".join(averaging_names(rule))
    if not names or not _old_averages(record):
        return ""
    return (
        f"The record was written by largebatch {record.header['version']}. Since 0.2 the averages "
        f"of {names} count base batches, where they counted gradients, so today's decisions differ "
        "from the recorded ones. The record itself is sound."
    )


def _old_averages(record: Record) -> str:
    """Return the names of the rules in a record whose averages counted gradients, or ""."""
    version = record.header.get("version")
    if not isinstance(version, str) or not COUNTED_GRADIENTS.match(version):
        return ""
    plain: Any = record.header.get("rule")
    if not isinstance(plain, Mapping):
        return ""
    try:
        rule = decode(Rule, plain, kinds=KINDS, where="the header's rule")
    except (RecordError, ValueError):  # a user's own rule, whose class is not known here
        return ""
    return " and ".join(averaging_names(rule))
