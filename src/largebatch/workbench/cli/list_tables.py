"""The tables of `largebatch methods` and `largebatch workloads`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from largebatch.methods import Method
from largebatch.workbench.cli.plain_table import plain_table

if TYPE_CHECKING:
    from largebatch.workbench.workloads import Workload


def methods_table(methods: Iterable[Method]) -> RenderableType:
    """Return name, summary and reference of each method."""
    table = plain_table("method", "what it does", "reference")
    for method in methods:
        table.add_row(method.name, method.summary, method.reference or "-")
    note = (
        "S is the scale: the batch in base batches. In compare, a + after a method with the fixed "
        "clock (linear+) gives it the steps that adascale took. (SGD) and (Adam) say what a method "
        "is for; the optimizer is the workload's, or with adadagrad-norm, adadagrad and adadam "
        "their own."
    )
    return Group(table, Text(note, style="dim"))


def workloads_table(workloads: Iterable[Workload]) -> RenderableType:
    """Return each workload with its settings at the base batch."""
    table = plain_table("workload", "what it is", "base batch", "base rate", "epochs")
    for workload in workloads:
        table.add_row(
            workload.name,
            workload.summary,
            str(workload.base_batch_size),
            f"{workload.base_lr:g}",
            f"{workload.budget_epochs:g}",
        )
    note = "Your own: largebatch train package.module:factory (examples/own_workload.py)."
    return Group(table, Text(note, style="dim"))
