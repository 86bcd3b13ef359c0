"""Implement LAMB: Adam's direction, with a step length proportional to the norm of each layer.

    m = beta1 * m + (1 - beta1) * g,    v = beta2 * v + (1 - beta2) * g^2
    r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    u = r + weight_decay * w
    w <- w - lr * ratio * u,    ratio = phi(|w|) / |u|, or 1 if phi(|w|) or |u| is 0

The update is for each parameter w with gradient g in the parameter's t-th step. The function phi is
the identity, or it bounds the norm.

Reference: You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
2019, arXiv 1904.00962.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.layerwise import Bucket, LayerwiseOptimizer, check_value, is_rate, rate


def lamb_trust_ratio(
    weight_norms: Tensor,
    update_norms: Tensor,
    *,
    weight_norm_bounds: tuple[float, float] | None = None,
    max_trust_ratio: float | None = None,
) -> Tensor:
    """Return phi(|w|) / |u| for each layer, or 1 if phi(|w|) or |u| is 0.

    >>> lamb_trust_ratio(torch.tensor([6.0, 0.0, 6.0]), torch.tensor([3.0, 3.0, 0.0]))
    tensor([2., 1., 1.])

    Args:
        weight_norms: Norms |w| of the layers' weights, of shape `[layers]`.
        update_norms: Norms |u| of the layers' updates, of shape `[layers]`.
        weight_norm_bounds: Pair (lower, upper) by which phi bounds |w|, or None if phi is the
            identity.
        max_trust_ratio: Upper bound of the trust ratio, or None for no bound.
    """
    if weight_norm_bounds is not None:
        weight_norms = weight_norms.clamp(*weight_norm_bounds)
    known = (weight_norms > 0.0) & (update_norms > 0.0)
    ratio = torch.where(known, weight_norms / update_norms, 1.0)
    return ratio if max_trust_ratio is None else ratio.clamp(max=max_trust_ratio)


def bias_correction(steps: Tensor, beta: float) -> Tensor:
    """Return 1 - beta^steps, the total weight in an exponential average that started at 0.

    >>> bias_correction(torch.tensor([1.0, 2.0]), 0.5)
    tensor([0.5000, 0.7500])

    Args:
        steps: Number of steps of each parameter.
        beta: Decay factor of the average, in [0, 1).
    """
    # In float32 the plain difference keeps only three of seven digits of 1 - 0.999.
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))


class Lamb(LayerwiseOptimizer):
    """Train with Adam's direction and a step of length `lr` times the norm of each layer.

        u = r + weight_decay * w,    w <- w - lr * phi(|w|) / |u| * u,    r is Adam's direction

    The step length does not depend on the size of the gradient. A parameter counts as a layer if it
    has two or more dimensions. Biases and the gains of normalization layers get Adam's own step lr
    * r, without weight decay. Parameters without a gradient, such as frozen parameters, stay
    unchanged. Options may differ between parameter groups. The optimizer does not clip gradients.
    To clip gradients, call `control.step(clip_norm=1.0)`. States, norms and updates of float16 and
    bfloat16 parameters are in float32. For each parameter, the optimizer stores the averages of g
    and g^2 and the number of steps.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[1.0, -1.0]])
    >>> Lamb([weight], lr=0.1).step()
    >>> weight.data  # a step of 0.1 |w| = 0.5
    tensor([[2.6464, 4.3536]])

    Args:
        params: Parameters or parameter groups. Sharded parameters are not supported.
        lr: Learning rate, at least 0. The learning rate is a layer's step length divided by the
            norm of the layer's weights. A tensor of one element is allowed.
        betas: Decay factors of the averages of g and g^2, both in [0, 1).
        eps: Constant in the denominator, above 0.
        weight_decay: Weight-decay factor, at least 0.
        bias_correction: Whether Adam's direction corrects the averages of g and g^2 for their start
            at 0.
        weight_norm_bounds: Pair (lower, upper) by which phi bounds |w|, with 0 <= lower <= upper
            and upper above 0. If None, phi is the identity.
        max_trust_ratio: Upper bound of phi(|w|) / |u|, above 0, or None for no bound. LAMB with the
            bound 1 is known as LAMBC.
        decoupled_weight_decay: Whether to compute the ratio from r alone. If True, the update is w
            <- w - lr * (ratio * r + weight_decay * w).
        always_adapt: Whether parameters with fewer than two dimensions have a trust ratio, too.
        always_decay: Whether parameters with fewer than two dimensions get weight decay, too.

    Raises:
        ValueError: A hyper-parameter is outside its range.

    Reference: You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
    2019, arXiv 1904.00962.
    """

    # Public implementations disagree on every option after weight_decay. For each option this list
    # names the variants, the default here, and the reason:
    # - bias_correction: Some implementations correct both averages, and some correct neither
    #   average. Others divide only the learning rate by 1 - beta1^t after the ratio, which makes
    #   the first step ten times too long. Default: correct both averages. The ratio cancels any
    #   common factor of r, but without the correction biases would start with 3.2 times Adam's
    #   step.
    # - phi: the identity, or the norm bounded by 10. Default: the identity, because with a bound
    #   the relative step of a layer depends on the layer's width.
    # - The ratio is unbounded, or at most 1. Default: unbounded, as in the formula.
    # - The ratio applies to all parameters, or only to parameters with weight decay. In the second
    #   variant, no parameter has a ratio if there is no weight decay. Default: the number of
    #   dimensions decides, so tuning the weight decay never changes the method.
    # - Weight decay is part of u, or it is added after the ratio. Default: part of u, so that the
    #   whole step of a layer has the length lr * |w|.
    # - Gradients are clipped by their global norm inside the optimizer, or not. Never here, because
    #   the control clips gradients.
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
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
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "weight_norm_bounds": weight_norm_bounds,
            "max_trust_ratio": max_trust_ratio,
            "decoupled_weight_decay": decoupled_weight_decay,
            "always_adapt": always_adapt,
            "always_decay": always_decay,
        }
        super().__init__(params, defaults)

    def _check(self, group: Mapping[str, Any]) -> None:
        lr, betas, eps, decay = (group[k] for k in ("lr", "betas", "eps", "weight_decay"))
        bounds, most = group["weight_norm_bounds"], group["max_trust_ratio"]
        call = "Lamb(model.parameters(), lr=0.01"
        check_value(is_rate(lr), "lr must be one number, at least 0", got=lr, paste=f"{call})")
        fine = len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas)
        paste = f"{call}, betas=(0.9, 0.999))"
        check_value(fine, "betas must be two numbers in [0, 1)", got=betas, paste=paste)
        paste = f"{call}, eps=1e-6)"
        check_value(0.0 < eps < math.inf, "eps must be above 0", got=eps, paste=paste)
        paste = f"{call}, weight_decay=0.01)"
        fine = 0.0 <= decay < math.inf
        check_value(fine, "weight_decay must be at least 0", got=decay, paste=paste)
        fine = bounds is None or (len(bounds) == 2 and 0.0 <= bounds[0] <= bounds[1] > 0.0)
        paste = f"{call}, weight_norm_bounds=(0.0, 10.0))"
        what = "weight_norm_bounds must be None or (lower, upper), 0 <= lower <= upper, upper > 0"
        check_value(fine, what, got=bounds, paste=paste)
        fine = most is None or most > 0.0
        paste = f"{call}, max_trust_ratio=1.0)"
        check_value(fine, "max_trust_ratio must be above 0", got=most, paste=paste)

    def _move(self, group: Mapping[str, Any], bucket: Bucket) -> None:
        update = _adam(group, bucket)
        decay = group["weight_decay"] if bucket.layers or group["always_decay"] else 0.0
        decoupled = group["decoupled_weight_decay"]
        if decay and not decoupled:
            torch._foreach_add_(update, bucket.parameters, alpha=decay)
        ratio = bucket.ones()
        if bucket.layers or group["always_adapt"]:
            ratio = lamb_trust_ratio(
                bucket.norms(bucket.parameters),
                bucket.norms(update),
                weight_norm_bounds=group["weight_norm_bounds"],
                max_trust_ratio=group["max_trust_ratio"],
            )
        if decay and decoupled:
            torch._foreach_mul_(update, ratio.unbind())
            torch._foreach_add_(update, bucket.parameters, alpha=decay)
            ratio = bucket.ones()
        bucket.subtract(update, times=ratio * rate(group))


def _adam(group: Mapping[str, Any], bucket: Bucket) -> list[Tensor]:
    """Add the gradients to the averages of g and g^2, and return Adam's direction r."""
    beta1, beta2 = group["betas"]
    first, second = bucket.tensors("exp_avg"), bucket.tensors("exp_avg_sq")
    steps = bucket.scalars("step")
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(first, bucket.gradients, 1.0 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, bucket.gradients, bucket.gradients, 1.0 - beta2)
    root = torch._foreach_sqrt(second)
    if not group["bias_correction"]:
        torch._foreach_add_(root, group["eps"])
        return list(torch._foreach_div(first, root))
    taken = torch.stack(steps)
    torch._foreach_div_(root, bias_correction(taken, beta2).sqrt().unbind())
    torch._foreach_add_(root, group["eps"])
    torch._foreach_mul_(root, bias_correction(taken, beta1).unbind())
    return list(torch._foreach_div(first, root))
