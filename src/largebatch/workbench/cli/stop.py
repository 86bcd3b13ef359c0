"""What a signal is answered with, while the step in hand still takes its time."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from largebatch.workbench.runs.launcher import launched, launched_rank

STOPPING = "Stopping: the step in hand is finished and the run saved."
ALONE = " A second Ctrl-C ends it at once, without saving."
"""Not under torchrun, which itself sends several."""


def announce_stop() -> None:
    """Says so on stderr, on the first rank; a signal's handler may call it.

    The line goes past Python's and rich's buffers, which the signal may have come into, and below
    the live line, whose place rich clears.
    """
    if launched_rank() > 0:
        return
    line = STOPPING if launched() else STOPPING + ALONE
    start = "\n" if sys.stderr.isatty() else ""
    with suppress(OSError):  # nobody reads it any more; the run is saved all the same
        os.write(2, f"{start}{line}\n".encode())
