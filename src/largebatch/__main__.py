"""Start the command line: `python -m largebatch` or the command `largebatch`."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

INSTALL = (
    "error: The command line requires the packages click and rich, but at least one of them is not "
    "installed. Install both: pip install 'largebatch[cli]'"
)


def main() -> None:
    """Run the command line. If click or rich is missing, exit with the command that installs it.

    The current directory is added to `sys.path`, so that the user's own modules can be imported.
    Python adds the same directory for `python -m largebatch`.
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
    """End a process that torchrun started, and skip the interpreter's cleanup at exit.

    During the interpreter's cleanup, a gloo thread that still releases a tensor aborts the process
    (torch 2.13, pytorch/pytorch#179291). Then torchrun reports a finished run as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
