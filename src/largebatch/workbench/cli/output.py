"""Where results go: tables as wide as the terminal, or JSON."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from largebatch.core.codec import encode

UNWATCHED_WIDTH = 200
"""Columns where stdout is a file or a pipe: nothing is wrapped."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def console_of_results() -> Console:
    """Stdout, for tables."""
    console = Console()
    return console if console.is_terminal else Console(width=UNWATCHED_WIDTH)


def say(console: Console, text: str) -> None:
    """Prints a sentence as it is."""
    console.print(Text(text))


def print_json(result: Any) -> None:
    """Prints a result as JSON."""
    click.echo(json.dumps(encode(result), indent=1, allow_nan=False))
