"""Use torch's `GradScaler`, the loss scale of half-precision training, around a measured step."""

from __future__ import annotations

from torch import Tensor, zeros
from torch.amp import GradScaler
from torch.optim import Optimizer


class LossScale:
    """Provide what a step needs from a `GradScaler`: the scale, unscaled gradients and the guarded
    step.

    If a loss is multiplied by c, its gradients are c times as large. To a meter, a step with scaled
    losses looks like a step whose planned total weight is 1 / c times as large, so the meter needs
    no knowledge of the scale.

    This class is mutable: it holds the scale of the current step, and torch's scaler changes at
    each update.

    Args:
        scaler: torch's GradScaler; None or a disabled scaler has the scale 1.
        optimizer: Optimizer whose gradients are unscaled.

    Raises:
        ValueError: The scaler is not a `torch.amp.GradScaler`.
    """

    def __init__(self, scaler: GradScaler | None, optimizer: Optimizer) -> None:
        if scaler is not None and not isinstance(scaler, GradScaler):
            raise ValueError(
                f"scaler is a {type(scaler).__name__}, but it must be a torch.amp.GradScaler. "
                "Pass scaler=torch.amp.GradScaler()."
            )
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.optimizer = optimizer
        self.value = 1.0
        if self.scaler is not None:
            parameter = optimizer.param_groups[0]["params"][0]
            self.scaler.scale(zeros((), device=parameter.device))  # initializes its state

    def open(self) -> float:
        """Begin a step and return the scale of its losses; with a scaler, `open` waits for the
        device once.
        """
        if self.scaler is not None:
            self.value = float(self.scaler.get_scale())
        return self.value

    @property
    def lowered(self) -> bool:
        """Whether the scaler has found infinities and lowered its scale since the step began."""
        return self.scaler is not None and float(self.scaler.get_scale()) < self.value

    def unscale(self) -> None:
        """Divide the gradients by the scale, in place."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def step(self) -> None:
        """Take the optimizer step, through the scaler if there is one."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)

    def update(self, *, finite: bool) -> None:
        """Update the scale after a step: raise it after many finite steps, lower it after a
        non-finite one.
        """
        if self.scaler is None:
            return
        self.scaler.update()
        if not finite and not self.lowered:  # squared gradients may overflow before gradients do
            self.scaler.update(self.value * self.scaler.get_backoff_factor())


def drop_gradients(optimizer: Optimizer) -> None:
    """Remove all gradients, because torch's optimizers ignore a parameter without a gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Tensor):
                parameter.grad = None
