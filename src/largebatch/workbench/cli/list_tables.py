"""The tables of `largebatch methods` and `largebatch workloads`."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.text import Text

from largebatch.workbench.cli.list_methods import MethodEntry, WorkloadEntry
from largebatch.workbench.cli.plain_table import plain_table


def methods_table(entries: Iterable[MethodEntry]) -> RenderableType:
    """Return name, summary and reference of each method."""
    table = plain_table("method", "what it does", "reference")
    for entry in entries:
        table.add_row(entry.name, entry.summary, entry.reference or "-")
    note = (
        "S is the scale: the batch in base batches. In compare, a + after a method with the fixed "
        "clock (linear+) gives it the steps that adascale took. (SGD) and (Adam) say what a method "
        "is for; the optimizer is the workload's, or with adadagrad-norm, adadagrad and adadam "
        "their own."
    )
    return Group(table, Text(note, style="dim"))


def workloads_table(entries: Iterable[WorkloadEntry]) -> RenderableType:
    """Return each workload with its settings at the base batch."""
    table = plain_table("workload", "what it is", "base batch", "base rate", "epochs")
    for entry in entries:
        table.add_row(
            entry.name,
            entry.summary,
            str(entry.base_batch_size),
            f"{entry.base_lr:g}",
            f"{entry.budget_epochs:g}",
        )
    note = "Your own: largebatch train package.module:factory (examples/own_workload.py)."
    return Group(table, Text(note, style="dim"))
