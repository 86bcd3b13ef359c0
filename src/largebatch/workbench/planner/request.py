"""What is to be planned: a budget, a noise scale, what a step costs, and the bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from largebatch.workbench.planner.model import Model
from largebatch.workbench.planner.price import Price

Minimise = Literal["samples", "steps", "time"]

LARGEST_BATCH = 2**30
"""Samples, where no memory bounds the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be planned.

    Args:
        budget: in samples.
        base_batch_size: B0, in samples.
        noise_scales: of the first steps, and maybe of the last ones, in samples; or
        recorded: the model that was fitted to a run.
        minimise: "steps", "time" or "samples".
        within: the part by which the loss may be above the least one, above 0.
        max_lr: largest factor on the base rate, at least 1; never above the stable one of the
            model, which None stands for, or the largest one in the record.
        stages: how many.
        price: of a step; None where only steps and samples count.
        memory_limit: largest batch of one worker, in samples; None for no bound.
        exponent: of the loss, see `model_of`.
    """

    budget: int
    base_batch_size: int
    noise_scales: Sequence[float] = ()
    recorded: Model | None = None
    minimise: Minimise = "steps"
    within: float = 0.01
    max_lr: float | None = None
    stages: int = 6
    price: Price | None = None
    workers: int = 1
    memory_limit: int | None = None
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.minimise == "time" and self.price is None:
            raise ValueError(
                "The least time needs the price of a step: --latency 0.05 --throughput 2000"
            )
        if not 0.0 < self.within < 1.0 or not 1 <= self.stages <= 40 or self.workers < 1:
            raise ValueError(
                "A plan takes a margin on the loss within 0 and 100 %, 1 to 40 stages and at least "
                f"1 worker, as in --within 1 --stages 6; got {100 * self.within:g} %, "
                f"{self.stages} stages and {self.workers} workers."
            )
        if self.max_lr is not None and not 1.0 <= self.max_lr < math.inf:
            raise ValueError(
                "The largest stable factor on the base rate is at least 1, as in --max-lr 4: below "
                f"it the base rate would be past the stability limit; got {self.max_lr!r}."
            )
        if self.budget < self.base_batch_size * self.stages:
            raise ValueError(
                f"A budget of {self.budget:,} samples has no step of the base batch, "
                f"{self.base_batch_size:,}, for each of {self.stages} stages. Give more samples, "
                "or fewer stages: --stages 1"
            )
        if self.largest < self.base_batch_size:
            raise ValueError(
                f"{self.workers} worker(s) hold {self.largest:,} samples, fewer than the base "
                f"batch, {self.base_batch_size:,}: --memory-limit "
                f"{-(-self.base_batch_size // self.workers)} or more workers."
            )

    @property
    def largest(self) -> int:
        """The largest batch that the memory of all workers and the budget allow."""
        held = LARGEST_BATCH if self.memory_limit is None else self.memory_limit * self.workers
        return min(held, self.budget // self.stages)
