"""Commands and options are a promise: they change on purpose, in the same commit as this list."""

from __future__ import annotations

from pathlib import Path

import click

from largebatch.workbench.cli.main import cli

FROZEN = Path(__file__).parents[2] / "cli_surface.txt"


def surface() -> list[str]:
    """A line for each command and for each of its arguments and options, with the default."""
    lines = []
    for name, command in sorted(cli.commands.items()):
        lines.append(name)
        for parameter in command.params:
            shown = "/".join(parameter.opts)
            if isinstance(parameter, click.Argument):
                lines.append(f"{name} {shown.upper()}")
            else:
                given = parameter.default
                plain = isinstance(given, (int, str)) and not isinstance(given, bool)
                lines.append(f"{name} {shown}" + (f" = {given}" if plain else ""))
    return lines


def test_the_commands_and_options_are_those_of_the_frozen_list() -> None:
    frozen, found = FROZEN.read_text().splitlines(), surface()
    assert found == frozen, (
        f"added {sorted(set(found) - set(frozen))}, removed {sorted(set(frozen) - set(found))}. If "
        f"that is meant, say it in CHANGELOG.md and change {FROZEN.name}."
    )
