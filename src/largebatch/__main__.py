"""`python -m largebatch`, and the command `largebatch`."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

INSTALL = (
    "error: the command line needs click and rich. Install them: pip install 'largebatch[cli]'"
)


def main() -> None:
    """Runs the command line, or says how to install what it needs.

    Modules of the current directory are found, as `python -m largebatch` finds them.
    """
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(INSTALL)
    from largebatch.workbench.cli.main import cli

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    try:
        cli(prog_name="largebatch")
    except SystemExit as end:
        if "RANK" in os.environ and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> NoReturn:
    """Ends a process that torchrun started, without the interpreter's own clearing up: a thread of
    gloo that still drops a tensor then aborts the process (torch 2.13, pytorch/pytorch#179291),
    and torchrun takes a run that is done for one that failed."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
