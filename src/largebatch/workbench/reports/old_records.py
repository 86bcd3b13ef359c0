"""Explain differences between decisions in records of version 0.1 and today's decisions.

In version 0.1, the length of a running average was a number of micro-batch gradients. Since version
0.2, the length is a number of base batches, so a rule with running averages makes other decisions
from the same measurements than in version 0.1.
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
"""Pattern of the versions that count the length of running averages in micro-batch gradients."""


def recorded_note(record: Record) -> str:
    """Return a note if this version's rule would not repeat the decisions of a record, else ""."""
    names = _old_averages(record)
    if not names:
        return ""
    return (
        f"This record was written by largebatch {record.header['version']}, which counted the "
        f"length of the running averages of {names} in gradients. Since version 0.2, the length is "
        "counted in base batches, so a replay makes other decisions than those on this page."
    )


def replayed_note(record: Record, rule: Rule) -> str:
    """Return a note if a replay makes other decisions than the record because of the version, else
    "".

    Args:
        record: Record, perhaps of an earlier version.
        rule: Rule that is replayed.
    """
    names = " and ".join(averaging_names(rule))
    if not names or not _old_averages(record):
        return ""
    return (
        f"This record was written by largebatch {record.header['version']}, which counted the "
        f"length of the running averages of {names} in gradients. Since version 0.2, the length is "
        "counted in base batches, so the replayed decisions differ from the recorded decisions. "
        "The record itself is intact."
    )


def _old_averages(record: Record) -> str:
    """Return the names of a version 0.1 record's rules that have running averages, or ""."""
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
