"""`python -m largebatch`, and the command `largebatch`."""

from __future__ import annotations

import sys

INSTALL = (
    "error: the command line needs click and rich. Install them: pip install 'largebatch[cli]'"
)


def main() -> None:
    """Runs the command line, or says how to install what it needs."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(INSTALL)
    from largebatch.cli.main import cli

    cli(prog_name="largebatch")


if __name__ == "__main__":
    main()
