"""The commands of `largebatch`: options in, tables or JSON out."""

from __future__ import annotations

from typing import Any

import click

from largebatch.core.version import __version__
from largebatch.workbench.amounts import FORMS
from largebatch.workbench.cli import tables
from largebatch.workbench.cli.critical import critical_command
from largebatch.workbench.cli.demo import announcement, demo
from largebatch.workbench.cli.faults import Cli, interruptible
from largebatch.workbench.cli.list_methods import list_methods, list_workloads
from largebatch.workbench.cli.output import (
    as_json,
    console_of_results,
    print_json,
    say,
    seed_option,
)
from largebatch.workbench.cli.pictures.comparison import check_picture, draw_comparison
from largebatch.workbench.cli.planning import plan_command, schedule_command
from largebatch.workbench.cli.probing import probe_command, run_probe
from largebatch.workbench.cli.progress import progress_on_stderr
from largebatch.workbench.cli.records import replay_command, report_command
from largebatch.workbench.cli.stop import announce_stop
from largebatch.workbench.cli.study_tables import print_probe
from largebatch.workbench.runs.distributed import launched_rank
from largebatch.workbench.runs.doctor import doctor
from largebatch.workbench.runs.logger_options import FORMS as FORMS_OF_LOGGERS
from largebatch.workbench.runs.train import train
from largebatch.workbench.studies.compare.compare import compare
from largebatch.workbench.studies.compare.contenders import At

BUDGET = (
    f"How long: {FORMS}. An epoch is N / B0 base steps for every method: one with the fixed clock "
    "uses N samples in it, as at scale 1, while adascale, whose clock counts its gain, uses more. "
    "By default the workload's epochs."
)


@click.group(
    cls=Cli, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="largebatch")
