"""What torchrun says of this process, read from the environment without torch."""

from __future__ import annotations

import os


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in os.environ


def launched_rank() -> int:
    """Return this process's rank from torchrun; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))
