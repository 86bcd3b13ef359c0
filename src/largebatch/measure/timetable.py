"""Decide which training steps are measured, if measuring a step takes much time.

A rule may request statistics only in some steps, as `Every` does. If the measured steps were fixed
in advance, they might have no step in common with the requested steps. So a step is measured if a
rule requests statistics in the step and enough steps have passed since the last measured step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """Define how often steps are measured: often at first and less often later.

    A stretch is `span` consecutive steps that are measured together.

    Args: every: Least number of steps from the start of one stretch to the start of the next
    stretch. span: Number of consecutive steps in a stretch. The last step of a stretch gives the
    moments. early: Number of stretches at first after which the next stretch may begin
    `early_every` steps later. early_every: Least number of steps between the starts of two early
    stretches, used in place of `every`.
    """

    every: int = 1
    span: int = 1
    early: int = 0
    early_every: int = 1

    def wait(self, stretches: int) -> int:
        """Return the least number of steps between the starts of the last and the next stretch.

        >>> often = MeasuredSteps(every=80, early=2, early_every=8)
        >>> [often.wait(stretches) for stretches in (1, 2, 3, 4)]
        [8, 8, 80, 80]

        Args:
            stretches: Number of stretches measured so far, at least 1.
        """
        return self.early_every if stretches <= self.early else self.every

    @property
    def words(self) -> str:
        """Return the schedule in words.

        >>> MeasuredSteps(every=80, early=2, early_every=8).words
        'every 8th step at first, later every 80th'
        """
        if self.every == 1:
            return "every step"
        early = f"every {self.early_every}th step at first, later " if self.early else ""
        return f"{early}every {self.every}th" + ("" if early else " step")


EVERY_STEP = MeasuredSteps()


class Timetable:
    """Decide for each training step whether the step is measured.

    The distance to the last measurement is counted separately for each statistic. So a rule that
    requests one statistic in every step does not delay the measurements of another rule. A stretch
    of measured steps that was not completed, for example because a gradient was not finite, begins
    again in the next step.

    Checkpoints do not contain the timetable, so a resumed run starts the schedule from its
    beginning.

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
        schedule: How often steps are measured.

    Attributes:
        place: Position of the current step in its stretch of measured steps; None if the step is
            not measured.
    """

    def __init__(self, schedule: MeasuredSteps) -> None:
        self.schedule = schedule
        self.place: int | None = None
        self._step = -1
        self._wanted: frozenset[str] = frozenset()
        self._begun: dict[str, int] = {}  # statistic -> start of its last complete stretch
        self._stretches: Counter[str] = Counter()
        self._unfinished: tuple[int, int] | None = None  # last measured step and next place

    @property
    def completes(self) -> bool:
        """Return whether the current step is the last step of its stretch of measured steps."""
        return self.place == self.schedule.span - 1

    def open(self, wanted: frozenset[str], *, repeated: bool = False) -> None:
        """Begin a training step in which the statistics `wanted` are requested.

        Args:
            wanted: Names of the statistics that are requested.
            repeated: Whether the current step begins again, after an error or a dropped gradient.
        """
        self._step += not repeated
        self._wanted = wanted
        self.place = self._place_of(wanted)

    def close(self) -> None:
        """Note that the current step was measured successfully."""
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
