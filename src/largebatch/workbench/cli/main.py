"""Define the command line of `largebatch` from its commands.

Each command imports heavy modules only when it runs, so that --help needs neither torch nor rich.
"""

from __future__ import annotations

import click

from largebatch.core.version import __version__
from largebatch.workbench.cli.cite import cite_command
from largebatch.workbench.cli.compare import compare_command, demo_command
from largebatch.workbench.cli.critical import critical_command
from largebatch.workbench.cli.doctor import doctor_command
from largebatch.workbench.cli.faults import Cli
from largebatch.workbench.cli.methods import methods_command, workloads_command
from largebatch.workbench.cli.plan import plan_command, schedule_command
from largebatch.workbench.cli.probe import probe_command
from largebatch.workbench.cli.records import replay_command, report_command
from largebatch.workbench.cli.train import train_command


@click.group(
    cls=Cli, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="largebatch")
@click.pass_context
def cli(context: click.Context) -> None:
    """Measure gradient noise; set the learning rate and batch size from it.

    Start with: largebatch demo
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    *(cite_command, compare_command, critical_command, demo_command, doctor_command),
    *(methods_command, plan_command, probe_command, replay_command, report_command),
    *(schedule_command, train_command, workloads_command),
):
    cli.add_command(command)
