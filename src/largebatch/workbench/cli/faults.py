"""Errors on the command line: one red line with cause and remedy, and an exit code.

2 for what was asked for wrongly, 1 for what went wrong, 130 for an interruption, 143 for SIGTERM.
An error that this package did not raise on purpose keeps its traceback: it is a bug, here or in a
user's own workload.
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
"""Errors that all ranks raise alike, so that the first one tells them for all."""


class Interrupted(click.ClickException):
    """Ctrl-C, with what to do about it."""

    exit_code = 130


@contextmanager
def interruptible(remedy: str) -> Iterator[None]:
    """Turn Ctrl-C into one line that names the remedy."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted. {remedy}") from None


class Cli(click.Group):
    """A group of commands whose errors are one line each."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Runs a command and exits; without `standalone_mode`, errors are left to the caller."""
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
        """As click does, with the closest command for an unknown one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            raise click.UsageError(
                f"There is no command {name!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" Known: {', '.join(self.list_commands(ctx))}.",
                ctx,
            )
        return super().resolve_command(ctx, args)


def error_line(error: Exception) -> tuple[str, int]:
    """The line that tells an error, and the exit code.

    >>> error_line(click.UsageError("No such option: --scal"))
    ('No such option: --scal See: largebatch --help', 2)

    Raises:
        Exception: the error itself, where it is a bug.
    """
    if isinstance(error, click.Abort):
        return "interrupted.", Interrupted.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx is not None else "largebatch"
        return f"{error.format_message()} See: {path} --help", error.exit_code
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
    """Whether this package raised it, as it does for each bad argument."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and PACKAGE in Path(frames[-1].filename).parents


def _print(line: str) -> None:
    from rich.console import Console
    from rich.text import Text

    rank = launched_rank()
    where = f" on rank {rank}" if rank else ""
    text = Text(f"error{where}: {' '.join(line.split())}", style="red")
    Console(stderr=True).print(text, soft_wrap=True)
