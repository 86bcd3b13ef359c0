"""The commands about runs that are not made yet: `plan` and `schedule`."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from largebatch.workbench.amounts import parse_noise_scales, parse_samples
from largebatch.workbench.cli.arguments import FunctionCommand, with_options
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, say

if TYPE_CHECKING:
    from largebatch.workbench.planner.request import PlanRequest

budget_option = click.option("--budget", metavar="SAMPLES", help="Such as 10M, 1.5B or 1e12.")
base_batch_option = click.option(
    "--base-batch",
    "base_batch_size",
    metavar="SAMPLES",
    help="B0, for which the base rate was tuned.",
)
out_option = click.option(
    "--out", metavar="FILE", help="Write the schedule, for largebatch train --schedule."
)


class PlanCommand(FunctionCommand):
    """`plan`, which names the command that counts a schedule's steps."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as click does.

        Raises:
            ValueError: `--dry-run`, which was an option until 0.1.
        """
        if any(word.partition("=")[0] == "--dry-run" for word in args):
            raise ValueError(
                "largebatch plan --dry-run is a command of its own now. Run: "
                f"{_schedule_line(args)}"
            )
        return super().parse_args(ctx, args)


@click.command("plan", cls=PlanCommand)
@budget_option
@base_batch_option
@click.option(
    "--noise-scale",
    "noise_scales",
    metavar="SAMPLES",
    help="Measured; two with a comma: at first and at last.",
)
@click.option(
    "--record",
    metavar="FILE",
    help="Of a run, to which the forecast is fitted; says the base batch.",
)
@click.option("--latency", type=float, metavar="SECONDS", help="Of a step, whatever its batch.")
@click.option("--throughput", type=float, metavar="SAMPLES", help="Per second, of one worker.")
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
    "exponent",
    default=0.5,
    show_default=True,
    help="s of a loss that falls as steps^-s without noise; two noise scales or a record tell it.",
)
@out_option
@click.option("--plot", metavar="FILE", help="Draw the plan, as PNG, PDF or SVG.")
@as_json
@click.pass_context
def plan_command(
    context: click.Context, /, *, as_json: bool, out: str | None, plot: str | None, **options: Any
) -> None:
    """Plan batch and rate of a run before it is made.

    The schedule with the fewest steps, the least time or the fewest samples, forecast on a noisy
    quadratic that has the measured noise scale, or is fitted to a recorded run. The usual
    schedules are forecast as well.
    """
    from largebatch.workbench.cli.pictures.comparison import check_picture
    from largebatch.workbench.cli.pictures.plan import draw_plan
    from largebatch.workbench.cli.plan_tables import plan_table
    from largebatch.workbench.planner.plan import plan
    from largebatch.workbench.planner.schedule_file import schedule_of, write_schedule

    if plot is not None:
        check_picture(plot)
    found = plan(_request(**options))
    if out is not None:
        write_schedule(schedule_of(found.rule, found.table), out)
    if plot is not None:
        draw_plan(found, plot)
    found = replace(found, notes=_notes(found.notes, context))
    console = console_of_results()
    print_json(found) if as_json else console.print(plan_table(found))
    if out is not None and not as_json:
        say(console, _written(out))
    if plot is not None and not as_json:
        say(console, f"The picture is in {plot}.")


@click.command("schedule", cls=FunctionCommand)
@click.argument("schedule")
@budget_option
@base_batch_option
@click.option("--noise-scale", metavar="SAMPLES", help="Bounds the batches of seesaw and smith.")
@click.option(
    "--max-batch", "max_batch_size", metavar="SAMPLES", help="Largest batch of seesaw and smith."
)
@click.option("--scale", default=1, show_default=True, help="S: the first batch in base batches.")
@out_option
@as_json
@click.pass_context
def schedule_command(
    context: click.Context, /, schedule: str, *, as_json: bool, **options: Any
) -> None:
    """Count the stages and steps of SCHEDULE over a budget, without training.

    SCHEDULE is growth, linear-growth, warmup-growth, seesaw, smith, constant, cosine, a string of
    steps such as "0:768 250B:1536", or a schedule's file.
    """
    from largebatch.workbench.cli.plan_tables import count_table
    from largebatch.workbench.planner.count import count_schedule
    from largebatch.workbench.runs.options import LARGEST_SCALE

    out, scale, noise_scale = options["out"], options["scale"], options["noise_scale"]
    scales = () if noise_scale is None else parse_noise_scales(noise_scale, argument="noise_scale")
    if len(scales) > 1:
        raise ValueError(
            f"noise_scale={noise_scale!r} was given, but a schedule takes one noise scale. Pass "
            "noise_scale=4000"
        )
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale={scale} was given, but it is from 1 to {LARGEST_SCALE:,}.")
    counted = count_schedule(
        schedule,
        budget=_samples(options, "budget"),
        base_batch_size=_samples(options, "base_batch_size"),
        max_batch_size=_samples(options, "max_batch_size"),
        noise_scale=scales[0] if scales else None,
        scale=scale,
        out=out,
    )
    counted = replace(counted, notes=_notes(counted.notes, context))
    console = console_of_results()
    print_json(counted) if as_json else console.print(count_table(counted))
    if out is not None and not as_json:
        say(console, _written(out))


def _request(**options: Any) -> PlanRequest:
    """Read the texts of the options, and the record."""
    from largebatch.workbench.planner.recorded import NotEnoughSignal
    from largebatch.workbench.planner.request import plan_request

    scales, within = options["noise_scales"], options["within"]
    budget = _samples(options, "budget")
    if budget is None:
        raise ValueError("A plan needs its budget in samples: largebatch plan --budget 10M")
    if not 0.0 < within < 100.0:
        raise ValueError(
            f"--within {within:g} was given, but the margin on the loss is a percentage above 0 "
            "and below 100. Pass --within 1"
        )
    numbers = {
        "budget": budget,
        "base_batch_size": _samples(options, "base_batch_size"),
        "memory_limit": _samples(options, "memory_limit"),
        "noise_scales": () if scales is None else parse_noise_scales(scales),
        "within": within / 100.0,
    }
    try:
        return plan_request(**{**options, **numbers})
    except NotEnoughSignal as error:
        raise NotEnoughSignal(
            f"{error} To record a run: largebatch train WORKLOAD --method adascale --record FILE"
        ) from None


def _samples(options: dict[str, Any], name: str) -> int | None:
    text = options[name]
    return None if text is None else parse_samples(text, argument=name)


def _notes(notes: tuple[str, ...], context: click.Context) -> tuple[str, ...]:
    return tuple([with_options(note, command=context.command) for note in notes])


def _written(out: str) -> str:
    return f"The schedule is in {out}: largebatch train WORKLOAD --schedule {out}"


def _schedule_line(args: list[str]) -> str:
    """The line of `schedule` that does what a line of `plan --dry-run` did."""
    words = [word.removeprefix("--dry-run=") for word in args if word != "--dry-run"]
    renamed = [
        word.replace("--memory-limit", "--max-batch", 1)
        if word.startswith("--memory-limit")
        else word
        for word in words
    ]
    return shlex.join(["largebatch", "schedule", *renamed])
