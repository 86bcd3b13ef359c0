"""`largebatch methods` and `largebatch workloads`: what may be named on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from largebatch.methods import METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEntry:
    """A method; `own_clock` is whether it decides itself when its run is over."""

    name: str
    summary: str
    reference: str
    own_clock: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEntry:
    """A workload with its settings at the base batch."""

    name: str
    summary: str
    base_batch_size: int
    base_lr: float
    budget_epochs: float


def list_methods() -> tuple[MethodEntry, ...]:
    """Every method, with the papers that its docstring names.

    >>> list_methods()[1].reference
    'Goyal et al., 2017, arXiv 1706.02677'
    """
    return tuple(
        MethodEntry(
            name=method.name,
            summary=method.summary,
            reference=method.reference,
            own_clock=method.own_clock,
        )
        for method in METHODS.values()
    )


def list_workloads() -> tuple[WorkloadEntry, ...]:
    """Return every registered workload; no data is read."""
    from largebatch.workbench.workloads import load, names

    return tuple(
        WorkloadEntry(
            name=workload.name,
            summary=workload.summary,
            base_batch_size=workload.base_batch_size,
            base_lr=workload.base_lr,
            budget_epochs=workload.budget_epochs,
        )
        for workload in map(load, names())
    )
