"""The commands that compare methods: `compare` and `demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import as_json, console_of_results, print_json, say
from largebatch.workbench.cli.train import BUDGET

if TYPE_CHECKING:
    from largebatch.workbench.studies.compare.contenders import At


@click.command("compare", cls=FunctionCommand)
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
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.pictures.comparison import check_picture, draw_comparison
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.studies.compare.compare import compare

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


@click.command("demo")
def demo_command() -> None:
    """AdaScale against plain scaling on small images of digits, in a minute."""
    from largebatch.workbench.cli import tables
    from largebatch.workbench.cli.demo import announcement, demo
    from largebatch.workbench.cli.probe import run_probe
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.cli.study_tables import print_probe

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
