"""The command `train`: one run on a workload."""

from __future__ import annotations

from typing import Any

import click

from largebatch.workbench.amounts import FORMS
from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, seed_option
from largebatch.workbench.cli.stop import announce_stop
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.runs.logger_options import FORMS as FORMS_OF_LOGGERS

BUDGET = (
    f"How long: {FORMS}. An epoch is N / B0 base steps for every method: one with the fixed clock "
    "uses N samples in it, as at scale 1, while adascale, whose clock counts its gain, uses more. "
    "By default the workload's epochs."
)


@click.command("train", cls=FunctionCommand)
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
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.runs.train import train

    remedy = "Not saved: start it again with --checkpoint DIR and Ctrl-C saves first."
    if options["checkpoint"] is not None:
        remedy = "Go on from the last checkpoint: repeat the command with --resume"
    with interruptible(remedy), progress_on_stderr() as progress:
        result = train(**options, progress=progress, on_stop=announce_stop)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.train_table(result))
