"""Define the commands `methods` and `workloads`, which list the known names."""

from __future__ import annotations

import click

from largebatch.workbench.cli.output import console_of_results


@click.command("methods")
def methods_command() -> None:
    """List all methods with a summary and a reference."""
    from largebatch.methods import METHODS
    from largebatch.workbench.cli.list_tables import methods_table

    console_of_results().print(methods_table(METHODS.values()))


@click.command("workloads")
def workloads_command() -> None:
    """List all workloads with their base settings."""
    from largebatch.workbench.cli.list_tables import workloads_table
    from largebatch.workbench.workloads import load, names

    console_of_results().print(workloads_table(map(load, names())))
