"""Define the command `cite`, which prints the papers of a method."""

from __future__ import annotations

import click


@click.command("cite")
@click.argument("method")
def cite_command(method: str) -> None:
    """Print the BibTeX entries of the papers that METHOD uses.

    `largebatch methods` lists the methods. In Python, lb.cite(rule) returns the BibTeX entries for
    a rule, a chain of rules or a run.
    """
    from largebatch.methods.citing import cite

    click.echo(cite(method))
