"""Define the command `probe`, which measures the noise scale of a workload."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, seed_option

if TYPE_CHECKING:
    from largebatch.studies.probe_result import ProbeResult


class ProbeCommand(FunctionCommand):
    """Run `probe`; for the former option `--by`, raise an error that names the new command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as click does.

        Raises:
            ValueError: The option `--by` was given, which became a command in version 0.2.
        """
        if any(word == "--by" or word.startswith("--by=") for word in args):
            raise ValueError(
                "largebatch probe no longer has the option --by. The methods of --by are now in "
                f"the command 'critical'. Run: largebatch critical {shlex.join(args)}"
            )
        return super().parse_args(ctx, args)


@click.command("probe", cls=ProbeCommand)
@click.argument("workload")
@click.option("--steps", type=int, help="Number of optimizer steps to measure.")
@seed_option
@click.option("--scale", type=int, help="Batch size as a multiple S of the base batch size.")
@as_json
def probe_command(
    workload: str, *, steps: int | None, seed: int, scale: int | None, as_json: bool
) -> None:
    """Measure the gradient noise scale of WORKLOAD.

    The noise scale shows up to which batch size a larger batch saves steps. The probe is one short
    run. The command largebatch critical measures the critical batch size by whole training runs.
    """
    from largebatch.workbench.cli.study_tables import print_probe
    from largebatch.workbench.runs.distributed import alone

    alone("probe")
    result = run_probe(workload, steps=steps, seed=seed, scale=scale)
    print_json(result) if as_json else print_probe(result, console_of_results())


def run_probe(
    workload: str, *, steps: int | None = None, seed: int = 0, scale: int | None = None
) -> ProbeResult:
    """Probe a workload and show its progress on stderr."""
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.studies.probe import probe_workload

    restart = "Nothing was saved. Run the same command again."
    with interruptible(restart), progress_on_stderr() as progress:
        count = progress.counting(f"probe of {workload}")
        return probe_workload(workload, steps=steps, seed=seed, scale=scale, progress=count)
