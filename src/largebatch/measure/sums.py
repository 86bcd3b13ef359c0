"""Weighted sums of device scalars under names: one collective and one host sync a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from largebatch.measure.ranks import Ranks

LIMIT = 1024
"""Scalars that wait before they are packed: one costs a tensor object, packed it costs 8 bytes."""

FEW = 8
"""On an accelerator the scalars of one add are summed at once if there are more than these."""

Rows = Mapping[str, int]
"""The row of each name among the sums."""


def rows_by_name(names: Iterable[str]) -> Rows:
    """Return the row of each name: its number in the order given."""
    return {name: row for row, name in enumerate(names)}


class Scalars:
    """Holds a step's 0-dim tensors in the order in which they came.

    Only those of a CPU are read while the step runs, as that waits for nothing.

    Mutable: holds the scalars of the step in hand.

    Args:
        device: where the scalars are.
    """

    def __init__(self, *, device: torch.device) -> None:
        self._at_hand = device.type == "cpu"
        self._wide = device.type not in ("cpu", "mps")  # mps has no float64
        self.clear()

    def clear(self) -> None:
        """Forget all scalars."""
        self._waiting: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._read: list[float] = []

    def add(self, scalars: Sequence[Tensor]) -> int:
        """Add scalars of which only the sum counts, and return how many values are kept of them."""
        if self._wide and len(scalars) > FEW:
            scalars = [torch.stack(list(scalars)).sum(dtype=torch.float64)]
        self._waiting += scalars
        if len(self._waiting) > LIMIT:
            self._pack()
        return len(scalars)

    def on_host(self) -> list[float]:
        """Return all values; an accelerator's come in one transfer."""
        self._pack()
        if self._rows:
            return torch.cat(self._rows).tolist()
        return self._read

    def on_device(self) -> Tensor:
        """Return all values of an accelerator in one row, in float64."""
        self._pack()
        return torch.cat(self._rows) if self._rows else torch.empty(0, dtype=torch.float64)

    def _pack(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._at_hand:  # one by one, a CPU's come at half the price
            self._read += [scalar.item() for scalar in waiting]
        elif waiting:
            row = torch.stack(waiting)
            self._rows.append(row.to(torch.float64) if self._wide else row)


class Sums:
    """Collects scalars on the device during a step and reduces them once at its end.

    The names are fixed when a step begins, so that every rank sends the same numbers in the same
    order. Sums are formed in float64: on the host, or, if several ranks share the step, on an
    accelerator that has this type. The coefficients stay on the host until then, so they can still
    be changed: each call of `add` is a term, terms are numbered in the order of the calls, and
    `scale` multiplies the coefficients of a range of them.

    >>> sums = Sums(Ranks(), device=torch.device("cpu"))
    >>> sums.open(rows_by_name(["loss"]))
    >>> start = sums.mark()
    >>> sums.add("loss", torch.tensor(3.0), coefficient=2.0)
    >>> sums.scale(start, sums.mark(), 10.0)
    >>> sums.put({"weight": 2.0})
    >>> sums.reduce()
    {'loss': 60.0, 'weight': 2.0}

    Mutable: holds the scalars of the step in hand.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device) -> None:
        self.ranks = ranks
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._adds_on_host = self.device.type == "cpu"
        self._scalars = Scalars(device=device)
        self.open({})

    def open(self, rows: Rows) -> None:
        """Begin a step whose scalars go under these names; forget what was collected."""
        self._rows = rows
        self._terms: dict[str, list[int]] = {name: [] for name in rows}
        self._coefficients: list[float] = []
        self._begins = [0]  # the first value of each term, and the end of the last one
        self._scalars.clear()
        self._numbers: dict[str, float] = {}

    @property
    def names(self) -> frozenset[str]:
        """Return the names under which device scalars go in this step."""
        return frozenset(self._rows)

    def add(self, name: str, *scalars: Tensor, coefficient: float = 1.0) -> None:
        """Add coefficient * scalar (each 0-dim, on the device) to the sum called `name`."""
        self._terms[name].append(len(self._coefficients))
        self._coefficients.append(coefficient)
        self._begins.append(self._begins[-1] + self._scalars.add(scalars))

    def put(self, numbers: Mapping[str, float]) -> None:
        """Set this rank's numbers by name; `reduce` sums them over the ranks."""
        self._numbers.update(numbers)

    def mark(self) -> int:
        """Return how many terms were added in this step so far, also if some were dropped."""
        return len(self._coefficients)

    def scale(self, start: int, stop: int, factor: float) -> None:
        """Multiply the coefficients of the terms from mark `start` up to mark `stop`.

        Raises:
            ValueError: these are not two marks of this step, the earlier one first.
        """
        if not 0 <= start <= stop <= self.mark():
            raise ValueError(
                f"Terms {start} to {stop} were to be scaled, but this step has {self.mark()}. Take "
                "both ends from the step in hand: start = sums.mark()."
            )
        scaled = [coefficient * factor for coefficient in self._coefficients[start:stop]]
        self._coefficients[start:stop] = scaled

    def drop(self, names: Iterable[str]) -> None:
        """Forget what was added under these names; marks stay valid."""
        for name in names:
            self._terms[name].clear()

    def reduce(self) -> dict[str, float]:
        """Return every sum over all ranks, the same on each: one all-reduce, one host sync."""
        if self.ranks.count == 1:
            return dict(zip(self._rows, self._on_host(), strict=True)) | self._numbers
        if self._adds_on_host:
            values = torch.tensor([*self._on_host(), *self._numbers.values()], dtype=torch.float64)
        else:
            values = self._on_device()
        names = (*self._rows, *self._numbers)
        return dict(zip(names, self.ranks.sum_(values).tolist(), strict=True))

    def _on_host(self) -> list[float]:
        """Each sum of this process, added up by the host."""
        values, begins, coefficients = self._scalars.on_host(), self._begins, self._coefficients
        of_terms = [_sum(values[begin:end]) for begin, end in pairwise(begins)]
        return [
            _sum([coefficients[term] * of_terms[term] for term in terms])
            for terms in self._terms.values()
        ]

    def _on_device(self) -> Tensor:
        """The sums and numbers of this process in one row, after one copy to the device."""
        rows, coefficients = self._row_of_each_value()
        count, values = len(self._rows), self._scalars.on_device()
        host = torch.tensor([*coefficients, *rows, *self._numbers.values()], dtype=torch.float64)
        if self.device.type == "cuda":
            host = host.pin_memory()  # from other memory a copy waits for the device
        here = host.to(self.device, non_blocking=True)
        weights, places, numbers = here.split([len(rows), len(rows), len(self._numbers)])
        sums = torch.zeros(count + 1, dtype=torch.float64, device=self.device)
        # not index_add_, whose order of adding differs from call to call on CUDA
        sums.index_put_((places.long(),), weights * values.to(self.device), accumulate=True)
        return torch.cat([sums[:count], numbers])

    def _row_of_each_value(self) -> tuple[list[int], list[float]]:
        """The row and the coefficient of each value; what was dropped goes to a row at the end."""
        rows, coefficients = [len(self._rows)] * self._begins[-1], [0.0] * self._begins[-1]
        for name, terms in self._terms.items():
            for term in terms:
                begin, end = self._begins[term : term + 2]
                rows[begin:end] = [self._rows[name]] * (end - begin)
                coefficients[begin:end] = [self._coefficients[term]] * (end - begin)
        return rows, coefficients


def _sum(terms: Sequence[float]) -> float:
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond the largest float
        return math.nan
