"""Build an empty table in the style of all printed results."""

from __future__ import annotations

from rich import box
from rich.table import Table

WRAPPED = frozenset({"what it does", "what it is", "reference", "finding", "reason"})
LEFT = WRAPPED | {"method", "workload", "quality", "level", "check", "schedule"}


def plain_table(*names: str) -> Table:
    """Return a table with the given columns, which aligns text to the left and numbers to the
    right.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for name in names:
        left = name in LEFT
        table.add_column(
            name,
            justify="left" if left else "right",
            no_wrap=name not in WRAPPED,
        )
    return table
