"""The run that the checks look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from largebatch.act.attached import Attached
from largebatch.act.controller import Controller
from largebatch.act.loader import BatchLoader
from largebatch.core.decider import Decider
from largebatch.core.errors import LargeBatchError
from largebatch.measure.meter import Meter

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, micro-batch) -> mean loss over the micro-batch's samples, a scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """A run in hand.

    Args:
        model, optimizer, meter, decider, scaler: of the run.
        loss: of a micro-batch; without it nothing is computed.
        micro_batches: some of this rank's coming ones, without taking them.
        accumulation: micro-batches of a step on this rank.
        samples: counted in the first of the micro-batches; None where the run does not count them.
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
    samples: int | None = None
    batches: BatchLoader | None = None

    @property
    def ranks(self) -> int:
        """Processes that share the batch."""
        return self.meter.rank_count


def checked_run_of(
    control: Controller | Attached,
    *,
    loss: Loss | None,
    micro_batches: tuple[Any, ...],
    accumulation: int,
    samples: int | None = None,
) -> CheckedRun:
    """Return what the checks look at in a run.

    Args:
        control: what `lb.Controller` or `lb.attach` returned.
        loss, micro_batches, accumulation, samples: as in `CheckedRun`.
    """
    return CheckedRun(
        model=control.meter.model,
        optimizer=control.optimizer,
        meter=control.meter,
        decider=control.decider,
        scaler=control.scaler,
        loss=loss,
        micro_batches=micro_batches,
        accumulation=accumulation,
        samples=samples,
        batches=control.batches if isinstance(control, Controller) else None,
    )


def check_between_steps(control: Controller, *, call: str) -> None:
    """Refuses a run that is in the middle of a step.

    Args:
        control: the run.
        call: what was called, as a line to paste.

    Raises:
        LargeBatchError: a step is in hand.
    """
    if control.in_step:
        raise LargeBatchError(
            f"{call} is called between two steps, and one is in hand: before the "
            "loop, or after control.step()."
        )
