"""What an estimate returns where the data tell nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class NotEnough:
    """Why a series of steps tells nothing yet, and what would.

    >>> print(NotEnough(reason="5 measured steps", needed="at least 16"))
    not enough signal yet: 5 measured steps; needed: at least 16
    """

    reason: str
    needed: str

    def __str__(self) -> str:
        return f"not enough signal yet: {self.reason}; needed: {self.needed}"
