"""The moments of the gradient as the optimizer divides it: Adam's family, Adagrad, SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam

from largebatch.core.measurement import GradientMoments
from largebatch.measure.complex_gradients import as_real, real_dense
from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.squares import squared_norm, squarer
from largebatch.measure.statistics import BATCH, Totals
from largebatch.measure.sums import Sums


class PreconditionedNorms:
    """The moments of the gradient divided by Adam's sqrt(v) + eps, with v before this step.

    For Adagrad, v is the mean of the squares that it summed up. Adagrad divides by the root of the
    sum, which is the same but for sqrt(steps): no noise scale changes with it, and moments of
    different steps can be averaged. With `amsgrad`, v is its running maximum. SGD does not divide,
    so the moments are those of the bare gradient.

    A parameter that has taken fewer than `WARM` steps counts as one without a gradient, as its v
    says little. If no other parameter has a gradient, nothing is known and the moments are None. So
    the loss's scale never enters an average, also if a layer begins to train late. Only eps has the
    unit of a gradient: where sqrt(v) is not far above eps, both the optimizer's step and these
    moments depend on the loss's scale. RAdam does not divide in its first 5 steps; for a small
    beta2 it divides still later than it is measured here, and never for beta2 of 2/3 or less.

    To v is added `RARE` times its mean over the parameter. Without it, an element that hardly ever
    got a gradient, such as a rare word's embedding, is divided by nearly nothing and dominates the
    sum (on a small transformer it was 130 times all other elements together in single steps). There
    is no proof that these moments should set Adam's learning rate.

    Reference: Qiao et al., Pollux, OSDI 2021 (preconditioned gradient noise scale); `WARM` and
    `RARE` are ours.

    Mutable: holds the denominators of the step in hand.
    """

    name = "preconditioned_moments"
    parts = True
    of_parts = ("preconditioned_moments",)
    of_batch = ("preconditioned batch",)
    WARM = 5
    RARE = 1e-3

    def __init__(self) -> None:
        self._part: list[Tensor] = []
        self._denominators: list[Tensor | None] | None = None

    def supports(self, optimizer: Optimizer) -> bool:
        return self.divides(optimizer) or isinstance(optimizer, SGD)

    def divides(self, optimizer: Optimizer) -> bool:
        """Return whether the optimizer divides the gradient, and its denominators are known."""
        return isinstance(optimizer, (Adam, AdamW, NAdam, RAdam, Adagrad))

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self.bare = not self.divides(optimizer)
        # the last one is for the index WHOLE, -1
        self._squares = [*map(squarer, parameters.tensors), squared_norm]

    def open(self) -> None:
        self._part.clear()
        self._denominators = None

    def see(self, index: int, gradient: Tensor) -> None:
        if self.bare:
            self._part.append(self._squares[index](gradient))
            return
        if index == WHOLE:
            for each, piece in enumerate(self._parameters.split(gradient)):
                self.see(each, piece)
            return
        self._part += self._divided_squares(index, gradient)

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        if self.bare:  # the batch's squared norm is in the sums already: every step needs it
            return
        (name,) = self.of_batch
        gradients = [(index, p.grad) for index, p in enumerate(self._parameters.tensors)]
        scalars = [
            scalar
            for index, gradient in gradients
            if gradient is not None
            for scalar in self._divided_squares(index, gradient)
        ]
        sums.add(name, *scalars, coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        if self.bare:
            return totals.moments(of_parts=self.name, of_batch=BATCH)
        (batch,) = self.of_batch
        if totals.sums[self.name] == 0.0 and totals.sums[batch] == 0.0:
            return None  # no parameter is warm, or none of those has a gradient
        return totals.moments(of_parts=self.name, of_batch=batch)

    def _divided_squares(self, index: int, gradient: Tensor) -> list[Tensor]:
        """The squared norm of one parameter's divided gradient; nothing without a state."""
        if self._denominators is None:  # late, so that a state loaded after `open` counts
            state = self._optimizer.state
            groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
            self._denominators = [
                self._denominator(state.get(p, {}), groups[p]) for p in self._parameters.tensors
            ]
        denominator = self._denominators[index]
        return [] if denominator is None else [squared_norm(real_dense(gradient) / denominator)]

    def _denominator(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
        """What the optimizer divides by, infinite while it has taken fewer than WARM steps.

        The steps stay where the optimizer keeps them. On the CPU they need no copy to the device,
        and on the device no host read.
        """
        kept = "max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"
        held = state.get(kept, state.get("sum"))
        if held is None:
            return None
        second = as_real(held)  # of the real and the imaginary parts, as if they were two tensors
        steps = torch.as_tensor(state["step"])
        # a scaler may have left out the first step of a fused optimizer: 0 steps, but a state
        weight = _weight(steps.clamp(min=1.0), None if "sum" in state else group["betas"][1])
        corrected = second / weight
        mean = corrected.reshape(-1, 2).mean(0) if held.is_complex() else corrected.mean()
        # (sqrt(v) + eps) / sqrt(weight) in RAdam and Adagrad, sqrt(v / weight) + eps in the others
        early = isinstance(self._optimizer, (RAdam, Adagrad))
        eps = group["eps"] / weight.sqrt() if early else group["eps"]
        cold = torch.where(steps < self.WARM, math.inf, 0.0)
        return (corrected + self.RARE * mean).sqrt().add_(eps).add_(cold)


def _weight(steps: Tensor, beta: float | Tensor | None) -> Tensor:
    """The total weight of the squares in v: 1 - beta^steps of Adam's average, `steps` of a sum."""
    if beta is None:
        return steps
    if isinstance(beta, Tensor):
        return -torch.expm1(steps * beta.log())
    # 1 - beta^t would lose four of its seven digits in the first steps
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))
