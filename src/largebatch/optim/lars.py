"""Implement LARS: SGD with a learning rate for each layer that depends on the layer's norms.

    ratio = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps)
    d = ratio * (g + weight_decay * w)
    v <- momentum * v + d,    w <- w - lr * v

The update is for each parameter w with gradient g. The ratio is 1 if |w| or |g| + weight_decay *
|w| is 0. With `lr_in_buffer`, the update is v <- momentum * v + lr * d, w <- w - v.

Reference: You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks, 2017, arXiv
1708.03888.
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
    """Return trust_coefficient * |w| / (|g| + weight_decay * |w| + eps) for each layer.

    The result is 1 if |w| or |g| + weight_decay * |w| is 0.

    >>> lars_trust_ratio(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 3.0]), trust_coefficient=0.5)
    tensor([1., 1.])

    Args:
        weight_norms: Norms |w| of the layers' weights, of shape `[layers]`.
        gradient_norms: Norms |g| of the layers' gradients, of shape `[layers]`.
        trust_coefficient: Factor of the trust ratio, above 0, as in `Lars`.
        weight_decay: Weight-decay factor, at least 0, as in `Lars`.
        eps: Constant in the denominator, at least 0, as in `Lars`.
    """
    # If only the gradient is 0, some implementations use 1 and others use the formula. We use the
    # formula because it is the limit for small gradients. With a ratio of 1 the decay would jump
    # from lr * trust_coefficient to lr * weight_decay, and learning rates for LARS are large.
    size = gradient_norms + weight_decay * weight_norms
    known = (weight_norms > 0.0) & (size > 0.0)
    return torch.where(known, trust_coefficient * weight_norms / (size + eps), 1.0)


class Lars(LayerwiseOptimizer):
    """Train with SGD in which one gradient changes a layer's weights by at most `lr *
    trust_coefficient` times the norm of the weights.

        d = trust_coefficient * |w| / (|g| + weight_decay * |w| + eps) * (g + weight_decay * w)
        v <- momentum * v + d,    w <- w - lr * v

    A parameter counts as a layer if it has two or more dimensions. Biases and the gains of
    normalization layers get SGD's own step d = g, without weight decay. Biases and gains use the
    same learning rate as layers. If the learning rate is too large for biases and gains, put biases
    and gains into their own parameter group. A layer whose weights are zero starts with SGD's step.
    Parameters without a gradient, such as frozen parameters, stay unchanged. Options may differ
    between parameter groups. The optimizer does not clip gradients. To clip gradients, call
    `control.step(clip_norm=1.0)`. Buffers, norms and updates of float16 and bfloat16 parameters are
    in float32. The optimizer stores the momentum buffers.

    >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> weight.grad = torch.tensor([[0.0, 2.0]])
    >>> Lars([weight], lr=10.0, trust_coefficient=0.01).step()
    >>> weight.data  # a step of 10 * 0.01 |w| = 0.5
    tensor([[3.0000, 3.5000]])

    Args:
        params: Parameters or parameter groups. Sharded parameters are not supported.
        lr: Learning rate, at least 0. A tensor of one element is allowed.
        momentum: Decay factor of the momentum buffer, in [0, 1).
        weight_decay: Weight-decay factor, at least 0.
        trust_coefficient: Factor of the trust ratio, above 0.
        eps: Constant in the denominator, at least 0.
        nesterov: Whether to change the weights by d + momentum * v instead of v.
        lr_in_buffer: Whether the learning rate multiplies the values that are added to the momentum
            buffer, instead of the buffer itself.
        always_adapt: Whether parameters with fewer than two dimensions have a trust ratio, too.
        always_decay: Whether parameters with fewer than two dimensions get weight decay, too.

    Raises:
        ValueError: A hyper-parameter is outside its range.

    Reference: You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017, arXiv
    1708.03888.
    """

    # Public implementations disagree. This list names the variants, the default here, and the
    # reason:
    # - The learning rate multiplies the momentum buffer, or what is added to the buffer. The two
    #   variants are equal while the learning rate is constant. Default: the learning rate
    #   multiplies the buffer, as in torch's SGD, so that a rule's factor applies to the whole
    #   current step. If the learning rate multiplies what is added to the buffer, an old learning
    #   rate has an effect for about 1 / (1 - momentum) more steps.
    # - eps is 0, or 1e-8. Default: 1e-8, so that the ratio is finite in float32 for tiny gradients.
    # - The ratio applies to parameters with two or more dimensions, or to parameters with weight
    #   decay. Default: the number of dimensions decides, so tuning the weight decay never changes
    #   the method.
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
        check_value(is_rate(lr), "lr must be one number, at least 0", got=lr, paste=f"{call})")
        paste = f"{call}, momentum=0.9)"
        check_value(0.0 <= momentum < 1.0, "momentum must be in [0, 1)", got=momentum, paste=paste)
        fine = momentum > 0.0 or not group["nesterov"]
        paste = f"{call}, momentum=0.9, nesterov=True)"
        check_value(fine, "nesterov requires momentum above 0", got=momentum, paste=paste)
        paste = f"{call}, weight_decay=1e-4)"
        fine = 0.0 <= decay < math.inf
        check_value(fine, "weight_decay must be at least 0", got=decay, paste=paste)
        fine = 0.0 < trust < math.inf
        paste = f"{call}, trust_coefficient=0.001)"
        check_value(fine, "trust_coefficient must be above 0", got=trust, paste=paste)
        paste = f"{call}, eps=1e-8)"
        check_value(0.0 <= eps < math.inf, "eps must be at least 0", got=eps, paste=paste)

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
    """Return times * ratio * (g + weight_decay * w) for each parameter, as new tensors."""
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
