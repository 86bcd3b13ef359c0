"""Define the settings of a critical-batch study and check them before any training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

CriticalMethod = Literal["noise", "branches", "sweep"]

CRITICAL_METHODS: tuple[CriticalMethod, ...] = ("noise", "branches", "sweep")
"""Names of the methods, the cheapest first."""

SEEDS = 8
"""Default number of seeds. Student's 97.5 % quantile is 2.4 with 8 seeds and 4.3 with 3 seeds."""

POINTS = 5
"""Default number of points along the run at which the critical batch size is measured."""

TOLERANCE = 0.05
"""Default tolerance: largest accepted increase of the loss, as a fraction of the base run's loss.
"""

MOST_DOUBLINGS = 20
"""Largest number of doublings, which is a batch of about a million base batches."""


class Watcher(Protocol):
    """Show the progress of a study as sentences and as labeled counts."""

    def __call__(self, report: str, /) -> None:
        """Show a sentence."""

    def counting(self, label: str) -> Callable[[int, int], None]:
        """Return a function that shows two numbers with the label: runs done and total runs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold the settings of a critical-batch study.

    Args:
        seed: Seed of the first run. The following runs use the seeds seed + 1, seed + 2 and so on.
        seeds: Number of base runs with branches, and of runs per batch size and learning rate in a
            sweep; 2 to 1000.
        points: Number of points along the run at which the noise scale is measured and branches
            start; 1 to 100.
        doublings: Number of doublings of the base batch size. By default, branches use the largest
            number of doublings that the window allows, and a sweep uses at most 5 doublings.
        tolerance: Largest accepted increase of a branch's loss, as a fraction of the base run's
            loss; above 0.
        target: Validation loss at which the runs of a sweep stop. The default target is the loss
            that the base batch reaches after a quarter of the budget.

    Raises:
        ValueError: A number is outside its range.
    """

    seed: int = 0
    seeds: int = SEEDS
    points: int = POINTS
    doublings: int | None = None
    tolerance: float = TOLERANCE
    target: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.seeds <= 1000:
            raise ValueError(
                f"seeds={self.seeds} was given, but a confidence interval needs 2 or more seeds, "
                "and 1000 is the limit. Pass seeds=5."
            )
        if not 1 <= self.points <= 100:
            raise ValueError(
                f"points={self.points} was given, but the number of points along the run must be "
                "1 to 100. Pass points=5."
            )
        if self.doublings is not None and not 1 <= self.doublings <= MOST_DOUBLINGS:
            raise ValueError(
                f"doublings={self.doublings} was given, but the number of doublings of the base "
                f"batch size must be 1 to {MOST_DOUBLINGS}. Pass doublings=5."
            )
        if not 0.0 < self.tolerance < math.inf:
            raise ValueError(
                f"tolerance={self.tolerance} was given, but the tolerance must be finite and above "
                "0. A branch's loss may exceed the base run's loss by this fraction. "
                "Pass tolerance=0.05."
            )
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(
                f"target={self.target} was given, but the target loss must be a finite number. "
                "Pass target=0.3."
            )


def methods_of(given: Iterable[str]) -> tuple[CriticalMethod, ...]:
    """Return the requested methods, each once and in the order of `CRITICAL_METHODS`.

    >>> methods_of(["sweep,noise", "noise"]), methods_of(["all"])
    (('noise', 'sweep'), ('noise', 'branches', 'sweep'))

    Args:
        given: Names of methods, or "all". One text can hold several names, separated by commas.

    Raises:
        ValueError: A name is unknown, or no name was given.
    """
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*CRITICAL_METHODS, "all"):
            close = difflib.get_close_matches(name, (*CRITICAL_METHODS, "all"), n=1)
            raise ValueError(
                f"There is no method {name!r} for the critical batch size."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" The methods are {', '.join(CRITICAL_METHODS)}, or all. Pass "
                "by='noise,branches'."
            )
    if not names:
        raise ValueError(
            f"No method was given. Pass at least one: by='{','.join(CRITICAL_METHODS)}'."
        )
    return tuple(method for method in CRITICAL_METHODS if method in names or "all" in names)
