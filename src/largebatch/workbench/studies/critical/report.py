"""The answers side by side: one table, then what each assumes, as text or printed by rich."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from largebatch.workbench.studies.probe.report import WIDTH

if TYPE_CHECKING:
    from rich.console import Console

    from largebatch.workbench.studies.critical.values import Answer, Critical

HEADS = ("by", "samples", "steps", "seconds", "where", "loss", "critical batch, samples [95 %]")
"""Columns; the cost stands in the first row of each method."""

FIRST_TEXT = {0, 4, 6}
"""Columns of text, to the left."""

LOSSES = "Losses: training loss for noise, validation loss at the window's end for branches"


def head_of(result: Critical) -> str:
    """What was run."""
    ranks = f", on {result.ranks} ranks" if result.ranks > 1 else ""
    return (
        f"Critical batch of {result.name}: {result.optimizer}, base batch "
        f"{result.base_batch_size:,}, rate {result.base_lr:g}, a run of "
        f"{result.budget_samples:,} samples{ranks}"
    )


def rows_of(answer: Answer) -> Iterator[tuple[str, ...]]:
    """The rows of one method, its name and its cost in the first."""
    cost = (answer.method, f"{answer.samples:,}", f"{answer.steps:,}", f"{answer.seconds:.1f}")
    for index, finding in enumerate(answer.findings):
        yield (
            *(cost if index == 0 else ("",) * len(cost)),
            finding.where,
            "" if finding.loss is None else f"{finding.loss:.3g}",
            str(finding),
        )


def lines_of(result: Critical) -> Iterator[str]:
    """What stands below the table."""
    for answer in result.answers:
        yield f"{answer.method}: {answer.assumes}."
        yield from (f"{answer.method}: {note}." for note in answer.notes)
    yield f"{LOSSES}, the target for sweep. Costs are those of training; judging comes on top."


def text_of(result: Critical) -> str:
    """Plain text, for which nothing needs to be installed."""
    rows = [HEADS, *(row for answer in result.answers for row in rows_of(answer))]
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
        for line in lines_of(result)
        for wrapped in textwrap.wrap(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    ]
    return "\n".join([head_of(result), "", *table, "", *below])


def print_rich(result: Critical, console: Console) -> None:
    """Prints the table with rich."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column, head in enumerate(HEADS):
        left = column in FIRST_TEXT
        table.add_column(Text(head), justify="left" if left else "right", no_wrap=column < 6)
    for index, answer in enumerate(result.answers):
        if index:
            table.add_section()
        for row in rows_of(answer):
            table.add_row(*map(Text, row))
    console.print(Text(head_of(result)))
    console.print(table)
    for line in lines_of(result):
        console.print(Text(line, style="dim"))
