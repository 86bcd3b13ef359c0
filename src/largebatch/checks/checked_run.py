"""Describe the run that the checks examine."""

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
"""Function (model, micro-batch) -> mean loss over the micro-batch's samples, a scalar tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """Hold the objects of a run that the checks examine.

    Args:
        model: Model of the run.
        optimizer: Optimizer of the run.
        meter: Meter of the run.
        decider: Decider of the run.
        scaler: GradScaler of the run; None if the run has no scaler.
        loss: Loss function of a micro-batch; if None, the checks that need a loss are left out.
        micro_batches: Some of this rank's next micro-batches, which are not taken from the stream.
        accumulation: Number of micro-batches per step on this rank.
        samples: Number of samples counted in the first micro-batch; None if the run does not count
            them.
        batches: BatchLoader of the run; None if the user's own loop loads the data.
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
        """Number of processes that share the batch."""
        return self.meter.rank_count


def checked_run_of(
    control: Controller | Attached,
    *,
    loss: Loss | None,
    micro_batches: tuple[Any, ...],
    accumulation: int,
    samples: int | None = None,
) -> CheckedRun:
    """Return the objects of a run that the checks examine.

    Args:
        control: Object that `lb.Controller` or `lb.attach` returned.
        loss, micro_batches, accumulation, samples: These arguments have the same meaning as in
            `CheckedRun`.
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
    """Raise an error if a step of the run is in progress.

    Args:
        control: Controller of the run.
        call: Text of the call that the user made, for the error message.

    Raises:
        LargeBatchError: A step is in progress.
    """
    if control.in_step:
        raise LargeBatchError(
            f"{call} was called while a step is in progress. Call {call} "
            "before the loop, or after control.step()."
        )
