"""Measure the moments of the preconditioned gradient, which is divided as Adam's gradient is."""

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
    """Measure the moments of the preconditioned gradient, the gradient divided by sqrt(v) + eps.

    v is Adam's running mean of squared gradients before the current step. With `amsgrad`, v is the
    running maximum of Adam's running mean. For Adagrad, v is the mean of the squared gradients.
    Adagrad itself divides the gradient by the square root of the sum of squared gradients. The
    factor sqrt(steps) between the two roots changes no noise scale, and with the mean the moments
    of different steps can be averaged. SGD does not divide the gradient, so the moments for SGD are
    the moments of the raw gradient.

    A parameter that has taken fewer than `WARM` steps is left out, because v of the parameter is
    still uncertain. If all parameters are left out, the moments are None. So averages of moments do
    not depend on the scale of the loss, even if a layer begins to train late. Only eps has the unit
    of a gradient. If sqrt(v) is not far above eps, the optimizer step and the preconditioned
    moments depend on the scale of the loss. RAdam does not divide the gradient in its first 5
    steps. For a small beta2, RAdam begins to divide the gradient later than `PreconditionedNorms`
    does. For beta2 of 2/3 or less, RAdam never divides the gradient.

    `RARE` times the mean of v over the parameter is added to v. Without the added mean, a gradient
    element that is rarely nonzero, such as the embedding of a rare word, would be divided by almost
    zero and dominate the sum of squares. In single steps of a small transformer, one element was
    130 times the sum of all other elements. There is no proof that the preconditioned moments
    should set Adam's learning rate.

    >>> import largebatch as lb
    >>> model = torch.nn.Linear(2, 1)
    >>> meter = lb.Meter(model, statistics=[PreconditionedNorms()])
    >>> meter.bind(Adam(model.parameters()))
    >>> sorted(meter.provides)
    ['preconditioned_moments']

    Reference: Qiao et al., Pollux, OSDI 2021 (preconditioned gradient noise scale). `WARM` and
    `RARE` are additions of this package.

    Mutable: holds the denominators of the current step.
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
        """Return whether the optimizer's denominators are known (Adam family, Adagrad)."""
        return isinstance(optimizer, (Adam, AdamW, NAdam, RAdam, Adagrad))

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self.bare = not self.divides(optimizer)
        # The last function is for the index WHOLE, which is -1.
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
        if self.bare:  # the meter adds the squared norm of the batch in every step
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
            return None  # no parameter with `WARM` or more steps has a gradient
        return totals.moments(of_parts=self.name, of_batch=batch)

    def _divided_squares(self, index: int, gradient: Tensor) -> list[Tensor]:
        """Return the squared norm of one parameter's preconditioned gradient, in a list.

        The list is empty if the optimizer has no state for the parameter yet.
        """
        if self._denominators is None:  # computed late, to use a state that is loaded after `open`
            state = self._optimizer.state
            groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
            self._denominators = [
                self._denominator(state.get(p, {}), groups[p]) for p in self._parameters.tensors
            ]
        denominator = self._denominators[index]
        return [] if denominator is None else [squared_norm(real_dense(gradient) / denominator)]

    def _denominator(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
        """Return the optimizer's denominators, which are infinite before `WARM` optimizer steps.

        The optimizer's step count is used on the device where it is stored, so no value is copied
        between host and device.
        """
        kept = "max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"
        held = state.get(kept, state.get("sum"))
        if held is None:
            return None
        second = as_real(held)  # real and imaginary parts are treated as two tensors
        steps = torch.as_tensor(state["step"])
        # If a scaler skipped a fused optimizer's first step, the optimizer's state exists with 0
        # steps.
        weight = _weight(steps.clamp(min=1.0), None if "sum" in state else group["betas"][1])
        corrected = second / weight
        mean = corrected.reshape(-1, 2).mean(0) if held.is_complex() else corrected.mean()
        # RAdam and Adagrad divide by (sqrt(v) + eps) / sqrt(weight), and the other optimizers
        # divide by sqrt(v / weight) + eps.
        early = isinstance(self._optimizer, (RAdam, Adagrad))
        eps = group["eps"] / weight.sqrt() if early else group["eps"]
        cold = torch.where(steps < self.WARM, math.inf, 0.0)
        return (corrected + self.RARE * mean).sqrt().add_(eps).add_(cold)


def _weight(steps: Tensor, beta: float | Tensor | None) -> Tensor:
    """Return the total weight of the squared gradients in the optimizer's running mean or sum.

    The total weight is 1 - beta^steps in Adam's running mean. In Adagrad's sum, for which `beta` is
    None, the total weight is `steps`.
    """
    if beta is None:
        return steps
    if isinstance(beta, Tensor):
        return -torch.expm1(steps * beta.log())
    # Computed as 1 - beta^steps, the weight loses four of its seven digits in the first steps.
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))
