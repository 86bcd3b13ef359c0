"""LAMB: Adam's direction, as long in each layer as the layer's weights allow.

    m = beta1 m + (1 - beta1) g,    v = beta2 v + (1 - beta2) g^2
    r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    u = r + weight_decay w
    w <- w - lr ratio u,    ratio = phi(|w|) / |u|,    1 where one of the two is 0

for each parameter w with gradient g, in its t-th step; phi is the identity or bounds the norm.

You et al.: Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2019, arXiv
1904.00962.
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
    """phi(|w|) / |u| for each layer, and 1 where one of the two is 0; at most `max_trust_ratio`.

    >>> lamb_trust_ratio(torch.tensor([6.0, 0.0, 6.0]), torch.tensor([3.0, 3.0, 0.0]))
    tensor([2., 1., 1.])

    Args:
        weight_norms, update_norms: `[layers]`.
        weight_norm_bounds: phi bounds |w| by them; None: phi is the identity.
        max_trust_ratio: None: no bound.
    """
    if weight_norm_bounds is not None:
        weight_norms = weight_norms.clamp(*weight_norm_bounds)
    known = (weight_norms > 0.0) & (update_norms > 0.0)
    ratio = torch.where(known, weight_norms / update_norms, 1.0)
    return ratio if max_trust_ratio is None else ratio.clamp(max=max_trust_ratio)


def bias_correction(steps: Tensor, beta: float) -> Tensor:
    """1 - beta^steps, what the weights of an average that began at 0 sum to.

    >>> bias_correction(torch.tensor([1.0, 2.0]), 0.5)
    tensor([0.5000, 0.7500])
    """
    # in float32 the plain difference keeps three of seven digits of 1 - 0.999
    return -torch.expm1(steps * (math.log(beta) if beta > 0.0 else -math.inf))


class Lamb(LayerwiseOptimizer):
    """Adam whose step in a layer is `lr` times the layer's norm, whatever the gradient's size.

        u = r + weight_decay w,    w <- w - lr phi(|w|) / |u| u,    r Adam's direction

    A parameter is a layer if it has two or more dimensions; biases and the gains of normalization
    take Adam's own step, lr r, and no weight decay. Parameters without a gradient, such as frozen
    ones, are left alone. Options may differ by parameter group. Gradients are not clipped in here:
    `control.step(clip_norm=1.0)` does that. Parameters in float16 or bfloat16 have their states,
    norms and updates in float32.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[1.0, -1.0]])
    >>> Lamb([weight], lr=0.1).step()
    >>> weight.data  # a step of 0.1 |w| = 0.5
    tensor([[2.6464, 4.3536]])

    Mutable: holds both averages and the number of steps of each parameter.

    Args:
        params: parameters or groups of them, whole and not sharded.
        lr: learning rate, 0 or more; the relative step of a layer. May be a tensor of one element.
        betas: what is kept of the averages of g and g^2 in each step, both in [0, 1).
        eps: above 0.
        weight_decay: 0 or more.
        bias_correction: whether r divides the averages by what their weights sum to.
        weight_norm_bounds: (lower, upper) of phi, 0 <= lower <= upper, upper above 0; None is the
            identity.
        max_trust_ratio: upper bound of the ratio, above 0; 1 is known as LAMBC. None: no bound.
        decoupled_weight_decay: w <- w - lr (ratio r + weight_decay w), with the ratio of r alone.
        always_adapt: parameters with fewer than two dimensions have a ratio, too.
        always_decay: parameters with fewer than two dimensions are decayed, too.

    Raises:
        ValueError: a hyper-parameter outside of its range.

    Reference: You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
    2019, arXiv 1904.00962.
    """

    # Public implementations disagree on every option after weight_decay. What they do, what is the
    # default here, and why:
    # - bias_correction: both averages are corrected, or none is; or the rate alone is divided by
    #   1 - beta1^t after the ratio, which makes the first step ten times too long. Default: both.
    #   The ratio cancels any common factor of r, but biases would start with 3.2 times Adam's step.
    # - phi: the identity, or the norm bounded by 10. Default: the identity, since under a bound a
    #   layer's relative step depends on its width.
    # - the ratio: unbounded, or at most 1. Default: unbounded, as the formula is.
    # - what is adapted: all; or what is decayed, so that without weight decay nothing is. Default:
    #   the dimensions decide, so that tuning the weight decay never changes the method.
    # - weight decay: within u, or beside the ratio. Default: within, so that the whole step of a
    #   layer has the length lr |w|.
    # - gradients: clipped by their global norm in here, or not. Never: clipping has one place.
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
        check_value(is_rate(lr), "lr is one number, 0 or more", got=lr, paste=f"{call})")
        fine = len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas)
        paste = f"{call}, betas=(0.9, 0.999))"
        check_value(fine, "betas are two numbers in [0, 1)", got=betas, paste=paste)
        check_value(0.0 < eps < math.inf, "eps is above 0", got=eps, paste=f"{call}, eps=1e-6)")
        paste = f"{call}, weight_decay=0.01)"
        check_value(0.0 <= decay < math.inf, "weight_decay is 0 or more", got=decay, paste=paste)
        fine = bounds is None or (len(bounds) == 2 and 0.0 <= bounds[0] <= bounds[1] > 0.0)
        paste = f"{call}, weight_norm_bounds=(0.0, 10.0))"
        check_value(fine, "weight_norm_bounds are (lower, upper) or None", got=bounds, paste=paste)
        paste = f"{call}, max_trust_ratio=1.0)"
        check_value(most is None or most > 0.0, "max_trust_ratio is above 0", got=most, paste=paste)

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
    """Adam's direction r, after both averages took in the gradients."""
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
