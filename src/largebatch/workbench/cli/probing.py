"""The options of `largebatch probe --by`, and what was asked with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from largebatch.workbench.amounts import FORMS
from largebatch.workbench.cli.pictures.comparison import check_picture
from largebatch.workbench.cli.pictures.critical import draw_critical
from largebatch.workbench.studies.critical import METHODS, Critical, Settings, Watcher, critical
from largebatch.workbench.studies.critical.settings import POINTS, SEEDS, TOLERANCE, methods_of

LOST = (
    "Nothing is kept of what was found so far. Start it again, or with less: --by noise, or fewer "
    "--seeds."
)

USED_BY: Mapping[str, frozenset[str]] = {
    "seeds": frozenset({"branches", "sweep"}),
    "points": frozenset({"noise", "branches"}),
    "doublings": frozenset({"branches", "sweep"}),
    "tolerance": frozenset({"branches"}),
    "target": frozenset({"sweep"}),
}
"""Option -> the methods that have a use for it."""

SHORT = ("steps", "scale")
"""Options of the short probe alone."""


def critical_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    options = (
        click.option(
            "--by",
            multiple=True,
            metavar="METHOD",
            help=f"{', '.join(METHODS)}, several with commas between, or all.",
        ),
        click.option("--budget", help=f"With --by, the base run: {FORMS}. The workload's epochs."),
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
        click.option("--plot", metavar="FILE", help="Draw the answers, as PNG, PDF or SVG."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked of the probe.

    Args:
        by: methods; none for the short probe.
        short: options of the short probe.
        budget, settings: as in `critical`.
        plot: file of the picture.
    """

    by: tuple[str, ...]
    short: Mapping[str, int]
    budget: str | None
    settings: Settings
    plot: str | None

    def answer(self, workload: str, watcher: Watcher) -> Critical:
        """Runs the methods."""
        return critical(
            workload, by=self.by, budget=self.budget, settings=self.settings, watcher=watcher
        )

    def draw(self, found: Critical) -> None:
        """Writes the picture, if there is to be one."""
        if self.plot is not None:
            draw_critical(found, self.plot)


def asked_of(options: Mapping[str, Any]) -> Asked:
    """The options of the command line, checked against one another.

    Raises:
        ValueError: an option that the methods have no use for, or a value that means nothing.
        PlotMissing: a picture without matplotlib.
    """
    given = {name: value for name, value in options.items() if value not in (None, ())}
    seed = given.pop("seed")
    if not given.get("by"):
        strange = sorted(given.keys() - set(SHORT))
        if strange:
            raise ValueError(
                f"--{strange[0]} belongs to the three ways to the critical batch. Say which: "
                f"--by {','.join(METHODS)}"
            )
        return Asked(
            by=(), short={**given, "seed": seed}, budget=None, settings=Settings(), plot=None
        )
    methods = methods_of(given["by"])
    for name in SHORT:
        if name in given:
            raise ValueError(
                f"--{name} belongs to the short probe without --by. The length of the runs is "
                "--budget, their batches are set by --doublings."
            )
    for name, users in USED_BY.items():
        if name in given and not users & set(methods):
            raise ValueError(
                f"--{name} is for {' and '.join(sorted(users))}, and --by names "
                f"{', '.join(methods)}. Leave it out, or: --by {','.join(sorted(users))}"
            )
    if "plot" in given:
        check_picture(given["plot"])
    chosen = {name: given[name] for name in USED_BY if name in given}
    return Asked(
        by=methods,
        short={},
        budget=given.get("budget"),
        settings=Settings(seed=seed, **chosen),
        plot=given.get("plot"),
    )
