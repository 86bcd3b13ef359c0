"""The command about runs that are not made yet: `plan`."""

from __future__ import annotations

from typing import Any

import click

from largebatch.workbench.cli.output import as_json, console_of_results, print_json, say
from largebatch.workbench.cli.pictures.comparison import check_picture
from largebatch.workbench.cli.pictures.plan import draw_plan
from largebatch.workbench.cli.plan_tables import dry_run_table, plan_table
from largebatch.workbench.planner.amounts import noise_scales_of, samples_of
from largebatch.workbench.planner.dry_run import DryRun, dry_run
from largebatch.workbench.planner.plan import Plan
from largebatch.workbench.planner.planned import planned
from largebatch.workbench.runs.options import LARGEST_SCALE


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
@click.option(
    "--record",
    metavar="FILE",
    help="Of a run, to which the forecast is fitted; says the base batch.",
)
@click.option("--latency", type=float, metavar="SECONDS", help="Of a step, whatever its batch.")
@click.option("--throughput", type=float, metavar="SAMPLES", help="A second, of one worker.")
@click.option("--workers", default=1, show_default=True, help="That share a batch.")
@click.option("--memory-limit", metavar="SAMPLES", help="Largest batch of one worker.")
@click.option(
    "--minimise",
    type=click.Choice(["steps", "time", "samples"]),
    default="steps",
    show_default=True,
    help="steps or time: with a loss near the least one at the budget. samples: to the loss of the "
    "best usual schedule.",
)
@click.option(
    "--max-lr",
    type=float,
    help="Largest factor on the base rate; by default the stable or seen one.",
)
@click.option(
    "--within", default=1.0, show_default=True, help="Percent of loss above the least one."
)
@click.option("--stages", default=6, show_default=True, help="Of the schedule, at most 40.")
@click.option(
    "--loss-exponent",
    default=0.5,
    show_default=True,
    help="s of a loss that falls as steps^-s without noise; two noise scales or a record tell it.",
)
@click.option("--scale", default=1, show_default=True, help="Of a dry run: S of the first batch.")
@click.option("--out", metavar="FILE", help="Write the schedule, for largebatch train --schedule.")
@click.option("--plot", metavar="FILE", help="Draw the plan, as PNG, PDF or SVG.")
@as_json
def plan_command(
    *, schedule: str | None, as_json: bool, out: str | None, plot: str | None, **options: Any
) -> None:
    """Plan batch and rate of a run before it is made.

    The schedule with the fewest steps, the least time or the fewest samples, forecast on a noisy
    quadratic that has the measured noise scale, or is fitted to a recorded run, beside the usual
    schedules.
    """
    console = console_of_results()
    if schedule is not None:
        if plot is not None:
            raise ValueError("A dry run has no forecast to draw; leave out --plot.")
        counted = _dry_run(schedule, out=out, **options)
        print_json(counted) if as_json else console.print(dry_run_table(counted))
    else:
        if plot is not None:
            check_picture(plot)
        found = _planned(out=out, **options)
        if plot is not None:
            draw_plan(found, plot)
        print_json(found) if as_json else console.print(plan_table(found))
    if as_json:
        return
    if out is not None:
        say(console, f"The schedule is in {out}: largebatch train WORKLOAD --schedule {out}")
    if plot is not None:
        say(console, f"The picture is in {plot}.")


def _planned(
    *,
    budget: str | None,
    base_batch: str | None,
    noise_scale: str | None,
    memory_limit: str | None,
    within: float,
    loss_exponent: float,
    scale: int,
    **options: Any,
) -> Plan:
    if budget is None:
        raise ValueError("A plan needs its budget in samples: largebatch plan --budget 10M")
    if scale != 1:
        raise ValueError("--scale is of a dry run alone; a plan finds the first batch itself.")
    return planned(
        budget=samples_of(budget),
        base_batch_size=_samples(base_batch, "--base-batch"),
        noise_scales=noise_scales_of(noise_scale) if noise_scale is not None else (),
        memory_limit=_samples(memory_limit, "--memory-limit"),
        within=within / 100.0,
        exponent=loss_exponent,
        **options,
    )


def _samples(text: str | None, option: str) -> int | None:
    return None if text is None else samples_of(text, option=option)


def _dry_run(
    schedule: str,
    *,
    budget: str | None,
    base_batch: str | None,
    noise_scale: str | None,
    memory_limit: str | None,
    scale: int,
    out: str | None,
    **unused: Any,
) -> DryRun:
    scales = noise_scales_of(noise_scale) if noise_scale is not None else ()
    if len(scales) > 1:
        raise ValueError("A dry run takes one noise scale, as in --noise-scale 4000.")
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"--scale is at least 1 and at most {LARGEST_SCALE:,}; got {scale}.")
    return dry_run(
        schedule,
        budget=_samples(budget, "--budget"),
        base_batch_size=_samples(base_batch, "--base-batch"),
        most=_samples(memory_limit, "--memory-limit"),
        noise_scale=scales[0] if scales else None,
        scale=scale,
        out=out,
    )
