"""Define the value that an estimate returns if the data are too few or too noisy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NotEnough:
    """State why the measured steps give no estimate yet, and which measurements are needed.

    >>> print(NotEnough(reason="5 measured steps", needed="at least 16"))
    not enough signal yet: 5 measured steps; needed: at least 16

    Args:
        reason: Reason why there is no estimate, such as the number of measured steps.
        needed: Condition for an estimate.
    """

    reason: str
    needed: str

    def __str__(self) -> str:
        return f"not enough signal yet: {self.reason}; needed: {self.needed}"
