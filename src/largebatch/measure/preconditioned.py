"""The moments of the gradient as Adam or Adagrad sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam

from largebatch.core.measurement import GradientMoments
from largebatch.measure.complex_gradients import as_real, real_dense
from largebatch.measure.parameters import WHOLE, Parameters
from largebatch.measure.squares import squared_norm
from largebatch.measure.statistics import Totals
from largebatch.measure.sums import Sums


class PreconditionedNorms:
    """The moments of the gradient divided by Adam's sqrt(v) + eps, with v before this step; for
    Adagrad v is the mean of the squares that it summed up.

    In the first `WARM` steps, in which v says little, nothing is divided. To v is added `RARE`
    times its mean over the parameter: an element that hardly ever got a gradient, as a rare word's
    embedding, is else divided by nearly nothing and rules the sum (on a small transformer 130 times
    all other elements together in single steps). There is no proof that these moments should set
    Adam's learning rate. Adagrad divides by the root of the sum: the same but for sqrt(steps),
    which no noise scale knows, and moments of different steps can be averaged.

    Reference: Qiao et al., Pollux, OSDI 2021 (preconditioned gradient noise scale); `RARE` is ours.

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
        return isinstance(optimizer, (Adam, AdamW, NAdam, RAdam, Adagrad))

    def bind(self, parameters: Parameters, optimizer: Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer

    def open(self) -> None:
        self._part.clear()
        self._denominators = None

    def see(self, index: int, gradient: Tensor) -> None:
        if index == WHOLE:
            for each, piece in enumerate(self._parameters.split(gradient)):
                self.see(each, piece)
            return
        self._part.append(squared_norm(self._preconditioned(index, gradient)))

    def close_part(self, sums: Sums, *, coefficient: float) -> None:
        sums.add(self.name, *self._part, coefficient=coefficient)
        self._part.clear()

    def close_batch(self, sums: Sums, *, share: float) -> None:
        (name,) = self.of_batch
        gradients = [(index, p.grad) for index, p in enumerate(self._parameters.tensors)]
        scalars = [
            squared_norm(self._preconditioned(index, gradient))
            for index, gradient in gradients
            if gradient is not None
        ]
        sums.add(name, *scalars, coefficient=share)

    def read(self, totals: Totals) -> GradientMoments | None:
        return totals.moments(of_parts=self.name, of_batch=self.of_batch[0])

    def _preconditioned(self, index: int, gradient: Tensor) -> Tensor:
        if self._denominators is None:  # late, so that a state loaded after `open` counts
            state = self._optimizer.state
            groups = {p: group for group in self._optimizer.param_groups for p in group["params"]}
            self._denominators = [
                self._denominator(state.get(p, {}), groups[p]) for p in self._parameters.tensors
            ]
        denominator = self._denominators[index]
        return gradient if denominator is None else real_dense(gradient) / denominator

    def _denominator(self, state: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor | None:
        held = state.get("exp_avg_sq", state.get("sum"))
        if held is None:
            return None
        second = as_real(held)  # of the real and the imaginary parts, as if they were two tensors
        steps = torch.as_tensor(state["step"], device=second.device)
        if "sum" in state:
            corrected = second / steps.clamp(min=1.0)
        else:
            # 1 - beta^t would lose four of its seven digits in the first steps
            corrected = second / -torch.expm1(steps * math.log(group["betas"][1]))
        mean = corrected.reshape(-1, 2).mean(0) if held.is_complex() else corrected.mean()
        return torch.where(
            steps < self.WARM,
            torch.ones_like(second),
            (corrected + self.RARE * mean).sqrt().add_(group["eps"]),
        )
