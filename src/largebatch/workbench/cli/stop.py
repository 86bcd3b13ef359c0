"""Announce on stderr that a run stops after its current step."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from largebatch.workbench.runs.launcher import launched, launched_rank

STOPPING = "Stopping: the current training step is finished, then the run is saved."
ALONE = " A second Ctrl-C stops the run at once, without saving."
"""Text that is left out under torchrun, because torchrun itself sends several signals."""


def announce_stop() -> None:
    """Write on stderr that the run stops, on the first rank only.

    A signal handler may call this function.

    The line is written directly to the file descriptor, because the signal may have interrupted a
    write to the buffers of Python or rich. The text starts on a new line, because
    rich erases the live line.
    """
    if launched_rank() > 0:
        return
    line = STOPPING if launched() else STOPPING + ALONE
    start = "\n" if sys.stderr.isatty() else ""
    with suppress(OSError):  # stderr may be closed; the run is saved anyway
        os.write(2, f"{start}{line}\n".encode())
