"""Collect the data that a report shows for one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from largebatch.record import Record
from largebatch.workbench.reports.changes import Change, ReasonGroup, changes_of, reasons_of
from largebatch.workbench.reports.curves import NO_GAIN, ReportCurve, noise_curve, run_curves
from largebatch.workbench.reports.facts import ADAM_NOISE, NOISE, facts_of, notes_of

CHANGES = 200
"""Largest number of changes that a report lists for one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRun:
    """Hold the data that a report shows for one run.

    Args:
        name: Name of the record file.
        facts: Texts of the summary table by label.
        curves: Curves with at least one value.
        open_ended: True if a confidence interval of the noise scale has no upper bound, so that its
            band is cut off.
        missing: Reasons for missing curves, by the name of the curve.
        changes: Changes of the batch size, skipped steps and unique reasons. If a run has more than
            `CHANGES` entries, the entries in the middle of the run are left out.
        left_out: Number of changes that are left out.
        kinds: Reasons of all steps, grouped by their wording.
        notes: Remarks about the record file, as sentences.
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
    """Return the data that a report shows for one record.

    Args:
        record: Record of a run. The record of a corrupted file contains the steps before the first
            corrupted line.
        name: Name of the run in the report.
        points: Largest number of points of a curve. In a longer run, each point is the mean of
            several steps, and the band is their range.
    """
    sound = [step for step in record.steps if step.seen.finite]
    curves = run_curves(sound, points=points)
    missing = {
        curve.name: NO_GAIN if curve.name == "gain" else "the record does not contain this quantity"
        for curve in curves
        if not curve.y
    }
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
    """Return the file names without their endings, or the paths if two names are the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
