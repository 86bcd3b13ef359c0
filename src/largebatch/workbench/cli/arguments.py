"""Translate the argument names in error messages into command-line options.

The functions that the commands call know Python arguments only, so an error names `budget=10`. On
the command line, the same error shows the option `--budget 10`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from largebatch.core.errors import LargeBatchError

_VALUE = r"""(?P<value>'[^']*'|"[^"]*"|\[[^\]]*\]|[\w.+-]*\w)?"""


class FunctionCommand(click.Command):
    """Run a command and translate the arguments in its error messages into options."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; in error messages of the package, replace arguments by options."""
        try:
            return super().invoke(ctx)
        except (ValueError, LargeBatchError) as error:
            if len(error.args) == 1 and isinstance(error.args[0], str):
                given = [ctx.params.get(str(p.name)) for p in self.params if _is_argument(p)]
                words = " ".join(one for one in given if isinstance(one, str)) or "..."
                error.args = (with_options(error.args[0], command=self, words=words),)
            raise


def _is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


def with_options(message: str, *, command: click.Command, words: str = "...") -> str:
    """Return the message with each `name=value` of the command written as an option.

    A call of the function behind the command, such as `lb.plan(..., budget=10)`, becomes a command
    line, and `load('package.module:function')` becomes the name of the workload. The arguments of
    other calls, as in `lb.Budget(samples=10)`, are not changed.

    >>> command = click.Command("plan", params=[click.Option(["--base-batch", "base_batch_size"])])
    >>> with_options("Pass base_batch_size=256.", command=command)
    'Pass --base-batch 256.'
    >>> with_options("lb.plan(..., base_batch_size=256)", command=command)
    'largebatch plan ... --base-batch 256'

    Args:
        message: Text of an error or of a note.
        command: Command whose options have the names of the function's arguments.
        words: Positional arguments of the command, for calls that become a command line.
    """
    options = {
        str(parameter.name): parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    if not options:
        return message
    message = re.sub(r"\bload\('([^']*)'\)", r"\1", message)
    own_call = rf"\blb\.(?:workbench\.)?{re.escape(command.name or '')}\(([^()]*)\)"
    message = re.sub(own_call, lambda call: _command_line(command, call[1], words=words), message)
    names = "|".join(map(re.escape, options))
    inside = _inside_calls(message)

    def shown(found: re.Match[str]) -> str:
        if found.start() in inside:
            return found[0]
        return _option_of(options, name=found["name"], value=found["value"] or "")

    return re.sub(rf"\b(?P<name>{names})={_VALUE}", shown, message)


def _command_line(command: click.Command, arguments: str, *, words: str) -> str:
    """Return a call's arguments as a command line; its options are translated later."""
    parts = [part.strip() for part in arguments.split(",")]
    shown = [words if part == "..." else part for part in parts]
    return " ".join(["largebatch", command.name or "", *shown])


def _option_of(options: Mapping[str, click.Option], *, name: str, value: str) -> str:
    """Return one option with its value as typed on the command line; a set flag has no value."""
    option = options[name]
    if option.is_flag and value == "True":
        return option.opts[0]
    plain = re.sub(r"['\"]", "", value).strip("[]").replace(", ", ",")
    return f"{option.opts[0]} {plain}".rstrip()


def _inside_calls(message: str) -> frozenset[int]:
    """Return the positions in a message that lie between the parentheses of a call."""
    opened: list[bool] = []  # for each open parenthesis: does a name precede it?
    inside = set()
    for at, letter in enumerate(message):
        if letter == "(":
            opened.append(message[max(at - 1, 0)].isidentifier())
        elif letter == ")" and opened:
            opened.pop()
        elif any(opened):
            inside.add(at)
    return frozenset(inside)
