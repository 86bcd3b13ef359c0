"""Print results on stdout, either as tables as wide as the terminal or as JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import IO, TYPE_CHECKING, Any, cast

import click

from largebatch.core.codec import encode

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 120
"""Width in columns of output to a file or a pipe if the variable COLUMNS is not set."""

seed_option = click.option(
    "--seed", default=0, show_default=True, help="Seed of the initial weights and the sample order."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


class TrimmedLines:
    """Write text to stdout without the blanks at the ends of lines."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        """Write the text; blanks before a line break and at the end of the text are removed."""
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        """Flush stdout."""
        sys.stdout.flush()


def console_of_results() -> Console:
    """Return a console for results on stdout.

    A terminal sets the width itself. Output to a file or a pipe is COLUMNS wide, or `PIPE_WIDTH`
    if that variable is not set, and its lines end without blanks.
    """
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        return console
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) > 0 else PIPE_WIDTH
    return Console(file=cast("IO[str]", TrimmedLines()), width=width)


def print_text(console: Console, text: str) -> None:
    """Print a text as it is, without interpreting brackets as style marks."""
    from rich.text import Text

    console.print(Text(text))


def print_json(result: Any) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(encode(result), indent=1, allow_nan=False))
