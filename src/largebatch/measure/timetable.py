"""Which steps are measured, if measuring one costs several plain ones.

A rule may ask for statistics in some steps only, as `Every` does. So the steps are not fixed in
advance: a step is measured if it is asked for and enough steps have passed since the last measured
one. Fixed steps and the steps that a rule asks for may have no step in common.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """How often steps are measured: stretches of `span` steps, often at first and rarely later.

    Args:
        every: least steps from the start of one stretch to that of the next.
        span: steps of a stretch, of which the last one gives the moments of all.
        early: stretches after each of which the shorter distance holds.
        early_every: the shorter distance, in steps.
    """

    every: int = 1
    span: int = 1
    early: int = 0
    early_every: int = 1

    def wait(self, stretches: int) -> int:
        """Return the least steps from the start of the last stretch to that of the next.

        >>> often = MeasuredSteps(every=80, early=2, early_every=8)
        >>> [often.wait(stretches) for stretches in (1, 2, 3, 4)]
        [8, 8, 80, 80]

        Args:
            stretches: how many were measured so far, at least 1.
        """
        return self.early_every if stretches <= self.early else self.every

    @property
    def words(self) -> str:
        """How often, for people.

        >>> MeasuredSteps(every=80, early=2, early_every=8).words
        'every 8th step at first, later every 80th'
        """
        if self.every == 1:
            return "every step"
        early = f"every {self.early_every}th step at first, later " if self.early else ""
        return f"{early}every {self.every}th" + ("" if early else " step")


EVERY_STEP = MeasuredSteps()


class Timetable:
    """Says of each step whether it is measured.

    Each statistic has its own distance to its last measurement, so a rule that asks for one
    statistic in every step does not take the measurements of another rule. A stretch that was not
    measured to its end, as in a step that is not finite, begins again in the next step.

    Nothing of it is in a checkpoint: a resumed run measures often at first again.

    Mutable: counts the steps, and the stretches of each statistic.

    >>> timetable, measured = Timetable(MeasuredSteps(every=80, early=2, early_every=8)), []
    >>> for step in range(200):
    ...     timetable.open(frozenset({"moments"}) if step % 10 == 0 else frozenset())
    ...     if timetable.place is not None:
    ...         timetable.close()
    ...         measured.append(step)
    >>> measured
    [0, 10, 20, 100, 180]

    Args:
        schedule: how often steps are measured.

    Attributes:
        place: of the step in hand within its stretch; None if it is not measured.
    """

    def __init__(self, schedule: MeasuredSteps) -> None:
        self.schedule = schedule
        self.place: int | None = None
        self._step = -1
        self._wanted: frozenset[str] = frozenset()
        self._begun: dict[str, int] = {}  # statistic -> start of its last whole stretch
        self._stretches: Counter[str] = Counter()
        self._unfinished: tuple[int, int] | None = None  # last measured step, and the next place

    @property
    def completes(self) -> bool:
        """Return whether the step in hand is the last one of its stretch."""
        return self.place == self.schedule.span - 1

    def open(self, wanted: frozenset[str], *, repeated: bool = False) -> None:
        """Begin a step in which these statistics are wanted.

        Args:
            wanted: names of statistics.
            repeated: whether the step in hand begins once more.
        """
        self._step += not repeated
        self._wanted = wanted
        self.place = self._place_of(wanted)

    def close(self) -> None:
        """Note that the step in hand was measured, and gave what its stretch needs."""
        if self.place is None:
            return
        if not self.completes:
            self._unfinished = (self._step, self.place + 1)
            return
        self._unfinished = None
        self._begun |= dict.fromkeys(self._wanted, self._step - self.place)
        self._stretches.update(self._wanted)

    def _place_of(self, wanted: frozenset[str]) -> int | None:
        if wanted and self._unfinished is not None:
            last, place = self._unfinished
            if last == self._step - 1:
                return place
        return 0 if any(map(self._waited, wanted)) else None

    def _waited(self, name: str) -> bool:
        begun = self._begun.get(name)
        return begun is None or self._step - begun >= self.schedule.wait(self._stretches[name])
