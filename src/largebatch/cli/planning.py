"""The command about runs that are not made yet: `plan`."""

from __future__ import annotations

import click

from largebatch.cli.output import as_json, console_of_results, print_json, say
from largebatch.cli.plan_tables import dry_run_table
from largebatch.commands.dry_run import DryRun, dry_run
from largebatch.commands.train import LARGEST_SCALE
from largebatch.planner.amounts import noise_scales_of, samples_of


@click.command("plan")
@click.option(
    "--dry-run",
    "schedule",
    metavar="SCHEDULE",
    help="Only the stages and steps of one: growth, linear-growth, warmup-growth, seesaw, smith, "
    'constant, cosine, steps such as "0:768 250B:1536", or a file.',
)
@click.option("--budget", metavar="SAMPLES", help="Such as 10M, 1.5B or 1T.")
@click.option("--base-batch", metavar="SAMPLES", help="B0, for which the base rate was tuned.")
@click.option(
    "--noise-scale", metavar="SAMPLES", help="Measured; two with a comma: at first and at last."
)
@click.option("--scale", default=1, show_default=True, help="Of a dry run: S of the first batch.")
@click.option("--out", metavar="FILE", help="Write the schedule, for largebatch train --schedule.")
@as_json
def plan_command(
    *,
    schedule: str | None,
    budget: str | None,
    base_batch: str | None,
    noise_scale: str | None,
    scale: int,
    out: str | None,
    as_json: bool,
) -> None:
    """Plan batch and rate of a run before it is made."""
    result = _dry_run(
        schedule or "",
        budget=budget,
        base_batch=base_batch,
        noise_scale=noise_scale,
        scale=scale,
        out=out,
    )
    if as_json:
        print_json(result)
        return
    console = console_of_results()
    console.print(dry_run_table(result))
    if out is not None:
        say(console, f"The schedule is in {out}: largebatch train WORKLOAD --schedule {out}")


def _dry_run(
    schedule: str,
    *,
    budget: str | None,
    base_batch: str | None,
    noise_scale: str | None,
    scale: int,
    out: str | None,
) -> DryRun:
    scales = noise_scales_of(noise_scale) if noise_scale is not None else ()
    if len(scales) > 1:
        raise ValueError("A dry run takes one noise scale, as in --noise-scale 4000.")
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"--scale is at least 1 and at most {LARGEST_SCALE:,}; got {scale}.")
    return dry_run(
        schedule,
        budget=samples_of(budget) if budget is not None else None,
        base_batch_size=samples_of(base_batch, option="--base-batch") if base_batch else None,
        noise_scale=scales[0] if scales else None,
        scale=scale,
        out=out,
    )
