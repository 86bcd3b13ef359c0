"""Define the command `train`, which trains a workload once."""

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
    f"Write {FORMS}. Epochs are counted in base steps, N / B0 per epoch, where N is the number of "
    "training samples and B0 the base batch size. An epoch uses N samples, except with a method "
    "that measures its gain: 'adascale' uses more than N samples.  [default: the epochs of the "
    "workload]"
)


@click.command("train", cls=FunctionCommand)
@click.argument("workload")
@click.option(
    "--method",
    help="Method that sets the learning rate and batch size; run 'largebatch methods' for the "
    "names.  [default: adascale]",
)
@click.option(
    "--scale",
    default=1,
    show_default=True,
    help="Batch size as a multiple S of the base batch size.",
)
@click.option("--budget", help=f"Length of the run. {BUDGET}")
@click.option(
    "--schedule",
    metavar="FILE",
    help="Follow this schedule file, written by largebatch plan or largebatch schedule. The file "
    "replaces --method, --scale and --budget.",
)
@seed_option
@click.option(
    "--lr",
    type=float,
    help="Learning rate at the base batch size.  [default: the learning rate of the workload]",
)
@click.option(
    "--record", metavar="FILE", help="Write every training step to this new file (JSON lines)."
)
@click.option("--clip-norm", type=float, help="Clip the gradient to this norm.")
@click.option(
    "--max-micro-batch-size",
    metavar="N",
    help="Largest number of samples in one backward pass; 'auto' finds the largest number that "
    "fits into memory.  [default: the base batch size]",
)
@click.option("--checkpoint", metavar="DIR", help="Save checkpoints of the run in this directory.")
@click.option(
    "--resume", is_flag=True, help="Resume from the newest checkpoint, if a checkpoint exists."
)
@click.option("--keep", default=3, show_default=True, help="Number of checkpoints to keep.")
@click.option(
    "--checkpoint-every",
    metavar="LENGTH",
    help="Length between checkpoints, such as 0.5ep or 10k (samples).  [default: 1/100 of the "
    "budget]",
)
@click.option(
    "--logger",
    "log",  # The option is not called --log, which torchrun takes for one of its own options.
    multiple=True,
    metavar="KIND=PLACE",
    help="Log the values of every step to this place; the option may be repeated. Write "
    f"{FORMS_OF_LOGGERS}.",
)
@as_json
def train_command(as_json: bool, **options: Any) -> None:
    """Train WORKLOAD once.

    WORKLOAD is a name that largebatch workloads lists, or package.module:function for a workload of
    your own.

    Several processes can share the batch and give the same result as one process, up to rounding:
    torchrun --nproc-per-node 2 -m largebatch train digits --scale 8

    With --checkpoint DIR, a run can be resumed after a crash, SIGTERM or Ctrl-C: run the same
    command with --resume. The resumed run is bit-identical to an uninterrupted run.
    """
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.runs.train import train

    remedy = "The run was not saved. To save a run on Ctrl-C, start the run with --checkpoint DIR"
    if options["checkpoint"] is not None:
        remedy = "To resume from the last checkpoint, run the same command with --resume"
    with interruptible(remedy), progress_on_stderr() as progress:
        result = train(**options, progress=progress, on_stop=announce_stop)
    if launched_rank() == 0:
        print_json(result) if as_json else console_of_results().print(tables.train_table(result))
