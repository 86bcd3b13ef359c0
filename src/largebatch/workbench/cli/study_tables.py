"""Print the results of `probe` and `critical` as text and tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from largebatch.studies.probe_result import ProbeResult, sections_of_probe
from largebatch.studies.report_text import Section
from largebatch.workbench.studies.critical.result import (
    FIRST_TEXT,
    HEADS,
    Critical,
    answer_rows,
    critical_notes,
    critical_title,
)

INDENT = (0, 0, 0, 2)


def print_probe(result: ProbeResult, console: Console) -> None:
    """Print the report of a probe."""
    for section in sections_of_probe(result):
        _print_section(section, console)


def print_critical(result: Critical, console: Console) -> None:
    """Print the answers of all methods in one table, then the assumptions of each method."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column, head in enumerate(HEADS):
        left = column in FIRST_TEXT
        table.add_column(Text(head), justify="left" if left else "right", no_wrap=column < 6)
    for index, answer in enumerate(result.answers):
        if index:
            table.add_section()
        for row in answer_rows(answer):
            table.add_row(*map(Text, row))
    console.print(Text(critical_title(result)))
    console.print(table)
    for line in critical_notes(result):
        console.print(Text(line, style="dim"))


def _print_section(section: Section, console: Console) -> None:
    console.print(f"[bold]{escape(section.title)}[/]")
    for paragraph in section.paragraphs:
        console.print(Padding(escape(paragraph), INDENT))
    if section.table:
        console.print(Padding(_table_of(section.table), INDENT))
    for paragraph in section.notes:
        console.print(Padding(escape(paragraph), INDENT))
    for item in section.items:
        console.print(Padding(f"- {escape(item)}", INDENT))
    for line in section.code:
        console.print(f"    {escape(line)}", style="green", soft_wrap=True, highlight=False)
    console.print()


def _table_of(rows: tuple[tuple[str, ...], ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column, head in enumerate(rows[0]):
        table.add_column(escape(head), justify="left" if column == 0 else "right")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
