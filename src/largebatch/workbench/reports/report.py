"""`largebatch report`: one run or several side by side, as one page that needs no network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
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
"""More could not be told apart by colour and dash."""

NOISES = (NOISE, ADAM_NOISE)
CURVES = ("training loss", "learning rate", "batch size", "gain")


def write_report(records: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Path:
    """Write the page and return its path.

    Args:
        records: files that `JsonlRecord` wrote; a damaged one is shown up to the damage.
        out: the page to write; one that is there is replaced.

    Raises:
        ValueError: no record or too many, or a page that is no .html file or one of the records.
        RecordError: a file that is no record, or without any step.
        LargeBatchError: jinja2 is not installed, or the page cannot be written.
    """
    paths, page = [Path(path) for path in records], Path(out)
    _check(paths, page)
    try:
        from jinja2 import Environment
    except ImportError:
        raise LargeBatchError("A report needs jinja2: pip install 'largebatch[report]'") from None
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
                f"{path} has no step to show{': ' + record.damage if record.damage else '.'} "
                "Leave it out."
            )
        runs.append(reported_run(record, name=name, points=max(60, 1200 // len(paths))))
    return runs


def _values(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """What the page's template shows, by the names that it uses."""
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
        "axes": AXES,
        "facts": [fact for fact in runs[0].facts if any(run.facts[fact] for run in runs)],
        "thinned": any(c.low for run in runs for c in run.curves if c.name not in NOISES),
        "open_ended": any(run.open_ended for run in runs),
        "curves": CURVES + _noises(runs),
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
            f"{page} cannot be written ({error.strerror}). Name another file: --out report.html"
        ) from error


def _noises(runs: Sequence[ReportedRun]) -> tuple[str, ...]:
    """The noise scales that any run measured; the plain one where none did, to say so."""
    return tuple(
        name for name in NOISES if any(run.missing.get(name) != UNMEASURED for run in runs)
    ) or (NOISE,)


def _part(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _check(paths: Sequence[Path], page: Path) -> None:
    if not 1 <= len(paths) <= MOST_RUNS:
        raise ValueError(
            f"A report shows 1 to {MOST_RUNS} runs; got {len(paths)}. "
            "Example: largebatch report run.jsonl --out report.html"
        )
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"A report is a page, such as --out report.html; got {page}.")
    for path in paths:
        if path.is_dir() or not path.exists():
            raise RecordError(
                f"There is no record {path}. One is written by: largebatch train digits --record "
                "run.jsonl"
            )
        if page.exists() and page.samefile(path):
            raise ValueError(
                f"{page} is one of the records, which the page would replace. Name another file: "
                "--out report.html"
            )
