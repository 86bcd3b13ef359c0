"""Where results go: tables as wide as the terminal, or JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from largebatch.core.codec import encode

if TYPE_CHECKING:
    from rich.console import Console

UNWATCHED_WIDTH = 200
"""Columns where stdout is a file or a pipe: nothing is wrapped."""

seed_option = click.option("--seed", default=0, show_default=True, help="Of model and samples.")

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def console_of_results() -> Console:
    """Return stdout, for tables."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=UNWATCHED_WIDTH)


def say(console: Console, text: str) -> None:
    """Print a sentence as it is."""
    from rich.text import Text

    console.print(Text(text))


def print_json(result: Any) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(encode(result), indent=1, allow_nan=False))
