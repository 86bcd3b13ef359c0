"""The commands that list what may be named: `methods` and `workloads`."""

from __future__ import annotations

import click

from largebatch.workbench.cli.output import console_of_results


@click.command("methods")
def methods_command() -> None:
    """List the methods: name, what each does, reference."""
    from largebatch.methods import METHODS
    from largebatch.workbench.cli.list_tables import methods_table

    console_of_results().print(methods_table(METHODS.values()))


@click.command("workloads")
def workloads_command() -> None:
    """List the workloads and their settings at the base batch."""
    from largebatch.workbench.cli.list_tables import workloads_table
    from largebatch.workbench.workloads import load, names

    console_of_results().print(workloads_table(map(load, names())))
