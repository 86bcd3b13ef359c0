"""One run as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.record import Record
from largebatch.workbench.reports.changes import Change, ReasonGroup, changes_of, reasons_of
from largebatch.workbench.reports.curves import ReportCurve, noise_curve, run_curves
from largebatch.workbench.reports.facts import ADAM_NOISE, NOISE, facts_of, notes_of

CHANGES = 200
"""Most rows of one list in a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRun:
    """One run as a report shows it.

    Args:
        name: of its file.
        facts: label -> text, for the table.
        curves: what is drawn; one without values says in `missing` why.
        open_ended: whether an interval of the noise scale has no upper end; its band is cut.
        missing: name of a curve -> why there is none.
        changes: of the batch, steps skipped, reasons given once; the first and last of many.
        left_out: changes beyond them.
        kinds: the reasons of all steps, grouped.
        notes: what to know about the file.
    """

    name: str
    facts: Mapping[str, str]
    curves: tuple[ReportCurve, ...]
    open_ended: bool
    missing: Mapping[str, str]
    changes: tuple[Change, ...]
    left_out: int
    kinds: tuple[ReasonGroup, ...]
    notes: tuple[str, ...]


def reported_run(record: Record, *, name: str, points: int = 400) -> ReportedRun:
    """Return what to show of a record.

    Args:
        record: of a run, whole or up to its damage.
        name: how the run is called.
        points: most points of a curve; beyond, each is the mean of several, with their range.
    """
    sound = [step for step in record.steps if step.seen.finite]
    curves = run_curves(sound, points=points)
    missing = {curve.name: "the record has no such number" for curve in curves if not curve.y}
    noises = {name: noise_curve(sound, name) for name in (NOISE, ADAM_NOISE)}
    curves += [noise for noise, _, _ in noises.values() if noise is not None]
    missing |= {name: why for name, (_, _, why) in noises.items() if why}
    changes = changes_of(record)
    shown = (
        changes if len(changes) <= CHANGES else changes[: CHANGES // 2] + changes[-CHANGES // 2 :]
    )
    return ReportedRun(
        name=name,
        facts=facts_of(record),
        curves=tuple(curve for curve in curves if curve.y),
        open_ended=any(open_ended for _, open_ended, _ in noises.values()),
        missing=missing,
        changes=tuple(shown),
        left_out=len(changes) - len(shown),
        kinds=reasons_of(record.steps),
        notes=notes_of(record),
    )


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return short names that tell the files apart."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
