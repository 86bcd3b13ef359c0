"""The command `doctor`: checks of a run, without training."""

from __future__ import annotations

import click

from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json
from largebatch.workbench.runs.launcher import launched_rank


@click.command("doctor")
@click.argument("workload")
@click.option("--method", default="adascale", show_default=True, help="See: largebatch methods.")
@click.option("--scale", default=1, show_default=True, help="S: the batch is S base batches.")
@as_json
def doctor_command(workload: str, *, method: str, scale: int, as_json: bool) -> int:
    """Look for what would go silently wrong in a run of WORKLOAD, without training.

    Loss, model, optimizer, data and the cost of measuring, in a few seconds; under torchrun over
    all processes. The exit code is 0, or 1 where a finding is an error.
    """
    from largebatch.workbench.cli import tables
    from largebatch.workbench.runs.doctor import doctor

    with interruptible("Start it again."):
        result = doctor(workload, method=method, scale=scale)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.doctor_table(result))
    return 0 if result.sound else 1
