"""Adapt the tables of a page to narrow screens."""

from __future__ import annotations

import html
import re

TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
CELL = re.compile(r"<td((?: [^>]*)?)>(.*?)</td>", re.DOTALL)
INTERVAL = re.compile(r"\[[+-]?[\d.,]+, [+-]?[\d.,]+\]")
CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")

LONG_WORD = 26
"""Number of characters from which a word of code in a cell may be broken after a dot or bracket."""

LONG = 18
"""Mean number of characters per cell from which a table counts as a table of texts."""


def adapted(page: str) -> str:
    """Return the HTML of a page whose tables are marked for the style sheet.

    An interval such as [0.12, 0.15] stays on one line, and a long word of code may be broken. A
    table of texts with three or more columns gets the attribute `data-stacked`, and each cell gets
    the heading of its column: a phone shows the cells of a row below each other instead of a table
    that is wider than the screen.
    """
    return TABLE.sub(lambda found: _adapted_table(found[0]), page)


def _adapted_table(table: str) -> str:
    table = CODE.sub(lambda found: breakable(found[0]), table)
    table = INTERVAL.sub(r'<span class="one-line">\g<0></span>', table)
    headings = [_text(cell) for cell in re.findall(r"<th[^>]*>(.*?)</th>", table, re.DOTALL)]
    if not is_stacked(table, columns=len(headings)):
        return table
    rows = re.split(r"(?=<tr>)", table)
    return "".join(_labelled(row, headings) for row in rows).replace(
        "<table", "<table data-stacked", 1
    )


def breakable(code: str) -> str:
    """Return code whose long words may be broken after a dot or an opening bracket.

    >>> breakable("torch.nn.parallel.DistributedDataParallel(model)")
    'torch.<wbr>nn.<wbr>parallel.<wbr>DistributedDataParallel(<wbr>model)'
    >>> breakable("optimizer.step()")
    'optimizer.step()'
    """
    words = re.split(r"(\s+)", code)
    long = [len(html.unescape(word)) >= LONG_WORD for word in words]
    return "".join(
        re.sub(r"([.(=])(?=\w)", r"\1<wbr>", word) if broken else word
        for word, broken in zip(words, long, strict=True)
    )


def is_stacked(table: str, *, columns: int) -> bool:
    """Return whether a phone shows the cells of each row below each other.

    >>> is_stacked("<td>0.12</td><td>0.13</td><td>0.14</td>", columns=3)
    False
    >>> is_stacked("<td>The ranks do not agree on one batch size</td>" * 3, columns=3)
    True
    """
    texts = [text for _, cell in CELL.findall(table) if (text := _text(cell))]
    return columns >= 3 and sum(map(len, texts)) >= LONG * len(texts) > 0


def _labelled(row: str, headings: list[str]) -> str:
    """Return a row whose cells name the headings of their columns."""
    names = iter(headings)

    def labelled(found: re.Match[str]) -> str:
        name = html.escape(next(names, ""), quote=True)
        return f'<td data-label="{name}"{found[1]}>{found[2]}</td>'

    return CELL.sub(labelled, row)


def _text(cell: str) -> str:
    """Return the text of a cell without its elements."""
    return html.unescape(re.sub(r"<[^>]+>", "", cell)).strip()
