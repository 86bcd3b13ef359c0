"""LARS: SGD whose rate in each layer follows the layer's norms of weights and gradient.

    ratio = trust_coefficient |w| / (|g| + weight_decay |w| + eps),    1 where |w| or all else is 0
    d = ratio (g + weight_decay w)
    v <- momentum v + d,    w <- w - lr v

for each parameter w with gradient g. With the rate in the buffer: v <- momentum v + lr d,
w <- w - v.

You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks, 2017, arXiv 1708.03888.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.layerwise import Bucket, LayerwiseOptimizer, check_value, is_rate, rate


def lars_trust_ratio(
    weight_norms: Tensor,
    gradient_norms: Tensor,
    *,
    trust_coefficient: float,
    weight_decay: float = 0.0,
    eps: float = 0.0,
) -> Tensor:
    """trust_coefficient |w| / (|g| + weight_decay |w| + eps) for each layer.

    It is 1 where |w| or |g| + weight_decay |w| is 0.

    >>> lars_trust_ratio(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 3.0]), trust_coefficient=0.5)
    tensor([1., 1.])

    Args:
        weight_norms, gradient_norms: `[layers]`.
        trust_coefficient, weight_decay, eps: as of `Lars`.
    """
    # Where the gradient alone is 0 some implementations have 1 and others the formula. The formula,
    # since it is the limit: 1 would all at once decay by lr weight_decay in place of
    # lr trust_coefficient, and a rate for LARS is large.
    size = gradient_norms + weight_decay * weight_norms
    known = (weight_norms > 0.0) & (size > 0.0)
    return torch.where(known, trust_coefficient * weight_norms / (size + eps), 1.0)


class Lars(LayerwiseOptimizer):
    """SGD in which a gradient moves a layer by at most `lr * trust_coefficient` of its norm.

        d = trust_coefficient |w| / (|g| + weight_decay |w| + eps) (g + weight_decay w)
        v <- momentum v + d,    w <- w - lr v

    A parameter is a layer if it has two or more dimensions; biases and the gains of normalization
    take SGD's own step, d = g, and no weight decay. The rate is theirs, too: where it is too large
    for them, give them a group of their own. A layer that starts at zero takes SGD's step at first.
    Parameters without a gradient, such as frozen ones, are left alone. Options may differ by
    parameter group. Gradients are not clipped in here: `control.step(clip_norm=1.0)` does that.
    Parameters in float16 or bfloat16 have their buffers, norms and updates in float32.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[0.0, 2.0]])
    >>> Lars([weight], lr=10.0, trust_coefficient=0.01).step()
    >>> weight.data  # a step of 10 * 0.01 |w| = 0.5
    tensor([[3.0000, 3.5000]])

    Mutable: holds the momentum buffers.

    Args:
        params: parameters or groups of them, whole and not sharded.
        lr: learning rate, 0 or more. May be a tensor of one element.
        momentum: what is kept of the buffer in each step, in [0, 1).
        weight_decay: 0 or more.
        trust_coefficient: above 0.
        eps: 0 or more.
        nesterov: d + momentum v moves the weights, in place of v.
        lr_in_buffer: whether the rate multiplies what enters the buffer, and not what leaves it.
        always_adapt: parameters with fewer than two dimensions have a ratio, too.
        always_decay: parameters with fewer than two dimensions are decayed, too.

    Raises:
        ValueError: a hyper-parameter outside of its range.

    Reference: You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017, arXiv
    1708.03888.
    """

    # Public implementations disagree. What they do, what is the default here, and why:
    # - the rate: outside of the buffer, or within; the same while it is constant. Default: outside,
    #   as in torch's SGD, so that a rule's factor holds for the whole step in hand. Within the
    #   buffer, a rate that was lowered goes on for about 1 / (1 - momentum) steps.
    # - eps: none, or 1e-8. Default: 1e-8, so that the ratio is finite in float32 beside next to no
    #   gradient.
    # - what is adapted: two or more dimensions; or what is decayed. Default: the dimensions decide,
    #   so that tuning the weight decay never changes the method.
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        nesterov: bool = False,
        lr_in_buffer: bool = False,
        always_adapt: bool = False,
        always_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "lr_in_buffer": lr_in_buffer,
            "always_adapt": always_adapt,
            "always_decay": always_decay,
        }
        super().__init__(params, defaults)

    def _check(self, group: Mapping[str, Any]) -> None:
        lr, momentum, decay = (group[key] for key in ("lr", "momentum", "weight_decay"))
        trust, eps = group["trust_coefficient"], group["eps"]
        call = "Lars(model.parameters(), lr=10.0"
        check_value(is_rate(lr), "lr is one number, 0 or more", got=lr, paste=f"{call})")
        paste = f"{call}, momentum=0.9)"
        check_value(0.0 <= momentum < 1.0, "momentum is in [0, 1)", got=momentum, paste=paste)
        fine = momentum > 0.0 or not group["nesterov"]
        paste = f"{call}, momentum=0.9, nesterov=True)"
        check_value(fine, "nesterov needs a momentum above 0", got=momentum, paste=paste)
        paste = f"{call}, weight_decay=1e-4)"
        check_value(0.0 <= decay < math.inf, "weight_decay is 0 or more", got=decay, paste=paste)
        paste = f"{call}, trust_coefficient=0.001)"
        check_value(0.0 < trust < math.inf, "trust_coefficient is above 0", got=trust, paste=paste)
        check_value(0.0 <= eps < math.inf, "eps is 0 or more", got=eps, paste=f"{call}, eps=1e-8)")

    def _move(self, group: Mapping[str, Any], bucket: Bucket) -> None:
        momentum, lr = group["momentum"], rate(group)
        enters, leaves = (lr, 1.0) if group["lr_in_buffer"] else (1.0, lr)
        update = _scaled(group, bucket, times=enters)
        if momentum:
            buffers = bucket.tensors("momentum_buffer")
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, update)
            if group["nesterov"]:
                torch._foreach_add_(update, buffers, alpha=momentum)
            else:
                update = buffers
        bucket.subtract(update, times=bucket.ones() * leaves)


def _scaled(group: Mapping[str, Any], bucket: Bucket, *, times: float | Tensor) -> list[Tensor]:
    """times ratio (g + weight_decay w), as new tensors."""
    decay = group["weight_decay"] if bucket.layers or group["always_decay"] else 0.0
    ratio = bucket.ones()
    if bucket.layers or group["always_adapt"]:
        ratio = lars_trust_ratio(
            bucket.norms(bucket.parameters),
            bucket.norms(bucket.gradients),
            trust_coefficient=group["trust_coefficient"],
            weight_decay=decay,
            eps=group["eps"],
        )
    factors = (ratio * times).unbind()
    if not decay:
        return list(torch._foreach_mul(bucket.gradients, factors))
    update = list(torch._foreach_add(bucket.gradients, bucket.parameters, alpha=decay))
    torch._foreach_mul_(update, factors)
    return update
