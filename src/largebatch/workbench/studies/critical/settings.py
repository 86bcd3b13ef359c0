"""What was asked of the three methods, checked before anything is trained."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

CriticalMethod = Literal["noise", "branches", "sweep"]

CRITICAL_METHODS: tuple[CriticalMethod, ...] = ("noise", "branches", "sweep")
"""In the order of their cost."""

SEEDS = 8
"""Runs of each kind: Student's quantile is 2.4 with 8, 4.3 with 3."""

POINTS = 5
"""Of the run at which branches begin, and pieces of which the noise scale is told."""

TOLERANCE = 0.05
"""Excess of a branch's loss, as a share of the base branch's, that still counts as equal."""

MOST_DOUBLINGS = 20
"""A million base batches."""


class Watcher(Protocol):
    """Shows the progress of a study: sentences, and counts with a label."""

    def __call__(self, report: str, /) -> None: ...

    def counting(self, label: str) -> Callable[[int, int], None]:
        """Return a function that takes (runs done, runs in all) and shows them with a label."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a study of the critical batch.

    Args:
        seed: of the first run; the others follow it.
        seeds: base runs with their branches, and runs of each batch and rate.
        points: of the run at which the noise scale and the branches are looked at.
        doublings: of the base batch; None for as many as the window holds, or 5 in a sweep.
        tolerance: excess of a branch's loss, as a share.
        target: loss to which the sweep trains; None for what the base batch reaches.

    Raises:
        ValueError: a number that means nothing.
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
                f"seeds is a number of runs, 2 or more, since one run tells no interval; got "
                f"{self.seeds}. Example: --seeds 5"
            )
        if not 1 <= self.points <= 100:
            raise ValueError(
                f"points is a number of points along the run, 1 to 100; got {self.points}. "
                "Example: --points 5"
            )
        if self.doublings is not None and not 1 <= self.doublings <= MOST_DOUBLINGS:
            raise ValueError(
                f"doublings of the base batch are 1 to {MOST_DOUBLINGS}; got {self.doublings}. "
                "Example: --doublings 5"
            )
        if not 0.0 < self.tolerance < math.inf:
            raise ValueError(
                "The tolerance is the share by which a branch's loss may exceed the base branch's, "
                f"above 0; got {self.tolerance}. Example: --tolerance 0.05"
            )
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError(
                f"The target is a loss, a finite number; got {self.target}. Example: --target 0.3"
            )


def methods_of(given: Iterable[str]) -> tuple[CriticalMethod, ...]:
    """The methods that were asked for, each once and in the order of `CRITICAL_METHODS`.

    >>> methods_of(["sweep,noise", "noise"]), methods_of(["all"])
    (('noise', 'sweep'), ('noise', 'branches', 'sweep'))

    Args:
        given: names, or names with commas between, or "all".

    Raises:
        ValueError: an unknown name, with the closest one, or none at all.
    """
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*CRITICAL_METHODS, "all"):
            close = difflib.get_close_matches(name, (*CRITICAL_METHODS, "all"), n=1)
            raise ValueError(
                f"There is no method {name!r} for the critical batch."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" Known: {', '.join(CRITICAL_METHODS)}, or all. Example: --by noise,branches"
            )
    if not names:
        raise ValueError(f"Name a method, or several: --by {','.join(CRITICAL_METHODS)}")
    return tuple(method for method in CRITICAL_METHODS if method in names or "all" in names)
