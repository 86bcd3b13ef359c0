"""Define the command `critical`, which measures the critical batch size of a workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from largebatch.workbench.amounts import FORMS
from largebatch.workbench.cli.arguments import FunctionCommand
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import (
    as_json,
    console_of_results,
    print_json,
    print_text,
    seed_option,
)
from largebatch.workbench.runs.launcher import launched_rank
from largebatch.workbench.studies.critical.settings import (
    CRITICAL_METHODS,
    POINTS,
    SEEDS,
    TOLERANCE,
    CriticalMethod,
    Settings,
    methods_of,
)

LOST = (
    "The answers found so far were not saved. Run the command again; for a shorter run, pass "
    "--by noise or a smaller --seeds."
)

USED_BY: Mapping[str, frozenset[CriticalMethod]] = {
    "seeds": frozenset({"branches", "sweep"}),
    "points": frozenset({"noise", "branches"}),
    "doublings": frozenset({"branches", "sweep"}),
    "tolerance": frozenset({"branches"}),
    "target": frozenset({"sweep"}),
}
"""Methods that use an option, by the name of the option."""

METHOD_OPTIONS = (
    click.option(
        "--seeds",
        type=int,
        help="Number of runs per batch size, for the methods 'branches' and 'sweep'.  "
        f"[default: {SEEDS}]",
    ),
    click.option(
        "--points",
        type=int,
        help="Number of points along the run at which the methods 'noise' and 'branches' measure.  "
        f"[default: {POINTS}]",
    ),
    click.option(
        "--doublings",
        type=int,
        help="Number of doublings of the base batch size that the methods 'branches' and 'sweep' "
        "try.",
    ),
    click.option(
        "--tolerance",
        type=float,
        help="Relative increase of the loss, compared with the base batch size, that the method "
        "'branches' accepts.  "
        f"[default: {TOLERANCE:g}]",
    ),
    click.option(
        "--target",
        type=float,
        help="Validation loss at which the runs of the method 'sweep' end.  [default: a loss that "
        "the base batch size reaches]",
    ),
)
"""Options that only some methods use, in the order of USED_BY."""


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options in METHOD_OPTIONS to a command."""
    for option in reversed(METHOD_OPTIONS):
        command = option(command)
    return command


@click.command("critical", cls=FunctionCommand)
@click.argument("workload")
@click.option(
    "--by",
    multiple=True,
    metavar="METHOD",
    help=f"Methods to use, separated by commas: {', '.join(CRITICAL_METHODS)}, or 'all'.  "
    "[default: all]",
)
@click.option(
    "--budget",
    help=f"Length of the run at the base batch size. Write {FORMS}.  [default: the epochs of the "
    "workload]",
)
@seed_option
@method_options
@click.option("--plot", metavar="FILE", help="Draw the answers in this PNG, PDF or SVG file.")
@as_json
def critical_command(
    workload: str,
    *,
    by: tuple[str, ...],
    budget: str | None,
    seed: int,
    plot: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the critical batch size of WORKLOAD.

    Three methods measure the critical batch size independently, by whole training runs. The output
    shows the interval, the cost and the assumptions of each method. Several processes can share the
    batch:
    torchrun --nproc-per-node 2 -m largebatch critical digits
    """
    from largebatch.workbench.cli.pictures.comparison import check_picture
    from largebatch.workbench.cli.pictures.critical import draw_critical
    from largebatch.workbench.cli.progress import progress_on_stderr
    from largebatch.workbench.cli.study_tables import print_critical
    from largebatch.workbench.studies.critical.run_methods import critical

    methods = methods_of(by or ("all",))
    settings = settings_of(methods, seed=seed, options=options)
    if plot is not None:
        check_picture(plot)
    with interruptible(LOST), progress_on_stderr() as progress:
        found = critical(workload, by=methods, budget=budget, settings=settings, watcher=progress)
    if launched_rank() > 0:
        return
    if plot is not None:
        draw_critical(found, plot)
    print_json(found) if as_json else print_critical(found, console_of_results())
    if plot is not None and not as_json:
        print_text(console_of_results(), f"The picture was written to {plot}.")


def settings_of(
    methods: Sequence[CriticalMethod], *, seed: int, options: Mapping[str, Any]
) -> Settings:
    """Return the settings for the given methods; an option with the value None keeps its default.

    Args:
        methods: Names of the methods that will run.
        seed: Seed of the initial weights and the sample order.
        options: Values of the options, by the option names in `USED_BY`.

    Raises:
        ValueError: An option is given that none of the methods uses, or a value is out of range.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        users = USED_BY[name]
        if not users & set(methods):
            raise ValueError(
                f"--{name} was given, but only {' and '.join(sorted(users))} can use it, and --by "
                f"names {', '.join(methods)}. Leave out --{name}, or pass "
                f"--by {','.join(sorted(users))}"
            )
    return Settings(seed=seed, **given)
