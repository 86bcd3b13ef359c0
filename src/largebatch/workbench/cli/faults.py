"""Print an error of the command line as one red line and set the exit code.

The exit code is 2 for wrong arguments, 1 for a failure, 130 for Ctrl-C and 143 for SIGTERM. An
error that this package did not raise on purpose keeps its traceback, because the error is a bug of
the package or of the user's workload.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from largebatch.core.errors import LargeBatchError, NotFinite, RanksDisagree, Stopped
from largebatch.workbench.runs.launcher import launched_rank

PACKAGE = Path(__file__).parents[2]

ON_EVERY_RANK = (ValueError, NotFinite, RanksDisagree, Stopped, click.ClickException)
"""Errors that all ranks raise together, so that only the first rank prints them."""


class Interrupted(click.ClickException):
    """Report an interruption by Ctrl-C and what to do next."""

    exit_code = 130


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Turn an interruption by Ctrl-C into one error line that ends with the remedy."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"The command was interrupted. {remedy}") from None


class Cli(click.Group):
    """Run the commands and print each error as one line."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run a command and exit; with `standalone_mode=False`, errors reach the caller."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            result = super().main(args, standalone_mode=False, **extra)
        except Exception as error:
            line, code = error_line(error)
            if launched_rank() == 0 or not isinstance(error, ON_EVERY_RANK):
                _print(line)
            sys.exit(code)
        sys.exit(result if isinstance(result, int) else 0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command as click does; for an unknown name, suggest the closest command."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            raise click.UsageError(
                f"There is no command {name!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" The commands are {', '.join(self.list_commands(ctx))}.",
                ctx,
            )
        return super().resolve_command(ctx, args)


def error_line(error: Exception) -> tuple[str, int]:
    """Return the line that describes an error, and the exit code.

    >>> error_line(click.UsageError("No such option: --scal"))
    ('No such option: --scal. For help, run: largebatch --help', 2)

    Raises:
        Exception: An error that is a bug is raised again with its traceback.
    """
    if isinstance(error, click.Abort):
        return "The command was interrupted.", Interrupted.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "largebatch"
        message = error.format_message()
        stop = "" if message.endswith((".", "?")) else "."
        return f"{message}{stop} For help, run: {path} --help", error.exit_code
    if isinstance(error, click.ClickException):
        return error.format_message(), error.exit_code
    if isinstance(error, Stopped):
        return str(error), 128 + error.signal
    if isinstance(error, ValueError) and _raised_here(error):
        return str(error), 2
    if isinstance(error, (LargeBatchError, OSError)):
        return str(error), 1
    raise error


def _raised_here(error: ValueError) -> bool:
    """Return whether the innermost frame of the error's traceback lies in this package."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and PACKAGE in Path(frames[-1].filename).parents


def _print(line: str) -> None:
    from rich.console import Console
    from rich.text import Text

    rank = launched_rank()
    where = f" on rank {rank}" if rank else ""
    text = Text(f"error{where}: {' '.join(line.split())}", style="red")
    Console(stderr=True).print(text, soft_wrap=True)
