"""The command `critical`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from largebatch.workbench.amounts import FORMS
from largebatch.workbench.cli.faults import interruptible
from largebatch.workbench.cli.output import (
    as_json,
    console_of_results,
    print_json,
    say,
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
    "The answers found so far are not saved. Start it again, or with less: --by noise, or fewer "
    "--seeds."
)

USED_BY: Mapping[str, frozenset[CriticalMethod]] = {
    "seeds": frozenset({"branches", "sweep"}),
    "points": frozenset({"noise", "branches"}),
    "doublings": frozenset({"branches", "sweep"}),
    "tolerance": frozenset({"branches"}),
    "target": frozenset({"sweep"}),
}
"""Option -> the methods that have a use for it."""

METHOD_OPTIONS = (
    click.option("--seeds", type=int, help=f"Runs for branches and sweep.  [{SEEDS}]"),
    click.option("--points", type=int, help=f"Of the run, for noise and branches.  [{POINTS}]"),
    click.option("--doublings", type=int, help="Of the base batch, for branches and sweep."),
    click.option(
        "--tolerance",
        type=float,
        help=f"Of branches: excess of the loss that counts as none, a share.  [{TOLERANCE:g}]",
    ),
    click.option(
        "--target",
        type=float,
        help="Validation loss to which sweep trains; by default one that the base batch has.",
    ),
)
"""The options that some methods use; one for each name in USED_BY."""


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add METHOD_OPTIONS to a command."""
    for option in reversed(METHOD_OPTIONS):
        command = option(command)
    return command


@click.command("critical")
@click.argument("workload")
@click.option(
    "--by",
    multiple=True,
    metavar="METHOD",
    help=f"{', '.join(CRITICAL_METHODS)}, several with commas between, or all.  [all]",
)
@click.option("--budget", help=f"Length of the base run: {FORMS}. The workload's epochs.")
@seed_option
@method_options
@click.option("--plot", metavar="FILE", help="Draw the answers, as PNG, PDF or SVG.")
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
    """Find the critical batch of WORKLOAD by whole runs.

    Three methods answer side by side, each with its interval, its cost and what it assumes.
    Several processes share the batch:
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
        say(console_of_results(), f"The picture is in {plot}.")


def settings_of(
    methods: Sequence[CriticalMethod], *, seed: int, options: Mapping[str, Any]
) -> Settings:
    """Return the settings for these methods; an option without a value keeps its default.

    Raises:
        ValueError: an option that no method uses, or a value that means nothing.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        users = USED_BY[name]
        if not users & set(methods):
            raise ValueError(
                f"--{name} is for {' and '.join(sorted(users))}, and --by names "
                f"{', '.join(methods)}. Leave it out, or: --by {','.join(sorted(users))}"
            )
    return Settings(seed=seed, **given)
