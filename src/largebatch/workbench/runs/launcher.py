"""Read from the environment whether torchrun started this process, without importing torch."""

from __future__ import annotations

import os


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in os.environ


def launched_rank() -> int:
    """Return the rank that torchrun gave to this process, or 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))
