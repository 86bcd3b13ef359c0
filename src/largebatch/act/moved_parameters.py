"""Compares the parameters that an optimizer moves with those that a run measures."""

from __future__ import annotations

import operator

from torch import Tensor
from torch.optim import Optimizer

from largebatch.core.errors import LargeBatchError
from largebatch.measure.parameters import Parameters


class MovedParameters:
    """The trainable parameters of an optimizer when the run was built.

    Mutable: takes over another order of the same parameters.

    Args:
        optimizer: that moves them.
        parameters: that the run measures, with their names.
    """

    def __init__(self, optimizer: Optimizer, parameters: Parameters) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._moved = _moved(optimizer)

    def check(self) -> None:
        """Checks that the optimizer moves the same parameters still, by identity.

        Raises:
            LargeBatchError: a parameter was replaced, frozen or released, or a group added.
        """
        before, now = self._moved, _moved(self._optimizer)
        if len(before) == len(now) and all(map(operator.is_, before, now)):
            return
        missing = set(map(id, before)) - set(map(id, now))
        if len(before) == len(now) and not missing:  # only their order changed
            self._moved = now
            return
        what = (
            f"The optimizer moved {len(before)} trainable parameters when this run was built and "
            f"moves {len(now)} now"
        )
        if missing:
            pairs = zip(self._parameters.names, self._parameters.tensors, strict=True)
            names = ", ".join(name for name, tensor in pairs if id(tensor) in missing)
            what += f"; {names} was replaced, removed or frozen"
        raise LargeBatchError(
            f"{what}. So some are not measured. Add parameter groups, replace, freeze and release "
            "parameters first, then build lb.Controller(...) or, after close(), lb.attach(...) or "
            "lb.watch(...) anew."
        )


def _moved(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
