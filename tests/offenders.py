"""One test over many files: it fails once, with a line for each offender and what to do."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def assert_no_offenders(offenders: Iterable[str], *, remedy: str) -> None:
    """Fail if there is an offender, and list all of them.

    Args:
        offenders: one line for each, which opens with its `file:line`.
        remedy: what to do about an offender.
    """
    lines = list(offenders)
    if lines:
        pytest.fail("\n".join([f"{len(lines)} found. {remedy}", *lines]), pytrace=False)
