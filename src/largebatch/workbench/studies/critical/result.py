"""The answers of all methods side by side, and their report as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from largebatch.studies.report_text import WIDTH
from largebatch.workbench.studies.critical.values import Answer

HEADS = ("by", "samples", "steps", "seconds", "where", "loss", "critical batch, samples [95 %]")
"""Columns; the cost stands in the first row of each method."""

FIRST_TEXT = {0, 4, 6}
"""Columns of text, aligned to the left."""

LOSSES = "Losses: training loss for noise, validation loss at the window's end for branches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Critical:
    """The answers of all methods; `print` shows them as text.

    Args:
        name: of the workload.
        optimizer: class name.
        base_batch_size: B, in samples.
        base_lr: rate tuned at B.
        budget_samples: of the base run.
        ranks: processes that shared each batch.
        answers: one of each method.
    """

    name: str
    optimizer: str
    base_batch_size: int
    base_lr: float
    budget_samples: int
    ranks: int
    answers: tuple[Answer, ...]

    def __str__(self) -> str:
        return critical_text(self)


def critical_title(result: Critical) -> str:
    """Return what was run."""
    ranks = f", on {result.ranks} ranks" if result.ranks > 1 else ""
    return (
        f"Critical batch of {result.name}: {result.optimizer}, base batch "
        f"{result.base_batch_size:,}, rate {result.base_lr:g}, a run of "
        f"{result.budget_samples:,} samples{ranks}"
    )


def answer_rows(answer: Answer) -> Iterator[tuple[str, ...]]:
    """Yield the rows of one method, its name and its cost in the first."""
    cost = (answer.method, f"{answer.samples:,}", f"{answer.steps:,}", f"{answer.seconds:.1f}")
    for index, finding in enumerate(answer.findings):
        yield (
            *(cost if index == 0 else ("",) * len(cost)),
            finding.where,
            "" if finding.loss is None else f"{finding.loss:.3g}",
            str(finding),
        )


def critical_notes(result: Critical) -> Iterator[str]:
    """Yield the lines below the table."""
    for answer in result.answers:
        yield f"{answer.method}: {answer.assumes}."
        yield from (f"{answer.method}: {note}." for note in answer.notes)
    yield f"{LOSSES}, the target for sweep. Costs are those of training; judging comes on top."


def critical_text(result: Critical) -> str:
    """Return the answers as plain text, for which nothing needs to be installed."""
    rows = [HEADS, *(row for answer in result.answers for row in answer_rows(answer))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  "
        + "  ".join(
            cell.ljust(width) if column in FIRST_TEXT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    below = [
        wrapped
        for line in critical_notes(result)
        for wrapped in textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]
    return "\n".join([critical_title(result), "", *table, "", *below])
