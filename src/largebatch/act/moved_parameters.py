"""Compare the parameters that an optimizer moves with the parameters that a run measures."""

from __future__ import annotations

import operator

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError
from largebatch.measure.parameters import Parameters


class MovedParameters:
    """Hold the trainable parameters that an optimizer had when the run was built.

    This class is mutable: if the optimizer has the same parameters in another order, the new order
    is stored.

    Args:
        optimizer: Optimizer that moves the parameters.
        parameters: Parameters that the run measures, with their names.
    """

    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._moved = _moved(optimizer)

    def check(self) -> None:
        """Check that the optimizer still moves the same parameter tensors, compared by identity.

        Raises:
            LargeBatchError: A parameter was replaced, frozen or unfrozen, or a parameter group was
                added.
        """
        before, now = self._moved, _moved(self._optimizer)
        if len(before) == len(now) and all(map(operator.is_, before, now)):
            return
        missing = set(map(id, before)) - set(map(id, now))
        if len(before) == len(now) and not missing:  # only their order changed
            self._moved = now
            return
        what = (
            f"The optimizer had {len(before)} trainable parameters when this run was built, but "
            f"now it has {len(now)}"
        )
        if missing:
            pairs = zip(self._parameters.names, self._parameters.tensors, strict=True)
            names = ", ".join(name for name, tensor in pairs if id(tensor) in missing)
            what += f"; {names} was replaced, removed or frozen"
        raise LargeBatchError(
            f"{what}. Some parameters are therefore not measured. First finish all changes to the "
            "parameter groups and to requires_grad. Then build lb.Controller(...) again, or call "
            "close() and build lb.attach(...) or lb.watch(...) again."
        )


def _moved(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
