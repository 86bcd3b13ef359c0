"""Make real runs of the planner's schedules, and forecast them from one recorded run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from experiments.adadagrad.setup import Make, Row
from experiments.growth import relation, seesaw_runs
from experiments.growth.schedules import COSINE, Planned, pieces, schedules
from experiments.growth.setup import CNN, DIGITS, Cell, Watched, at, record_of, tuned
from experiments.lab.ledger import Ledger
from experiments.lab.run import Extra
from torch import nn

import largebatch as lb
from largebatch.core.not_enough import NotEnough
from largebatch.workbench.planner.model import QuadraticModel, model_of
from largebatch.workbench.planner.recorded import Entry, entries_of, fit_of, sgd_factor

TEXT = seesaw_runs.CELLS[1]
MOMENTUM = Cell(
    workload="fashion-cnn", optimizer="sgd", start=32, samples=27_500, least=0.0025, points=4
)
CELLS: tuple[Cell, ...] = (DIGITS, CNN, TEXT, MOMENTUM)

RECORDED = 8
"""Seed of the recorded run that the planner is fitted to."""

EXPONENTS = (0.3, 1.0)
"""Exponents of the loss curve that are assumed if only the noise scale is known."""

MOMENTA = {"sgd": 0.9, "sgd-plain": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Watched):
    """Describe the recorded run that the planner is fitted to.

    Each step is measured from the two halves of its batch. The trace of the run holds the entries
    of its record.
    """

    def meter(self, model: nn.Module) -> lb.Meter:
        return lb.Meter(model)

    def extra(self, control: lb.Controller, record: lb.MemoryRecord) -> Extra:
        return Extra(trace=tuple(_numbers(entry) for entry in entries_of(list(record.steps))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hold the real runs and the forecasts of one cell.

    Args:
        lr: Base learning rate of all schedules.
        real: Name of a schedule -> row of its real runs.
        forecast: Name of a schedule -> loss that is forecast from the record; empty if no law could
            be fitted to the record.
        fit: Description of the fitted law, or the reason why there is none.
        alone: Exponent -> name of a schedule -> loss that is forecast from the noise scale alone.
    """

    lr: float
    real: dict[str, Row]
    forecast: dict[str, float]
    fit: str
    alone: dict[float, dict[str, float]]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Make or read all runs of a cell, and forecast their losses."""
    lr = _base_rate(ledger, cell)
    plans = schedules(cell)
    real = {name: at(ledger, lr, name, _make(cell, name, one)) for name, one in plans.items()}
    read = ledger.results([_read(cell, plans["cosine"].rule, lr)])[0]
    entries = [Entry(**dict(zip(_NAMES, row, strict=True))) for row in read.extra.trace]
    factor = _sgd_factor(cell)
    fit = fit_of(entries, factor=factor)
    cut = {name: pieces(cell, one) for name, one in plans.items()}
    forecast: dict[str, float] = {}
    if not isinstance(fit, NotEnough):
        model = QuadraticModel(spectrum=fit.spectrum, lr=lr * (factor or 1.0))
        forecast = {name: model.forecast(some).loss[-1] for name, some in cut.items()}
    return Found(
        lr=lr,
        real=real,
        forecast=forecast,
        fit=str(fit),
        alone={s: _alone(cell, entries, cut, exponent=s) for s in EXPONENTS},
    )


_NAMES = tuple(field.name for field in fields(Entry))


def _numbers(entry: Entry) -> tuple[float, ...]:
    return tuple(float(f"{getattr(entry, name):.9g}") for name in _NAMES)


def _base_rate(ledger: Ledger, cell: Cell) -> float:
    """Return the best base learning rate of the cosine, from the part that tuned it if one did."""
    if cell is TEXT:
        rule = lb.chain(seesaw_runs.WARM, lb.Schedule(factor=seesaw_runs.DECAY))
        own = {"cosine": cell.make("cosine", rule)}
        return tuned(record_of(ledger, "seesaw"), cell, own)["cosine"].lr
    if cell in relation.CELLS:
        name = f"batch {cell.start}, cosine"
        own = {name: relation.constants(cell)[name]}
        return tuned(record_of(ledger, "relation"), cell, own)[name].lr
    return tuned(ledger, cell, {"cosine": _make(cell, "cosine", Planned(rule=COSINE))})["cosine"].lr


def _make(cell: Cell, name: str, one: Planned) -> Make:
    return lambda lr, seed: replace(
        cell.run(name, one.rule, lr=lr, seed=seed),
        scale=one.scale,
        evaluations=1,
        full_gradient=False,
    )


def _read(cell: Cell, rule: lb.Rule, lr: float) -> Read:
    plain = cell.run("recorded", lb.chain(rule, lb.Observe()), lr=lr, seed=RECORDED)
    values = {field.name: getattr(plain, field.name) for field in fields(plain)}
    return Read(**values | {"micro_batch": cell.start // 2})


def _sgd_factor(cell: Cell) -> float | None:
    """Return the factor of momentum on the learning rate, as the planner reads it from a record."""
    if cell.optimizer not in MOMENTA:
        return None
    return sgd_factor({"name": "SGD", "momentum": MOMENTA[cell.optimizer], "dampening": 0.0})


def _alone(
    cell: Cell,
    entries: Sequence[Entry],
    cut: Mapping[str, list[tuple[float, float, float]]],
    *,
    exponent: float,
) -> dict[str, float]:
    """Return name of a schedule -> loss that is forecast from the median noise scale alone."""
    known = [entry.noise_scale for entry in entries if math.isfinite(entry.noise_scale)]
    model = model_of(
        [float(np.median(known))],
        budget=cell.samples,
        base_batch_size=cell.start,
        exponent=exponent,
    )
    return {name: model.forecast(some).loss[-1] for name, some in cut.items()}
