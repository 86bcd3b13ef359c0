"""Communicate between the processes that share one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance, RanksDisagree

KINDS: Mapping[str, type[LargeBatchError]] = {
    kind.__name__: kind for kind in (LargeBatchError, MicroBatchMissed, NoVariance, RanksDisagree)
}
"""Error classes by class name, to raise an error of one rank on every rank."""


class Ranks:
    """Describe the data-parallel process group of a run, or a single process without a group.

    Args:
        group: Process group that shares the batch; None means the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.group = group
        self.count: int = dist.get_world_size(group) if together else 1
        self.rank: int = dist.get_rank(group) if together else 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` over the ranks in place with one all-reduce, and return `values`."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks, with one all-gather."""
        everyone: list[Any] = [value]
        if self.count > 1:
            everyone *= self.count
            dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Check before training that all ranks have the same settings.

        Args:
            facts: Settings by name.

        Raises:
            RanksDisagree: A setting differs between the ranks. Every rank raises `RanksDisagree`.
        """
        if self.count == 1:
            return
        everyone = self.gather(dict(facts))
        for name in dict.fromkeys(name for theirs in everyone for name in theirs):
            values = [theirs.get(name) for theirs in everyone]
            if any(value != values[0] for value in values):
                listed = ", ".join(f"rank {r}: {value}" for r, value in enumerate(values))
                raise RanksDisagree(
                    f"The ranks disagree about {name} ({listed}). Build the model, the rule, the "
                    "data loader and the budget from the same arguments on every rank, and call "
                    "methods such as control.resize(batch_size) on every rank."
                )

    def raise_together(self, problem: LargeBatchError | None) -> None:
        """Raise the error of the lowest rank with an error on every rank, with one all-gather.

        Args:
            problem: Error of this rank; None if this rank has no error.

        Raises:
            LargeBatchError: An error of the original error's class, whose text names the rank.
        """
        mine = None if problem is None else (type(problem).__name__, str(problem))
        for rank, theirs in enumerate(self.gather(mine)):
            if theirs is not None:
                kind, text = theirs
                raise KINDS.get(kind, LargeBatchError)(f"Rank {rank} of {self.count}: {text}")