@click.pass_context
def cli(context: click.Context) -> None:
    """Large-batch training: measure the gradient's noise, set rate and batch from it.

    Start with: largebatch demo
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command("train")
@click.argument("workload")
@click.option("--method", show_default="adascale", help="See: largebatch methods.")
@click.option("--scale", default=1, show_default=True, help="S: the batch is S base batches.")
@click.option("--budget", help=BUDGET)
@click.option(
    "--schedule",
    metavar="FILE",
    help="Follow this file of largebatch plan or schedule, in place of --method, --scale and "
    "--budget.",
)
@seed_option
@click.option("--lr", type=float, help="Rate at the base batch, instead of the workload's.")
@click.option("--record", metavar="FILE", help="Write each step to a new file of JSON lines.")
@click.option("--clip-norm", type=float, help="Largest norm of the gradient.")
@click.option(
    "--max-micro-batch-size",
    metavar="N",
    help="Samples of one backward at most; auto: what fits. By default one base batch.",
)
@click.option("--checkpoint", metavar="DIR", help="Save the run in this directory as it goes.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint, if there is one.")
@click.option("--keep", default=3, show_default=True, help="Checkpoints kept.")
@click.option(
    "--checkpoint-every",
    metavar="LENGTH",
    help="Such as 0.5ep or 10k (samples); by default a hundredth of the budget.",
)
@click.option(
    "--logger",
    "log",  # not --log, which torchrun takes for one of its own options
    multiple=True,
    metavar="KIND=PLACE",
    help=f"Give each step's numbers to it; may be repeated: {FORMS_OF_LOGGERS}.",
)
@as_json
def train_command(as_json: bool, **options: Any) -> None:
    """Train WORKLOAD once: a name (see: largebatch workloads) or package.module:factory.

    Several processes share the batch, with the same result up to rounding:
    torchrun --nproc-per-node 2 -m largebatch train digits --scale 8

    With --checkpoint DIR the run survives a crash, SIGTERM and Ctrl-C: the same command with
    --resume goes on at the step where it stopped, with the same bits.
    """
    remedy = "Not saved: start it again with --checkpoint DIR and Ctrl-C saves first."
    if options["checkpoint"] is not None:
        remedy = "Go on from the last checkpoint: repeat the command with --resume"
    with interruptible(remedy), progress_on_stderr() as progress:
        result = train(**options, progress=progress, on_stop=announce_stop)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.train_table(result))


@cli.command("compare")
@click.argument("workload")
@click.option(
    "--methods",
    default="adascale,linear,none",
    show_default=True,
    help="Names with commas between; linear+ is linear for as many steps as adascale took.",
)
@click.option(
    "--scales", default="1,8,32", show_default=True, help="Batches in base batches; 1 always runs."
)
@click.option("--seeds", default=5, show_default=True, help="How many.")
@click.option(
    "--at",
    type=click.Choice(["equal-samples", "equal-steps"]),
    default="equal-samples",
    show_default=True,
    help="What methods with the fixed clock get: scale 1's samples, or adascale's steps.",
)
@click.option("--budget", help=f"Of the run at scale 1. {BUDGET}")
@click.option("--out", metavar="DIR", help="Of the runs; by default runs/compare-<settings>.")
@as_json
@click.option("--plot", metavar="FILE", help="Draw the validation losses, as PNG, PDF or SVG.")
def compare_command(
    workload: str,
    *,
    methods: str,
    scales: str,
    seeds: int,
    at: At,
    budget: str | None,
    out: str | None,
    as_json: bool,
    plot: str | None,
) -> None:
    """Compare methods on WORKLOAD, over scales and seeds.

    Every finished run is kept: an interrupted comparison goes on when it is called again, and more
    methods, scales and seeds may be added to it.
    """
    if plot is not None:
        check_picture(plot)
    resume = "Finished runs are kept: the same command goes on with them."
    with interruptible(resume), progress_on_stderr(parts=1) as progress:
        result = compare(
            workload,
            methods=_names(methods),
            scales=_numbers(scales),
            seeds=seeds,
            at=at,
            budget=budget,
            out=out,
            progress=progress,
        )
    if plot is not None:
        draw_comparison(result, plot)
    if as_json:
        print_json(result)
        return
    console = console_of_results()
    console.print(tables.comparison_table(result, console))
    if plot is not None:
        say(console, f"The picture is in {plot}.")


@cli.command("doctor")
@click.argument("workload")
@click.option("--method", default="adascale", show_default=True, help="See: largebatch methods.")
@click.option("--scale", default=1, show_default=True, help="S: the batch is S base batches.")
@as_json
def doctor_command(workload: str, *, method: str, scale: int, as_json: bool) -> int:
    """Look for what would go silently wrong in a run of WORKLOAD, without training.

    Loss, model, optimizer, data and the cost of measuring, in a few seconds; under torchrun over
    all processes. The exit code is 0, or 1 where a finding is an error.
    """
    with interruptible("Start it again."):
        result = doctor(workload, method=method, scale=scale)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.doctor_table(result))
    return 0 if result.sound else 1


@cli.command("methods")
def methods_command() -> None:
    """List the methods: name, what each does, reference."""
    console_of_results().print(tables.methods_table(list_methods()))


@cli.command("workloads")
def workloads_command() -> None:
    """List the workloads and their settings at the base batch."""
    console_of_results().print(tables.workloads_table(list_workloads()))


@cli.command("demo")
def demo_command() -> None:
    """AdaScale against plain scaling on small images of digits, in a minute."""
    console = console_of_results()
    resume = "Finished runs are kept: the same command goes on with them."
    with interruptible(resume):
        say(console, "1. How noisy is the gradient? largebatch probe digits")
        print_probe(run_probe("digits"), console)
        say(console, "\n2. What do methods make of it? largebatch compare digits ...")
        say(console, announcement())
        with progress_on_stderr(parts=1) as progress:
            result = demo(progress=progress)
    console.print(tables.comparison_table(result.comparison, console))
    for sentence in result.sentences:
        say(console, f"- {sentence}")
    say(console, f"The picture is in {result.picture}.")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(
            f"Scales are whole numbers with commas between, as in --scales 1,8,32; got {text!r}."
        ) from None


cli.add_command(report_command)
cli.add_command(replay_command)
cli.add_command(plan_command)
cli.add_command(probe_command)
cli.add_command(critical_command)
cli.add_command(schedule_command)
