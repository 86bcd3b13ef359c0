"""Print a study's report as sections of plain text, without further dependencies."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from largebatch.analysis.efficiency import Range

WIDTH = 96
"""Width of the text in columns."""

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Hold one section: a heading, paragraphs, a table, notes, a list and lines to paste.

    Args:
        title: Heading of the section.
        paragraphs: Paragraphs above the table.
        table: Rows of cells, of which the first row is the header; the first column is
            left-aligned, the other columns are right-aligned.
        notes: Paragraphs below the table.
        items: Items of a list.
        code: Lines to paste.
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    code: tuple[str, ...] = ()


def sections_text(sections: Sequence[Section]) -> str:
    """Return the sections as plain text.

    >>> print(sections_text([Section(title="Sizes", table=(("batch", "steps"), ("64", "1000")))]))
    Sizes
      batch   steps
      64       1000
    """
    return "\n\n".join("\n".join(_lines(section)) for section in sections)


def number(value: float) -> str:
    """Return a number with three significant digits and thousands separators, without an exponent.

    >>> number(1234567.0), number(0.04567), number(math.inf)
    ('1,230,000', '0.0457', 'no limit')
    """
    if math.isinf(value):
        return "no limit"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100.0 else f"{rounded:g}"


def interval(span: Range) -> str:
    """Return a value with its interval, or only the lower bound if there is no upper bound.

    >>> interval(Range(value=4.0, low=3.0, high=6.0))
    '4 [3, 6]'
    >>> interval(Range(value=4.0, low=3.0, high=math.inf))
    'at least 3'
    """
    if math.isinf(span.high):
        return f"at least {number(span.low)}"
    return f"{number(span.value)} [{number(span.low)}, {number(span.high)}]"


def sparkline(values: Sequence[float]) -> str:
    """Return one bar for each value on a logarithmic scale, and a space for an unknown value.

    >>> sparkline([1.0, 10.0, 100.0, math.nan])
    '▁▅█ '
    """
    logs = [math.log(v) if 0.0 < v < math.inf else None for v in values]
    known = [log for log in logs if log is not None]
    low, span = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    if span <= 0.0:
        return ""
    last = len(BARS) - 1
    return "".join(
        " " if log is None else BARS[math.ceil((log - low) / span * last - 1e-9)] for log in logs
    )


def _lines(section: Section) -> Iterator[str]:
    yield section.title
    for paragraph in section.paragraphs:
        yield from _wrapped(paragraph)
    yield from _aligned(section.table)
    for paragraph in section.notes:
        yield from _wrapped(paragraph)
    for item in section.items:
        yield from _wrapped(f"- {item}", hanging="    ")
    for line in section.code:
        yield f"    {line}"


def _wrapped(paragraph: str, *, hanging: str = "  ") -> list[str]:
    return textwrap.wrap(
        paragraph,
        WIDTH,
        initial_indent="  ",
        subsequent_indent=hanging,
        break_on_hyphens=False,
    )


def _aligned(table: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    """Yield the rows of a table, with columns as wide as their widest cells."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "   ".join(cells)
