"""A run whose loop says when to decide, since its `optimizer.step` is given a closure."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from largebatch.act.attached import Attached
from largebatch.act.scaling import drop_gradients


class Steered(Attached):
    """As `Attached`, for a loop that runs its last backward inside `optimizer.step(closure)`: the
    step's pre-hook comes before that backward, so the loop calls `decide` after it and before
    clipping, and `complete` after the step.

    Mutable: holds the step in hand.
    """

    _decided = False

    def decide(self, *, share: float = 1.0) -> None:
        """Measures, decides and multiplies the learning rate until the step is over.

        Args:
            share: the factor by which the step's gradient falls short of the mean over its
                micro-batches, above 0; it is made the mean.

        Raises:
            LargeBatchError: as `optimizer.step()` under `lb.attach`.
        """
        seen = self._decide(share=share)
        self._decided = True
        if seen.finite:
            if share != 1.0:
                self.observer.meter.multiply_gradients(1.0 / share)
            self._lr.apply(self.lr_multiplier)
        elif self._scale.scaler is None:
            drop_gradients(self.optimizer)  # else the scaler must see them, to lower its scale
        self._check_going_on(seen)

    def complete(self) -> None:
        """Closes a step that a scaler left out, whose optimizer never came to its post-hook."""
        self._after_step(self.optimizer, (), {})

    @property
    def loss_scale(self) -> float:
        """What the scaler multiplies the step's losses with."""
        return self._scale.value

    @property
    def gain(self) -> float:
        """What the last step was worth in base steps; 0 before the first."""
        return 0.0 if self.decision is None else self.decision.base_steps

    @property
    def last_batch_size(self) -> int:
        """Samples of the last step, over all ranks; 0 before the first."""
        return self.decider.samples - self._before.samples

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._decided and self._seen is not None and not self._seen.finite:
            drop_gradients(optimizer)  # the squares overflowed before what the scaler looks at

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._decided:
            self._decided = False
            super()._after_step(optimizer, args, kwargs)
