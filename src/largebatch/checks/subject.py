"""What the checks look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from largebatch.act.clocked import Clocked
from largebatch.act.loader import BatchLoader
from largebatch.core.decider import Decider
from largebatch.measure.meter import Meter

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, micro-batch) -> mean loss over the micro-batch's samples, a scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A run in hand.

    Args:
        model, optimizer, meter, decider, scaler: of the run.
        loss: of a micro-batch; without it nothing is computed.
        micro_batches: some of this rank's coming ones, without taking them.
        accumulation: micro-batches of a step on this rank.
        batches: the loader; None where the user has the loop.
    """

    model: nn.Module
    optimizer: Optimizer
    meter: Meter
    decider: Decider
    scaler: GradScaler | None
    loss: Loss | None
    micro_batches: tuple[Any, ...]
    accumulation: int
    batches: BatchLoader | None = None

    @classmethod
    def of(cls, run: Clocked, meter: object, **rest: Any) -> Subject:
        """Of a run and its meter, which is `lb.Meter` as far as checks go.

        Raises:
            ValueError: another meter.
        """
        if not isinstance(meter, Meter):
            raise ValueError(
                f"Only a run measured by lb.Meter can be checked; this one has a "
                f"{type(meter).__name__}. Use meter=lb.Meter(model)."
            )
        return cls(
            model=meter.model, optimizer=run.optimizer, meter=meter, decider=run.decider, **rest
        )

    @property
    def ranks(self) -> int:
        """Processes that share the batch."""
        return self.meter.rank_count
