"""Hold the answers of all methods of a critical-batch study and print them as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from largebatch.studies.report_text import WIDTH
from largebatch.workbench.studies.critical.values import Answer

HEADS = ("method", "samples", "steps", "seconds", "where", "loss", "critical batch size [95 %]")
"""Column headings. Only the first row of each method shows the cost of the method."""

FIRST_TEXT = {0, 4, 6}
"""Indices of the columns that hold text and are aligned to the left."""

LOSSES = (
    "The loss column shows the training loss for 'noise', the validation loss of the base run at "
    "the end of the window for 'branches'"
)
"""Note below the table that explains the loss column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Critical:
    """Hold the answers of all methods; `print` shows them as a table.

    Args:
        name: Name of the workload.
        optimizer: Class name of the optimizer.
        base_batch_size: Base batch size B, in samples.
        base_lr: Learning rate that is tuned for the base batch size.
        budget_samples: Number of samples of the base run.
        ranks: Number of processes that shared each batch.
        answers: One answer per method.
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
    """Return the title of the report, which names the workload, the optimizer and the base run."""
    ranks = f", on {result.ranks} ranks" if result.ranks > 1 else ""
    return (
        f"Critical batch size of {result.name}: {result.optimizer}, base batch size "
        f"{result.base_batch_size:,}, learning rate {result.base_lr:g}, a run of "
        f"{result.budget_samples:,} samples{ranks}"
    )


def answer_rows(answer: Answer) -> Iterator[tuple[str, ...]]:
    """Yield the table rows of one method; only the first row shows the method's name and cost."""
    cost = (answer.method, f"{answer.samples:,}", f"{answer.steps:,}", f"{answer.seconds:.1f}")
    for index, finding in enumerate(answer.findings):
        yield (
            *(cost if index == 0 else ("",) * len(cost)),
            finding.where,
            "" if finding.loss is None else f"{finding.loss:.3g}",
            str(finding),
        )


def critical_notes(result: Critical) -> Iterator[str]:
    """Yield the notes below the table: assumptions of each method, and what the columns mean."""
    for answer in result.answers:
        yield f"{answer.method}: {answer.assumes}."
        yield from (f"{answer.method}: {note}." for note in answer.notes)
    yield f"{LOSSES}, and the target loss for 'sweep'."
    yield "Samples, steps and seconds are the cost of each method."
    yield "Samples and steps count training only, without the evaluation of the validation loss."


def critical_text(result: Critical) -> str:
    """Return the answers as plain text, without any optional package."""
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
