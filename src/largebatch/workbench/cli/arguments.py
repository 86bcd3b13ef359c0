"""Messages that name a function's arguments, in the words of the command line.

The functions that commands call know no options: an error of theirs says `budget=10`. A command
whose options are declared with the arguments' names shows it as `--budget 10`.
"""

from __future__ import annotations

import re
from typing import Any

import click

from largebatch.core.errors import LargeBatchError

_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|\[[^\]]*\]|[\w.+-]*\w)?"""


class FunctionCommand(click.Command):
    """A command that shows the arguments of the function it calls as its own options."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; the errors of the package come with options in their messages."""
        try:
            return super().invoke(ctx)
        except (ValueError, LargeBatchError) as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                error.args = (with_options(error.args[0], command=self),)
            raise


def with_options(message: str, *, command: click.Command) -> str:
    """Return a message with each `name=value` of the command's parameters as an option.

    The arguments of a call, as in `lb.Budget(samples=10)`, stay: they are Python to paste.

    >>> command = click.Command("plan", params=[click.Option(["--base-batch", "base_batch_size"])])
    >>> with_options("Pass base_batch_size=256.", command=command)
    'Pass --base-batch 256.'

    Args:
        message: of an error, or a note.
        command: whose options are declared under the arguments' names.
    """
    options = {
        str(parameter.name): parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    if not options:
        return message
    names = "|".join(map(re.escape, options))

    inside = _inside_calls(message)

    def shown(found: re.Match[str]) -> str:
        if found.start() in inside:
            return found[0]
        value = (found["value"] or "").strip("'\"[]").replace(", ", ",")
        return f"{options[found['name']]} {value}".rstrip()

    return re.sub(rf"\b(?P<name>{names})={_VALUE}", shown, message)


def _inside_calls(message: str) -> frozenset[int]:
    """Return the positions in a message that stand between the parentheses of a call."""
    opened: list[bool] = []  # of each parenthesis that is open, whether a name stands before it
    inside = set()
    for at, letter in enumerate(message):
        if letter == "(":
            opened.append(message[max(at - 1, 0)].isidentifier())
        elif letter == ")" and opened:
            opened.pop()
        elif any(opened):
            inside.add(at)
    return frozenset(inside)
