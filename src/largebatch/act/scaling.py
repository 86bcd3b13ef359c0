"""The loss scale of half-precision training: torch's `GradScaler` around a measured step."""

from __future__ import annotations

from torch import Tensor, zeros
from torch.amp import GradScaler
from torch.optim import Optimizer


class LossScale:
    """What a step needs of a `GradScaler`: its scale, unscaled gradients, a guarded optimizer step.

    A loss times c has gradients times c. To a meter that is a step whose planned total weight is c
    times smaller, so nothing in it knows of a scale.

    Mutable: holds the scale of the step in hand; torch's scaler changes at each update.

    Args:
        scaler: torch's; None or a disabled one scales by 1.
        optimizer: whose gradients are unscaled.
    """

    def __init__(self, scaler: GradScaler | None, optimizer: Optimizer) -> None:
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise ValueError(
                f"scaler is a torch.amp.GradScaler; got {type(scaler).__name__}. "
                "scaler=torch.amp.GradScaler()"
            )
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.optimizer = optimizer
        self.value = 1.0
        if self.scaler is not None:
            parameter = optimizer.param_groups[0]["params"][0]
            self.scaler.scale(zeros((), device=parameter.device))  # makes its lazy state

    def open(self) -> float:
        """A step begins; the scale of its losses. With a scaler, one host sync."""
        if self.scaler is not None:
            self.value = float(self.scaler.get_scale())
        return self.value

    @property
    def lowered(self) -> bool:
        """Whether the scaler found infinities and lowered its scale since the step began."""
        return self.scaler is not None and float(self.scaler.get_scale()) < self.value

    def unscale(self) -> None:
        """Divides the gradients by the scale, in place."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Takes the optimizer's step."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)

    def update(self, *, finite: bool) -> None:
        """Moves the scale after a step: up after many finite ones, down after one that was not."""
        if self.scaler is None:
            return
        self.scaler.update()
        if not finite and not self.lowered:  # squares may overflow before gradients do
            self.scaler.update(self.value * self.scaler.get_backoff_factor())


def drop_gradients(optimizer: Optimizer) -> None:
    """Takes all gradients away: torch's optimizers pass over a parameter that has none."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Tensor):
                parameter.grad = None
