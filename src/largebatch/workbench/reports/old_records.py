"""Explain differences between decisions in records of version 0.1 and today's decisions.

Before version 0.2, running averages counted micro-batch gradients. Since 0.2, running averages
count base batches, so a rule with running averages decides differently from the same measurements.
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
"""Pattern of the versions whose running averages counted micro-batch gradients."""


def recorded_note(record: Record) -> str:
    """Return a note if the rule in a record would decide differently today, else ""."""
    names = _old_averages(record)
    if not names:
        return ""
    return (
        f"This record was written by largebatch {record.header['version']}, in which the running "
        f"averages of {names} counted gradients. Since version 0.2, they count base batches, so a "
        "replay makes other decisions than those shown here."
    )


def replayed_note(record: Record, rule: Rule) -> str:
    """Return a note if a replay decides differently because of the record's version, else "".

    Args:
        record: Record, perhaps of an earlier version.
        rule: Rule that is replayed.
    """
    names = " and ".join(averaging_names(rule))
    if not names or not _old_averages(record):
        return ""
    return (
        f"This record was written by largebatch {record.header['version']}, in which the running "
        f"averages of {names} counted gradients. Since version 0.2, they count base batches, so "
        "today's decisions differ from the recorded ones. The record itself is intact."
    )


def _old_averages(record: Record) -> str:
    """Return the names of the rules in a record whose running averages counted gradients, or ""."""
    version = record.header.get("version")
    if not isinstance(version, str) or not COUNTED_GRADIENTS.match(version):
        return ""
    plain: Any = record.header.get("rule")
    if not isinstance(plain, Mapping):
        return ""
    try:
        rule = decode(Rule, plain, kinds=KINDS, where="the header's rule")
    except (RecordError, ValueError):  # a user-supplied rule, whose class is not registered here
        return ""
    return " and ".join(averaging_names(rule))
