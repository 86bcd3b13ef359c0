"""Real runs of the planner's schedules, and what it forecasts of them from one recorded run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from experiments.adadagrad.setup import Make, Row
from experiments.growth import relation, traded
from experiments.growth.schedules import COSINE, Planned, pieces, schedules
from experiments.growth.setup import CNN, DIGITS, Cell, Watched, at, beside, tuned
from experiments.lab.ledger import Ledger
from experiments.lab.run import Told
from torch import nn

import largebatch as lb
from largebatch.core.not_enough import NotEnough
from largebatch.workbench.planner.model import QuadraticModel, model_of
from largebatch.workbench.planner.recorded import Entry, entries_of, fit_of, sgd_factor

TEXT = traded.CELLS[1]
MOMENTUM = Cell(
    workload="fashion-cnn", optimizer="sgd", start=32, samples=27_500, least=0.0025, points=4
)
CELLS: tuple[Cell, ...] = (DIGITS, CNN, TEXT, MOMENTUM)

RECORDED = 8
"""Seed of the run that is fitted."""

EXPONENTS = (0.3, 1.0)
"""Of the loss, where the noise scale alone is known."""

MOMENTA = {"sgd": 0.9, "sgd-plain": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Watched):
    """A run that is measured in each step, by halves of its batches; its trace is the entries of
    its record."""

    def meter(self, model: nn.Module) -> lb.Meter:
        return lb.Meter(model)

    def told(self, control: lb.Controller, record: lb.MemoryRecord) -> Told:
        return Told(trace=tuple(_numbers(entry) for entry in entries_of(list(record.steps))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a cell has.

    Args:
        lr: the base rate.
        real: name -> its row.
        forecast: name -> loss, from the record; empty where its law was not found.
        fit: in words.
        alone: exponent -> name -> loss, from the noise scale.
    """

    lr: float
    real: dict[str, Row]
    forecast: dict[str, float]
    fit: str
    alone: dict[float, dict[str, float]]


def measured(ledger: Ledger, cell: Cell) -> Found:
    """Makes, or reads, all runs of a cell, and forecasts them."""
    lr = _base_rate(ledger, cell)
    plans = schedules(cell)
    real = {name: at(ledger, lr, name, _make(cell, name, one)) for name, one in plans.items()}
    read = ledger.results([_read(cell, plans["cosine"].rule, lr)])[0]
    entries = [Entry(**dict(zip(_NAMES, row, strict=True))) for row in read.told.trace]
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
    """The best one for the cosine, where another part tuned it: as it did."""
    if cell is TEXT:
        rule = lb.chain(traded.WARM, lb.Schedule(factor=traded.DECAY))
        own = {"cosine": cell.make("cosine", rule)}
        return tuned(beside(ledger, "seesaw"), cell, own)["cosine"].lr
    if cell in relation.CELLS:
        name = f"batch {cell.start}, cosine"
        own = {name: relation.constants(cell)[name]}
        return tuned(beside(ledger, "relation"), cell, own)[name].lr
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
    """What the planner reads from a record's header."""
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
    """Forecasts from the run's noise scale alone, the median of its entries."""
    known = [entry.noise_scale for entry in entries if math.isfinite(entry.noise_scale)]
    model = model_of(
        [float(np.median(known))],
        budget=cell.samples,
        base_batch_size=cell.start,
        exponent=exponent,
    )
    return {name: model.forecast(some).loss[-1] for name, some in cut.items()}
