"""The processes that share one batch: their number, one all-reduce a step, and their agreement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from largebatch.core.errors import LargeBatchError, MicroBatchMissed, NoVariance, RanksDisagree

KINDS: Mapping[str, type[LargeBatchError]] = {
    kind.__name__: kind for kind in (LargeBatchError, MicroBatchMissed, NoVariance, RanksDisagree)
}
"""The errors that one rank finds and every rank raises, by name."""


class Ranks:
    """The data-parallel group of a run; a single process where none was started.

    Args:
        group: process group over which the batch is shared; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.group = group
        self.count: int = dist.get_world_size(group) if together else 1
        self.rank: int = dist.get_rank(group) if together else 0

    def sum_(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over the ranks, in place; one collective, none on a single process."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, in their order; one collective, none on a single process."""
        everyone: list[Any] = [value]
        if self.count > 1:
            everyone *= self.count
            dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Checks that the same is true on all ranks, once before training.

        Raises:
            RanksDisagree: on every rank, naming the first fact that differs.
        """
        if self.count == 1:
            return
        everyone = self.gather(dict(facts))
        for name in dict.fromkeys(name for theirs in everyone for name in theirs):
            values = [theirs.get(name) for theirs in everyone]
            if any(value != values[0] for value in values):
                listed = ", ".join(f"rank {r}: {value}" for r, value in enumerate(values))
                raise RanksDisagree(
                    f"The ranks do not agree: {name} is {listed}. Build model, rule, loader and "
                    "budget from the same arguments on every rank, and do nothing to one rank "
                    "alone, such as control.resize(batch_size)."
                )

    def raise_together(self, problem: LargeBatchError | None) -> None:
        """Raise, on every rank, the error that the first of them has found; one collective.

        Args:
            problem: of this rank; None if another one has it.

        Raises:
            LargeBatchError: of the kind that was found, naming the rank.
        """
        mine = None if problem is None else (type(problem).__name__, str(problem))
        for rank, theirs in enumerate(self.gather(mine)):
            if theirs is not None:
                kind, text = theirs
                raise KINDS.get(kind, LargeBatchError)(f"Rank {rank} of {self.count}: {text}")
