"""Define the commands `plan` and `schedule`, which prepare a run without training."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from largebatch.workbench.amounts import parse_noise_scales, parse_samples
from largebatch.workbench.cli.arguments import FunctionCommand, with_options
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, print_text

if TYPE_CHECKING:
    from largebatch.workbench.planner.request import PlanRequest

budget_option = click.option(
    "--budget", metavar="SAMPLES", help="Number of training samples, such as 10M, 1.5B or 1e12."
)
base_batch_option = click.option(
    "--base-batch",
    "base_batch_size",
    metavar="SAMPLES",
    help="Base batch size, for which the base learning rate was tuned.",
)
out_option = click.option(
    "--out",
    metavar="FILE",
    help="Write the schedule to this new file, for largebatch train --schedule.",
)


class PlanCommand(FunctionCommand):
    """Run `plan`; for the former option `--dry-run`, raise an error that names the new command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments as click does.

        Raises:
            ValueError: The option `--dry-run` was given, which became a command in version 0.2.
        """
        if any(word.partition("=")[0] == "--dry-run" for word in args):
            raise ValueError(
                "largebatch plan no longer has the option --dry-run. The command 'schedule' counts "
                f"the steps of a schedule. Run: {_schedule_line(args)}"
            )
        return super().parse_args(ctx, args)


@click.command("plan", cls=PlanCommand)
@budget_option
@base_batch_option
@click.option(
    "--noise-scale",
    "noise_scales",
    metavar="SAMPLES",
    help="Measured noise scale, or the noise scale of the first steps and the noise scale of the "
    "last steps, separated by a comma.",
)
@click.option(
    "--record",
    metavar="FILE",
    help="Fit the forecast to the recorded run in this file, which also contains the base batch "
    "size.",
)
@click.option(
    "--latency",
    type=float,
    metavar="SECONDS",
    help="Seconds per step that do not depend on the batch size.",
)
@click.option(
    "--throughput", type=float, metavar="SAMPLES", help="Samples per second of one worker."
)
@click.option(
    "--workers", default=1, show_default=True, help="Number of workers that share a batch."
)
@click.option(
    "--memory-limit",
    metavar="SAMPLES",
    help="Largest number of samples that one worker can hold in a step.",
)
@click.option(
    "--minimise",
    type=click.Choice(["steps", "time", "samples"]),
    default="steps",
    show_default=True,
    help="Cost to minimize. With 'steps' or 'time', the plan uses the whole budget, and its final "
    "loss is close to the lowest possible loss. With 'samples', the plan ends when its loss "
    "reaches the loss of the best baseline schedule.",
)
@click.option(
    "--max-lr",
    type=float,
    help="Largest factor on the base learning rate.  [default: the largest stable factor or, "
    "with --record, the largest recorded factor]",
)
@click.option(
    "--within",
    default=1.0,
    show_default=True,
    help="Allowed excess of the final loss over the lowest possible loss, in percent.",
)
@click.option(
    "--stages", default=6, show_default=True, help="Number of stages of the schedule, 1 to 40."
)
@click.option(
    "--loss-exponent",
    "exponent",
    default=0.5,
    show_default=True,
    help="Exponent s: without noise, the loss falls as steps^-s. The exponent is ignored if two "
    "noise scales or --record are given.",
)
@out_option
@click.option("--plot", metavar="FILE", help="Draw the plan in this PNG, PDF or SVG file.")
@as_json
@click.pass_context
def plan_command(
    context: click.Context, /, *, as_json: bool, out: str | None, plot: str | None, **options: Any
) -> None:
    """Plan the batch size and learning rate of a run before training.

    The plan is the schedule with the fewest steps, the shortest time or the fewest samples. The
    loss of the plan is a forecast: the loss of a noisy quadratic that has the measured noise scale
    or is fitted to a recorded run. Baseline schedules are forecast for comparison.
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
        print_text(console, _written(out))
    if plot is not None and not as_json:
        print_text(console, f"The picture was written to {plot}.")


@click.command("schedule", cls=FunctionCommand)
@click.argument("schedule")
@budget_option
@base_batch_option
@click.option(
    "--noise-scale",
    metavar="SAMPLES",
    help="Noise scale up to which the schedules 'seesaw' and 'smith' increase the batch size.",
)
@click.option(
    "--max-batch",
    "max_batch_size",
    metavar="SAMPLES",
    help="Largest batch size of the schedules 'seesaw' and 'smith'.",
)
@click.option(
    "--scale",
    default=1,
    show_default=True,
    help="First batch size as a multiple S of the base batch size.",
)
@out_option
@as_json
@click.pass_context
def schedule_command(
    context: click.Context, /, schedule: str, *, as_json: bool, **options: Any
) -> None:
    """Count the steps of SCHEDULE without training.

    SCHEDULE is growth, linear-growth, warmup-growth, seesaw, smith, constant or cosine. SCHEDULE
    can also be a schedule file, or a string such as "0:768 250B:1536" (batch size 768 from the
    start, 1536 from sample 250B on).
    """
    from largebatch.workbench.cli.plan_tables import count_table
    from largebatch.workbench.planner.count import count_schedule
    from largebatch.workbench.runs.options import LARGEST_SCALE

    out, scale, noise_scale = options["out"], options["scale"], options["noise_scale"]
    scales = () if noise_scale is None else parse_noise_scales(noise_scale, argument="noise_scale")
    if len(scales) > 1:
        raise ValueError(
            f"noise_scale={noise_scale!r} was given, but a schedule accepts only one noise scale. "
            "Pass noise_scale=4000"
        )
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(
            f"scale={scale} was given, but the scale must lie between 1 and {LARGEST_SCALE:,}. "
            "Pass scale=8"
        )
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
        print_text(console, _written(out))


def _request(**options: Any) -> PlanRequest:
    """Return the request that the options describe; reads the record if one is given."""
    from largebatch.workbench.planner.recorded import NotEnoughSignal
    from largebatch.workbench.planner.request import plan_request

    scales, within = options["noise_scales"], options["within"]
    budget = _samples(options, "budget")
    if budget is None:
        raise ValueError("largebatch plan requires a budget in training samples. Pass --budget 10M")
    if not 0.0 < within < 100.0:
        raise ValueError(
            f"--within {within:g} was given, but the allowed excess of the loss is a percentage "
            "above 0 and below 100. Pass --within 1"
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
            f"{error} To record a run, use largebatch train WORKLOAD --method adascale "
            "--record FILE"
        ) from None


def _samples(options: dict[str, Any], name: str) -> int | None:
    text = options[name]
    return None if text is None else parse_samples(text, argument=name)


def _notes(notes: tuple[str, ...], context: click.Context) -> tuple[str, ...]:
    return tuple([with_options(note, command=context.command) for note in notes])


def _written(out: str) -> str:
    return (
        f"The schedule was written to {out}. To train with the schedule, run: "
        f"largebatch train WORKLOAD --schedule {out}"
    )


def _schedule_line(args: list[str]) -> str:
    """Return the `schedule` command that replaces a call of `plan --dry-run`."""
    words = [word.removeprefix("--dry-run=") for word in args if word != "--dry-run"]
    renamed = [
        word.replace("--memory-limit", "--max-batch", 1)
        if word.startswith("--memory-limit")
        else word
        for word in words
    ]
    return shlex.join(["largebatch", "schedule", *renamed])
