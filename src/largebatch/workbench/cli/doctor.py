"""Define the command `doctor`, which checks a run without training."""

from __future__ import annotations

import click

from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json
from largebatch.workbench.runs.launcher import launched_rank


@click.command("doctor", cls=FunctionCommand)
@click.argument("workload")
@click.option(
    "--method",
    default="adascale",
    show_default=True,
    help="Method to check; run 'largebatch methods' for the names.",
)
@click.option(
    "--scale",
    default=1,
    show_default=True,
    help="Batch size as a multiple S of the base batch size.",
)
@as_json
def doctor_command(workload: str, *, method: str, scale: int, as_json: bool) -> int:
    """Check a run of WORKLOAD for silent errors, without training.

    The checks cover the loss, the model, the optimizer, the data and the overhead of measuring,
    and take a few seconds. Under torchrun, the checks run on all processes. The exit code is 1 if
    a finding is an error, and 0 otherwise.
    """
    from largebatch.workbench.cli import tables
    from largebatch.workbench.runs.doctor import doctor

    with interruptible("Nothing was saved. Run the same command again."):
        result = doctor(workload, method=method, scale=scale)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.doctor_table(result))
    return 0 if result.sound else 1
