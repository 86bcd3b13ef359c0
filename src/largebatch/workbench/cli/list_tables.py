"""Build the tables of `largebatch methods` and `largebatch workloads`."""

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
    """Return a table with the name, summary and reference of each method."""
    table = plain_table("method", "what it does", "reference")
    for method in methods:
        table.add_row(method.name, method.summary, method.reference or "-")
    note = (
        "S is the scale: the batch size divided by the base batch size. In largebatch compare, "
        "'linear+' stands for the method 'linear', trained for as many steps as 'adascale' took; "
        "other methods that do not measure a gain accept the + too. (SGD) and (Adam) name the "
        "optimizer that a method is made for. The methods 'adadagrad-norm', 'adadagrad' and "
        "'adadam' bring their own optimizer; all other methods use the optimizer of the workload."
    )
    return Group(table, Text(note, style="dim"))


def workloads_table(workloads: Iterable[Workload]) -> RenderableType:
    """Return a table with each workload and its settings at the base batch size."""
    table = plain_table("workload", "what it is", "base batch", "base lr", "epochs")
    for workload in workloads:
        table.add_row(
            workload.name,
            workload.summary,
            str(workload.base_batch_size),
            f"{workload.base_lr:g}",
            f"{workload.budget_epochs:g}",
        )
    note = (
        "To train your own workload, name the function that returns it: "
        "largebatch train package.module:function (see examples/own_workload.py)."
    )
    return Group(table, Text(note, style="dim"))
