"""The command `probe`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, seed_option

if TYPE_CHECKING:
    from largebatch.studies.probe_result import ProbeResult


class ProbeCommand(click.Command):
    """The command `probe`, which names the command that `probe --by` became."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse `--by` with the line to paste, whatever else was given."""
        if any(word == "--by" or word.startswith("--by=") for word in args):
            raise ValueError(
                "largebatch probe --by is a command of its own now. Run: largebatch critical "
                f"{shlex.join(args)}"
            )
        return super().parse_args(ctx, args)


@click.command("probe", cls=ProbeCommand)
@click.argument("workload")
@click.option("--steps", type=int, help="Optimizer steps to measure over.")
@seed_option
@click.option("--scale", type=int, help="S: the batch is S base batches.")
@as_json
def probe_command(
    workload: str, *, steps: int | None, seed: int, scale: int | None, as_json: bool
) -> None:
    """Measure the noise scale of WORKLOAD: how large a batch pays.

    A short run; largebatch critical asks whole runs.
    """
    from largebatch.workbench.cli.study_tables import print_probe
    from largebatch.workbench.runs.distributed import alone

    alone("probe")
    result = run_probe(workload, steps=steps, seed=seed, scale=scale)
    print_json(result) if as_json else print_probe(result, console_of_results())


def run_probe(
    workload: str, *, steps: int | None = None, seed: int = 0, scale: int | None = None
) -> ProbeResult:
    """Probe a workload with a line of progress."""
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.studies.probe import probe_workload

    with interruptible("Start it again."), progress_on_stderr() as progress:
        count = progress.counting(f"probe of {workload}")
        return probe_workload(workload, steps=steps, seed=seed, scale=scale, progress=count)
