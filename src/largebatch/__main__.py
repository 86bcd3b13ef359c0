"""`python -m largebatch`, and the command `largebatch`."""

from __future__ import annotations

import os
import sys

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
    from largebatch.cli.main import cli

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    cli(prog_name="largebatch")


if __name__ == "__main__":
    main()
