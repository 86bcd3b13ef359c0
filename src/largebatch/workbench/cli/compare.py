"""Define the commands `compare` and `demo`, which compare methods by whole training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, print_text
from largebatch.workbench.cli.train import BUDGET

if TYPE_CHECKING:
    from largebatch.workbench.studies.compare.contenders import At


RESUME = "Finished runs are kept. To resume, run the same command again."


@click.command("compare", cls=FunctionCommand)
@click.argument("workload")
@click.option(
    "--methods",
    default="adascale,linear,none",
    show_default=True,
    help="Names of methods, separated by commas. The name 'linear+' stands for the method "
    "'linear', trained for as many steps as 'adascale' took.",
)
@click.option(
    "--scales",
    default="1,8,32",
    show_default=True,
    help="Batch sizes as multiples of the base batch size. Scale 1 is always included.",
)
@click.option(
    "--seeds",
    default=5,
    show_default=True,
    help="Number of seeds; per scale, each method runs once with each seed.",
)
@click.option(
    "--at",
    type=click.Choice(["equal-samples", "equal-steps"]),
    default="equal-samples",
    show_default=True,
    help="Length of the runs of methods that do not measure a gain: as many samples as the run at "
    "scale 1, or as many steps as adascale.",
)
@click.option("--budget", help=f"Length of the run at scale 1. {BUDGET}")
@click.option(
    "--out",
    metavar="DIR",
    help="Directory for the runs.  [default: runs/compare-<settings>]",
)
@as_json
@click.option(
    "--plot", metavar="FILE", help="Draw the validation losses in this PNG, PDF or SVG file."
)
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

    Every finished run is kept. To resume an interrupted comparison, run the same command again.
    You can also add methods, scales and seeds later.
    """
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.pictures.comparison import check_picture, draw_comparison
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.studies.compare.compare import compare

    if plot is not None:
        check_picture(plot)
    with interruptible(RESUME), progress_on_stderr(parts=1) as progress:
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
        print_text(console, f"The picture was written to {plot}.")


@click.command("demo")
def demo_command() -> None:
    """Compare AdaScale with linear scaling on small images.

    The demo takes about a minute, prints the results and draws a picture.
    """
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.demo import announcement, demo
    from largebatch.workbench.cli.probe import run_probe
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.cli.study_tables import print_probe

    console = console_of_results()
    with interruptible(RESUME):
        print_text(console, "1. Measure the gradient noise, as largebatch probe digits does.")
        print_probe(run_probe("digits"), console)
        print_text(console, "\n2. Compare methods, as largebatch compare digits does.")
        print_text(console, announcement())
        with progress_on_stderr(parts=1) as progress:
            result = demo(progress=progress)
    console.print(tables.comparison_table(result.comparison, console))
    for sentence in result.sentences:
        print_text(console, f"- {sentence}")
    print_text(console, f"The picture was written to {result.picture}.")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--scales {text} was given, but scales are whole numbers, separated by commas. Pass "
            "--scales 1,8,32"
        ) from None
