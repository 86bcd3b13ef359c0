"""Compute LAMB, LARS and AdaGrad-Norm by their formulas, one parameter at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHAPES = ((4, 3), (3,), (2, 3, 2), (), (2, 2), (3, 2), (1, 5), (0, 3))


def problem(steps: int = 20) -> tuple[list[Tensor], list[list[Tensor]], list[float]]:
    """Weights, their gradients in each step, and each step's learning rate, in float64. One matrix
    starts at zero, another never gets a gradient other than zero, a third has large weights."""
    generator = torch.Generator().manual_seed(0)

    def random(times: float = 1.0) -> list[Tensor]:
        return [
            times * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES
        ]

    weights = random()
    weights[4].zero_()
    weights[6].mul_(100.0)
    gradients = [random(3.0 / (step + 1.0)) for step in range(steps)]
    for step in gradients:
        step[5].zero_()
    return weights, gradients, [0.05 * (1.0 + math.sin(step)) for step in range(steps)]


def norm(tensor: Tensor) -> float:
    return math.sqrt(sum(float(element) ** 2 for element in tensor.flatten()))


def naive_lamb(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    rates: Sequence[float],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    bias_correction: bool = True,
    weight_norm_bounds: tuple[float, float] | None = None,
    max_trust_ratio: float | None = None,
    decoupled_weight_decay: bool = False,
    always_adapt: bool = False,
    always_decay: bool = False,
) -> list[Tensor]:
    """The weights after all steps."""
    lower, upper = weight_norm_bounds or (0.0, math.inf)
    ends = []
    for index, w in enumerate(weights):
        m, v = torch.zeros_like(w), torch.zeros_like(w)
        decay = weight_decay if w.dim() >= 2 or always_decay else 0.0
        for t, (step, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
            g = step[index]
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g * g
            if bias_correction:
                r = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
            else:
                r = m / (v.sqrt() + eps)
            u = r if decoupled_weight_decay else r + decay * w
            ratio = 1.0
            if w.dim() >= 2 or always_adapt:
                phi = min(max(norm(w), lower), upper)
                ratio = phi / norm(u) if phi > 0 and norm(u) > 0 else 1.0
                ratio = min(ratio, max_trust_ratio or math.inf)
            w = w - lr * ratio * u - (lr * decay * w if decoupled_weight_decay else 0.0)
        ends.append(w)
    return ends


def naive_lars(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    rates: Sequence[float],
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    eps: float = 1e-8,
    nesterov: bool = False,
    lr_in_buffer: bool = False,
    always_adapt: bool = False,
    always_decay: bool = False,
) -> list[Tensor]:
    """The weights after all steps."""
    ends = []
    for index, w in enumerate(weights):
        v = torch.zeros_like(w)
        decay = weight_decay if w.dim() >= 2 or always_decay else 0.0
        for step, lr in zip(gradients, rates, strict=True):
            g = step[index]
            ratio = 1.0
            if w.dim() >= 2 or always_adapt:
                size = norm(g) + decay * norm(w)
                if norm(w) > 0 and size > 0:
                    ratio = trust_coefficient * norm(w) / (size + eps)
            d = ratio * (g + decay * w)
            if lr_in_buffer:
                d = lr * d
            v = momentum * v + d
            moved = d + momentum * v if nesterov else v
            w = w - (moved if lr_in_buffer else lr * moved)
        ends.append(w)
    return ends


def naive_adagrad_norm(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    rates: Sequence[float],
    *,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    initial_sum: float = 0.0,
) -> list[Tensor]:
    """Return the weights after all steps, with one sum for all parameters."""
    now, v = [w.clone() for w in weights], initial_sum
    for step, lr in zip(gradients, rates, strict=True):
        moved = [g + weight_decay * w for g, w in zip(step, now, strict=True)]
        v += sum(norm(g) ** 2 for g in moved)
        now = [w - lr * g / (math.sqrt(v) + eps) for w, g in zip(now, moved, strict=True)]
    return now
