"""Run an experiment from the command line: measure its parts, or check them against the record."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.lab.findings import Findings, differing, write_expected
from experiments.lab.ledger import Ledger
from experiments.lab.run import Result, Run

QUICK_SECONDS = 100
"""Largest total time, in seconds per worker, of the recorded runs that a quick check repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Describe one part of an experiment: one record, one page and possibly one picture.

    Args:
        title: Title of the page.
        find: Function that makes or reads the runs of the part and returns the text and the
            numbers of its page. The first paragraph states the question and the answer.
        draw: Function that draws the picture from the runs that `find` used; None for no picture.
        spots: If True, the quick check makes some recorded runs again. It is False if runs are so
            close to divergence that rounding on another machine can decide the outcome.
        spot_seconds: Largest total time of these runs, in seconds per worker, as recorded.
    """

    title: str
    find: Callable[[Ledger], Findings]
    draw: Callable[[Ledger, Path], None] | None = None
    spots: bool = False
    spot_seconds: float = QUICK_SECONDS


def main(parts: Mapping[str, Part], *, here: Path) -> None:
    """Run an experiment from the command line.

    Without options, all runs are made again and recorded in `runs/`, and the numbers are compared
    with `expected.json` within their tolerances. An interrupted call resumes when it is repeated.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compute the numbers from the recorded runs, compare them with expected.json, and "
        "make some of the recorded runs again",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="make the runs that the record lacks, and write the record, the pages, the pictures "
        "and expected.json",
    )
    parser.add_argument(
        "--parts", default=",".join(parts), help="names of the parts, separated by commas"
    )
    parser.add_argument("--workers", type=int, default=2, help="number of processes")
    arguments = parser.parse_args()
    wrong, expected = [], here / "expected.json"
    for name in arguments.parts.split(","):
        part, record = parts[name], here / "record" / f"{name}.jsonl"
        if arguments.update:
            ledger = Ledger(record, workers=arguments.workers)
            findings = part.find(ledger)
            write_expected(expected, name, findings)
            (here / f"{name}.md").write_text(page_of(part, name, findings))
            if part.draw is not None:
                part.draw(ledger, here / f"{name}.png")
            print(f"{name}: check that the answer at the top of {name}.md agrees with its tables")
        elif arguments.quick:
            ledger = Ledger(record, workers=0)
            wrong += differing(expected, name, part.find(ledger), exact=True)
            if part.spots:
                wrong += _again(ledger, workers=arguments.workers, seconds=part.spot_seconds)
        else:
            ledger = Ledger(Path("runs") / "evidence" / here.name / f"{name}.jsonl")
            findings = part.find(ledger)
            print(page_of(part, name, findings))
            wrong += differing(expected, name, findings, exact=False)
    for line in wrong:
        print(f"differs from expected.json: {line}")
    raise SystemExit(1 if wrong else 0)


def page_of(part: Part, name: str, findings: Findings) -> str:
    """Return the page of a part as Markdown: title, question and answer, picture, tables.

    Args:
        part: The part.
        name: Name of the part, which is also the name of its picture.
        findings: Text of the page. Its first paragraph stands above the picture.
    """
    picture = [f"![{part.title}]({name}.png)"] if part.draw is not None else []
    answer, *rest = findings.text
    return "\n\n".join([f"# {part.title}", answer, *picture, *rest]) + "\n"


def _again(ledger: Ledger, *, workers: int, seconds: float) -> list[str]:
    """Make short recorded runs again, and return one line for each run with another result.

    One run is made for each combination of workload, method and scale, from the shortest on, until
    the time is used up.

    Args:
        ledger: Ledger that holds the recorded runs.
        workers: Number of processes.
        seconds: Largest total time of the runs, in seconds per worker, as recorded.
    """
    chosen: dict[tuple[str, str, int], Run] = {}
    left = seconds * workers
    there = {run.key: result for run, result in _pairs(ledger)}
    for run in sorted(ledger.asked.values(), key=lambda run: there[run.key].seconds):
        cell = (run.workload, run.method, run.scale)
        if cell not in chosen and there[run.key].seconds < left and not there[run.key].diverged:
            chosen[cell] = run
            left -= there[run.key].seconds
    folder = Path(tempfile.mkdtemp())
    try:
        again = Ledger(folder / f"{ledger.path.stem}-again.jsonl", workers=workers)
        runs = list(chosen.values())
        pairs = list(zip(runs, again.results(runs), strict=True))
    finally:
        shutil.rmtree(folder)
    same = sum(
        (new.validation, new.forecast) == (there[run.key].validation, there[run.key].forecast)
        for run, new in pairs
    )
    print(f"{len(pairs)} recorded runs were made again; {same} gave exactly the recorded losses.")
    return [line for run, new in pairs if (line := _unlike(run, there[run.key], new))]


def _pairs(ledger: Ledger) -> list[tuple[Run, Result]]:
    runs = list(ledger.asked.values())
    return list(zip(runs, ledger.results(runs), strict=True))


def _unlike(run: Run, old: Result, new: Result) -> str:
    """Return how the new result differs from the recorded one, or "" if rounding explains it."""
    if new.diverged:
        return f"{run.facts}: the run diverged when it was made again"
    if not old.validation:  # a probe
        apart = [abs(a[1] / b[1] - 1.0) for a, b in zip(new.forecast, old.forecast, strict=True)]
        if max(apart, default=0.0) <= 0.2:
            return ""
        return f"{run.facts}: the relative differences of the forecasts are {apart}, above 0.2"
    was, now = old.validation["loss"], new.validation["loss"]
    if abs(now - was) > 0.1 * was + 0.02 or abs(new.steps - old.steps) > 0.05 * old.steps + 2:
        return (
            f"{run.facts}: {new.steps} steps with validation loss {now:.4f}; the record has "
            f"{old.steps} steps with validation loss {was:.4f}"
        )
    return ""
