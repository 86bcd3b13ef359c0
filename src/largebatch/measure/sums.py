"""Weighted sums of device scalars under names: one collective and one host sync a step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from largebatch.measure.ranks import Ranks

LIMIT = 1024
"""Scalars kept before they are summed up, so that memory does not grow with the micro-batches."""


Rows = Mapping[str, int]
"""The row of each name among the sums."""


def rows_by_name(names: Iterable[str]) -> Rows:
    """Return the row of each name: its number in the order given."""
    return {name: row for row, name in enumerate(names)}


class Sums:
    """Collects scalars on the device during a step and reduces them once at its end.

    The names are fixed when a step begins, so that every rank sends the same numbers in the same
    order. Sums are formed in float64: on the device where it has that type, else on the host.

    >>> sums = Sums(Ranks(), device=torch.device("cpu"))
    >>> sums.open(rows_by_name(["loss"]))
    >>> sums.add("loss", torch.tensor(3.0), coefficient=2.0)
    >>> sums.put({"weight": 2.0})
    >>> sums.reduce()
    {'loss': 6.0, 'weight': 2.0}

    Mutable: holds the scalars of the step in hand.
    """

    def __init__(self, ranks: Ranks, *, device: torch.device) -> None:
        self.ranks = ranks
        self.device = torch.device("cpu") if device.type == "mps" else device
        self._at_hand = device.type == "cpu"
        self._plan: tuple[object, ...] = ()
        self._matrix = torch.empty(0)
        self._host: tuple[float, ...] = ()
        self._host_tensor = torch.empty(0)
        self.open({})

    def open(self, rows: Rows) -> None:
        """A step begins whose device scalars go under these names; forgets what was collected."""
        self._rows = rows
        self._scalars: list[Tensor] = []
        self._terms: list[tuple[int, float, int]] = []  # (row, coefficient, scalars)
        self._numbers: dict[str, float] = {}

    @property
    def names(self) -> frozenset[str]:
        """The names under which device scalars go in this step."""
        return frozenset(self._rows)

    def add(self, name: str, *scalars: Tensor, coefficient: float = 1.0) -> None:
        """Adds coefficient * scalar (each 0-dim, on the device) to the sum called `name`."""
        self._terms.append((self._rows[name], coefficient, len(scalars)))
        self._scalars += scalars
        if len(self._scalars) > LIMIT:
            self._fold()

    def mark(self) -> int:
        return len(self._terms)

    def scale(self, start: int, stop: int, factor: float) -> None:
        for at in range(start, stop):
            row, coefficient, count = self._terms[at]
            self._terms[at] = row, coefficient * factor, count

    def put(self, numbers: Mapping[str, float]) -> None:
        """Sets this rank's numbers by name; `reduce` sums them over the ranks."""
        self._numbers.update(numbers)

    def drop(self, names: Iterable[str]) -> None:
        """Forgets what was added under these names."""
        rows = {self._rows[name] for name in names}
        scalars, terms, at = self._scalars, self._terms, 0
        self._scalars, self._terms = [], []
        for term in terms:
            row, _, count = term
            if row in rows:
                self._terms.append((row, 0.0, 0))
            else:
                self._terms.append(term)
                self._scalars += scalars[at : at + count]
            at += count

    def reduce(self) -> dict[str, float]:
        """Every sum over all ranks, the same on each: one all-reduce, one host sync."""
        if self.ranks.count == 1:
            return self._on_host() | self._numbers
        values = self.ranks.sum_(torch.cat([self._on_device(), self._numbers_on_device()]))
        names = (*self._rows, *self._numbers)
        return dict(zip(names, values.tolist(), strict=True))

    def _on_host(self) -> dict[str, float]:
        """The sums of this process alone; without a collective the host adds up faster."""
        sums, at = [0.0] * len(self._rows), 0
        values = self._values()
        for row, coefficient, count in self._terms:
            sums[row] += coefficient * _sum(values[at : at + count])
            at += count
        return dict(zip(self._rows, sums, strict=True))

    def _values(self) -> list[float]:
        if self._at_hand or not self._scalars:  # one by one, a CPU's come at half the price
            return [scalar.item() for scalar in self._scalars]
        values: list[float] = torch.stack(self._scalars).tolist()
        return values

    def _on_device(self) -> Tensor:
        count = len(self._rows)
        if not self._terms:
            return torch.zeros(count, dtype=torch.float64, device=self.device)
        plan = (*self._rows, *self._terms)
        if plan != self._plan:  # the same in almost every step, so it stays on the device
            terms = [(r, c) for r, c, scalars in self._terms for _ in range(scalars)]
            rows = [[c if row == r else 0.0 for r, c in terms] for row in range(count)]
            self._plan = plan
            self._matrix = torch.tensor(rows, dtype=torch.float64, device=self.device)
        # A product with zeros spreads one NaN over all sums, which does no harm: a step with any
        # non-finite sum is discarded as a whole.
        return self._matrix @ torch.stack(self._scalars).to(self.device).to(torch.float64)

    def _numbers_on_device(self) -> Tensor:
        host = tuple(self._numbers.values())
        if host != self._host:
            self._host = host
            self._host_tensor = torch.tensor(host, dtype=torch.float64, device=self.device)
        return self._host_tensor

    def _fold(self) -> None:
        self._scalars = list(self._on_device().unbind())
        self._terms = [(row, 1.0, 1) for row in self._rows.values()]


def _sum(terms: list[float]) -> float:
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # infinities of both signs, or beyond the largest float
        return math.nan
