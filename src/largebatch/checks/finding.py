"""Describe the findings of a run's checks, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]

LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
"""Levels of findings, from "ok" (nothing to do) to "error" (the run must not be started)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Describe one result of a check.

    Args:
        name: Name of the check, such as "mean loss"; one check may have several findings.
        level: "ok"; "note" for a fact worth knowing; "warning" if numbers may mean something else
            than expected; "error" if the run would be wrong or fail.
        seen: What the check saw, with numbers.
        why: Reason why the finding matters.
        remedy: What to do, with a line to paste.
    """

    name: str
    level: Level
    seen: str
    why: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        parts = (f"{self.level}: {self.seen}", self.why, self.remedy)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckUp:
    """Hold all findings, which are the same on every rank; `print` shows them, the worst first.

    >>> print(CheckUp(findings=(Finding(name="mean loss", level="ok", seen="It is a mean."),)))
    ok: It is a mean.
    """

    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether no finding is an error."""
        return not any(finding.level == "error" for finding in self.findings)

    @property
    def worst_first(self) -> list[Finding]:
        """Findings sorted by level, the worst level first; each level is in the order of the
        checks.
        """
        return sorted(self.findings, key=lambda finding: -LEVELS.index(finding.level))

    def __str__(self) -> str:
        return "\n".join(map(str, self.worst_first))


def merged(ranks: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Return one list from the findings of all ranks.

    For each check, the list has the findings of a rank with the worst level. The text names the
    ranks with the worst level, unless all ranks have this level.

    >>> ok, bad = (Finding(name="x", level=level, seen="Seen.") for level in ("ok", "error"))
    >>> merged([[ok], [bad]])[0].seen
    'Rank 1: Seen.'
    """
    names = dict.fromkeys(finding.name for found in ranks for finding in found)
    return [finding for name in names for finding in _of_one_check(name, ranks)]


def named(names: Iterable[str]) -> str:
    """Return the first three names of a list, and the number of the remaining names."""
    listed = list(names)
    shown = ", ".join(listed[:3])
    return shown if len(listed) <= 3 else f"{shown} and {len(listed) - 3} more"


def _of_one_check(name: str, ranks: Sequence[Sequence[Finding]]) -> list[Finding]:
    each = [[finding for finding in found if finding.name == name] for found in ranks]
    badness = [max((LEVELS.index(f.level) for f in found), default=-1) for found in each]
    worst = max(badness)
    where = [rank for rank, level in enumerate(badness) if level == worst]
    chosen = each[where[0]]
    if len(where) == len(ranks):
        return chosen
    ranks_named = "Rank" if len(where) == 1 else "Ranks"
    prefix = f"{ranks_named} {', '.join(map(str, where))}: "
    return [replace(finding, seen=prefix + finding.seen) for finding in chosen]
