"""Write one HTML page that shows one or several recorded runs and needs no network connection."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from largebatch.core.codec import encode
from largebatch.core.errors import LargeBatchError, RecordError
from largebatch.core.version import __version__
from largebatch.record import read_record
from largebatch.workbench.reports.curves import AXES, UNMEASURED
from largebatch.workbench.reports.facts import ADAM_NOISE, NOISE
from largebatch.workbench.reports.run import ReportedRun, names_of, reported_run

PAGE = files("largebatch.workbench.reports") / "page"
MOST_RUNS = 8
"""Largest number of runs on a page, because there are 8 pairs of color and dash pattern."""

NOISES = (NOISE, ADAM_NOISE)
GAIN = "gain"
CURVES = ("training loss", "learning rate", "batch size", GAIN)

TIME = "%Y-%m-%d %H:%M"
"""Format of dates on the page."""


def write_report(records: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write a page that shows recorded runs, and return its path.

    >>> import tempfile
    >>> from largebatch import workbench
    >>> folder = tempfile.mkdtemp()
    >>> run = workbench.train("digits", budget="8steps", record=f"{folder}/a.jsonl", evaluations=0)
    >>> workbench.write_report([f"{folder}/a.jsonl"], f"{folder}/report.html").name
    'report.html'

    Args:
        records: Paths of 1 to 8 files that `JsonlRecord` wrote. If a file is corrupted, the page
            shows the steps before the first corrupted line.
        out: Path of the HTML file to write. An existing file is replaced.

    Raises:
        ValueError: The number of records is not supported, or `out` is not an .html file or is one
            of the records.
        RecordError: A file is not a record, or contains no step.
        LargeBatchError: The package jinja2 is not installed, or the page cannot be written.
    """
    paths, page = [Path(path) for path in records], Path(out)
    _check(paths, page)
    try:
        from jinja2 import Environment
    except ImportError:
        raise LargeBatchError(
            "A report requires the package jinja2, which is not installed. Install it: "
            "pip install 'largebatch[report]'"
        ) from None
    runs = _runs_of(paths)
    template = Environment(autoescape=True).from_string(_part("report.html.jinja"))
    _write(page, template.render(**_values(runs)))
    return page


def _runs_of(paths: Sequence[Path]) -> list[ReportedRun]:
    runs = []
    for path, name in zip(paths, names_of(paths), strict=True):
        record = read_record(path, up_to_damage=True)
        if not record.steps:
            raise RecordError(
                f"The record {path} contains no step to show"
                f"{': ' + record.damage if record.damage else '.'} Leave out this record."
            )
        run = reported_run(record, name=name, points=max(60, 1200 // len(paths)))
        written = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
        runs.append(replace(run, facts={**run.facts, "last written": f"{written:{TIME}}"}))
    return runs


def _values(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Return the values of the variables in the page's template."""
    gained = any(GAIN not in run.missing for run in runs)
    data = [
        {
            "name": run.name,
            "curves": {curve.name: encode(curve) for curve in run.curves},
            "missing": dict(run.missing),
        }
        for run in runs
    ]
    return {
        "runs": runs,
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False),
        "axes": AXES if gained else AXES[:-1],
        "gained": gained,
        "workload": runs[0].facts["workload"]
        if len({run.facts["workload"] for run in runs}) == 1
        else "",
        "written": f"{datetime.now().astimezone():{TIME}}",
        "facts": [fact for fact in runs[0].facts if any(run.facts[fact] for run in runs)],
        "thinned": any(c.low for run in runs for c in run.curves if c.name not in NOISES),
        "open_ended": any(run.open_ended for run in runs),
        "curves": tuple(name for name in CURVES if gained or name != GAIN) + _noises(runs),
        "noises": NOISES,
        "version": __version__,
        "library": _part("uPlot.iife.min.js"),
        "library_style": _part("uPlot.min.css"),
        "script": _part("report.js"),
        "style": _part("report.css"),
        "title": f"largebatch: {', '.join(run.name for run in runs)}",
    }


def _write(page: Path, text: str) -> None:
    partial = page.with_name(f"{page.name}.partial")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, page)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise LargeBatchError(
            f"The report cannot be written to {page} ({error.strerror}). Pass another file: "
            "out='report.html'"
        ) from error


def _noises(runs: Sequence[ReportedRun]) -> tuple[str, ...]:
    """Return the noise scales that at least one run measured, or `NOISE` if no run measured any."""
    return tuple(
        name for name in NOISES if any(run.missing.get(name) != UNMEASURED for run in runs)
    ) or (NOISE,)


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _check(paths: Sequence[Path], page: Path) -> None:
    if not 1 <= len(paths) <= MOST_RUNS:
        raise ValueError(
            f"{len(paths)} records were given, but a report shows 1 to {MOST_RUNS} runs. Pass "
            f"1 to {MOST_RUNS} records."
        )
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(
            f"out='{page}' was given, but a report is an .html file. Pass out='report.html'"
        )
    for path in paths:
        if path.is_dir() or not path.exists():
            raise RecordError(
                f"The record {path} does not exist or is a directory. To record a run, use "
                "largebatch train digits --record run.jsonl"
            )
        if page.exists() and page.samefile(path):
            raise ValueError(
                f"out='{page}' was given, but this file is one of the records and would be "
                "replaced. Pass another file: out='report.html'"
            )
