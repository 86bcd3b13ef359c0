"""Sum named scalars over a step and over the ranks, with one host sync per step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from largebatch.measure.ranks import Ranks

LIMIT = 1024
"""Largest number of separate scalars; more scalars are packed into one tensor to save memory."""

FEW = 8
"""Largest number of scalars in one `add` call that an accelerator does not sum at once."""

Rows = Mapping[str, int]
"""Row of each name among the sums."""


def rows_by_name(names: Iterable[str]) -> Rows:
    """Return the row of each name, which is its position in `names`."""
    return {name: row for row, name in enumerate(names)}


class Scalars:
    """Hold the 0-dim tensors of a step in the order in which they were added.

    While the step runs, only scalars on a CPU are read, because reading CPU scalars does not block.

    Mutable: holds the scalars of the current step.

    Args:
        device: The device of the scalars.
    """

    def __init__(self, *, device: torch.device) -> None:
        self._at_hand = device.type == "cpu"
        self._wide = device.type not in ("cpu", "mps")  # mps has no float64
        self.clear()

    def clear(self) -> None:
        """Discard all scalars."""
        self._waiting: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._read: list[float] = []

    def add(self, scalars: Sequence[Tensor]) -> int:
        """Add scalars whose sum is needed, and return the number of values that are kept."""
        if self._wide and len(scalars) > FEW:
            scalars = [torch.stack(list(scalars)).sum(dtype=torch.float64)]
        self._waiting += scalars
        if len(self._waiting) > LIMIT:
            self._pack()
        return len(scalars)

    def on_host(self) -> list[float]:
        """Return all values as floats, with one transfer from an accelerator."""
        self._pack()
        if self._rows:
            return torch.cat(self._rows).tolist()
        return self._read

    def on_device(self) -> Tensor:
        """Return all values in one row on the accelerator, in float64."""
        self._pack()
        return torch.cat(self._rows) if self._rows else torch.empty(0, dtype=torch.float64)

    def _pack(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._at_hand:  # on a CPU, reading single scalars takes half the time of packing
            self._read += [scalar.item() for scalar in waiting]
        elif waiting:
            row = torch.stack(waiting)
            self._rows.append(row.to(torch.float64) if self._wide else row)


class Sums:
    """Collect scalars during a step, and sum the scalars over the ranks at the end of the step.

    The names are fixed when a step begins, so every rank sends the same numbers in the same order.
    Sums are computed in float64 on the host, or on the accelerator if several ranks share the step
    and the accelerator supports float64. Each call of `add` adds one term, and the terms are
    numbered in the order of the calls. The coefficients of the terms stay on the host until the end
    of the step, so `scale` can still multiply the coefficients of a range of terms.

    >>> sums = Sums(Ranks(), device=torch.device("cpu"))
    >>> sums.open(rows_by_name(["loss"]))
    >>> start = sums.mark()
    >>> sums.add("loss", torch.tensor(3.0), coefficient=2.0)
    >>> sums.scale(start, sums.mark(), 10.0)
    >>> sums.put({"weight": 2.0})
    >>> sums.reduce()
    {'loss': 60.0, 'weight': 2.0}

    Mutable: holds the scalars of the current step.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device) -> None:
        self.ranks = ranks
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._adds_on_host = self.device.type == "cpu"
        self._scalars = Scalars(device=device)
        self.open({})

    def open(self, rows: Rows) -> None:
        """Begin a step with the given names of sums, and discard the scalars of the last step."""
        self._rows = rows
        self._terms: dict[str, list[int]] = {name: [] for name in rows}
        self._coefficients: list[float] = []
        self._begins = [0]  # first value of each term, and the end of the last term
        self._scalars.clear()
        self._numbers: dict[str, float] = {}

    @property
    def names(self) -> frozenset[str]:
        """Return the names of this step's sums of device scalars."""
        return frozenset(self._rows)

    def add(self, name: str, *scalars: Tensor, coefficient: float = 1.0) -> None:
        """Add coefficient * scalar to the sum `name` for each 0-dim tensor in `scalars`."""
        self._terms[name].append(len(self._coefficients))
        self._coefficients.append(coefficient)
        self._begins.append(self._begins[-1] + self._scalars.add(scalars))

    def put(self, numbers: Mapping[str, float]) -> None:
        """Set numbers of this rank by name, which `reduce` sums over the ranks."""
        self._numbers.update(numbers)

    def mark(self) -> int:
        """Return the number of terms added in the current step so far, including dropped terms."""
        return len(self._coefficients)

    def scale(self, start: int, stop: int, factor: float) -> None:
        """Multiply the coefficients of the terms from mark `start` up to mark `stop`.

        Raises:
            ValueError: The marks are not in order, or are not marks of the current step.
        """
        if not 0 <= start <= stop <= self.mark():
            raise ValueError(
                f"The range of terms {start} to {stop} was given, but this step has {self.mark()} "
                "terms. Take start and stop from the current step: start = sums.mark()."
            )
        scaled = [coefficient * factor for coefficient in self._coefficients[start:stop]]
        self._coefficients[start:stop] = scaled

    def drop(self, names: Iterable[str]) -> None:
        """Discard the terms of the given sums; marks stay valid."""
        for name in names:
            self._terms[name].clear()

    def reduce(self) -> dict[str, float]:
        """Return every sum over all ranks with one all-reduce and one host sync."""
        if self.ranks.count == 1:
            return dict(zip(self._rows, self._on_host(), strict=True)) | self._numbers
        if self._adds_on_host:
            values = torch.tensor([*self._on_host(), *self._numbers.values()], dtype=torch.float64)
        else:
            values = self._on_device()
        names = (*self._rows, *self._numbers)
        return dict(zip(names, self.ranks.sum_(values).tolist(), strict=True))

    def _on_host(self) -> list[float]:
        """Return the sums of this process, computed on the host."""
        values, begins, coefficients = self._scalars.on_host(), self._begins, self._coefficients
        of_terms = [_sum(values[begin:end]) for begin, end in pairwise(begins)]
        return [
            _sum([coefficients[term] * of_terms[term] for term in terms])
            for terms in self._terms.values()
        ]

    def _on_device(self) -> Tensor:
        """Return the sums and numbers of this process in one row on the device."""
        rows, coefficients = self._row_of_each_value()
        count, values = len(self._rows), self._scalars.on_device()
        host = torch.tensor([*coefficients, *rows, *self._numbers.values()], dtype=torch.float64)
        if self.device.type == "cuda":
            host = host.pin_memory()  # a copy from pageable memory would wait for the device
        here = host.to(self.device, non_blocking=True)
        weights, places, numbers = here.split([len(rows), len(rows), len(self._numbers)])
        sums = torch.zeros(count + 1, dtype=torch.float64, device=self.device)
        # index_add_ is not used, because its order of additions on CUDA differs between calls.
        sums.index_put_((places.long(),), weights * values.to(self.device), accumulate=True)
        return torch.cat([sums[:count], numbers])

    def _row_of_each_value(self) -> tuple[list[int], list[float]]:
        """Return the row and the coefficient of each value; dropped values are in an extra row."""
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
    except (OverflowError, ValueError):  # infinities of both signs, or an overflow
        return math.nan
