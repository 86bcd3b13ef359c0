"""An experiment as a program: parts that measure, or that are checked against what is recorded."""

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

OUTDATED = (
    "> The runs of this page were made with version 0.1.0, whose rules decided otherwise. They are "
    "being made again."
)
"""At the top of a page whose part is `outdated`."""

QUICK_SECONDS = 100
"""Of runs that a quick check makes again, as long as they took when they were recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of an experiment.

    Args:
        title: of its page.
        find: measures, or reads, what the ledger has, and says what it means.
        draw: its picture of what `find` asked for; None for none.
        spots: whether single runs of it are made again by the quick check: those that are near the
            edge of what trains are not.
        spot_seconds: how long those runs took when they were recorded, at most, on each worker.
        outdated: whether a rule has changed since its runs were recorded, and not all of them were
            made again. The quick check leaves it out, and its page says so (`OUTDATED`).
    """

    title: str
    find: Callable[[Ledger], Findings]
    draw: Callable[[Ledger, Path], None] | None = None
    spots: bool = False
    spot_seconds: float = QUICK_SECONDS
    outdated: bool = False


def main(parts: Mapping[str, Part], *, here: Path) -> None:
    """Runs an experiment from the command line.

    Without options everything is measured anew in `runs/`, going on where it was interrupted, and
    compared with `expected.json`. `--quick` computes the tables from the record that lies beside
    the program, compares them to the last digit, and makes some of the recorded runs again.
    `--update` measures what the record lacks and writes record, tables, pictures and expected
    numbers.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--parts", default=",".join(parts), help="some of the parts, with commas")
    parser.add_argument("--workers", type=int, default=2)
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
        elif arguments.quick and part.outdated:
            print(f"{name}: its runs are being made again")
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
        print(f"differs: {line}")
    raise SystemExit(1 if wrong else 0)


def page_of(part: Part, name: str, findings: Findings) -> str:
    """A part as Markdown."""
    picture = [f"![{part.title}]({name}.png)"] if part.draw is not None else []
    return "\n\n".join([f"# {part.title}", *picture, *findings.text]) + "\n"


def _again(ledger: Ledger, *, workers: int, seconds: float) -> list[str]:
    """Makes short runs of the record again, the first seed of each cell; a line for each that
    came to something else."""
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
    print(f"{len(pairs)} recorded runs made again, {same} of them to the same bits")
    return [line for run, new in pairs if (line := _unlike(run, there[run.key], new))]


def _pairs(ledger: Ledger) -> list[tuple[Run, Result]]:
    runs = list(ledger.asked.values())
    return list(zip(runs, ledger.results(runs), strict=True))


def _unlike(run: Run, old: Result, new: Result) -> str:
    """Empty where both are one run up to what rounding makes of it."""
    if new.diverged:
        return f"{run.facts}: diverged when made again"
    if not old.validation:  # a probe
        apart = [abs(a[1] / b[1] - 1.0) for a, b in zip(new.forecast, old.forecast, strict=True)]
        return f"{run.facts}: forecasts {apart} apart" if max(apart, default=0.0) > 0.2 else ""
    was, now = old.validation["loss"], new.validation["loss"]
    if abs(now - was) > 0.1 * was + 0.02 or abs(new.steps - old.steps) > 0.05 * old.steps + 2:
        return f"{run.facts}: {new.steps} steps, loss {now:.4f}; was {old.steps}, {was:.4f}"
    return ""
