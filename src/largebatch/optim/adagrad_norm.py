"""Implement AdaGrad-Norm: SGD with a learning rate that falls as gradients accumulate.

    v <- v + |g|^2,    w <- w - lr * g / (sqrt(v) + eps)

The gradient g covers ALL parameters of all groups together, and v is one number. AdaGrad-Norm is
the scalar form of AdaGrad, as in the theory of AdAdaGrad-Norm.

Reference: Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods,
2024, arXiv 2402.11215.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.layerwise import Bucket, LayerwiseOptimizer, check_value, is_rate, rate


class AdaGradNorm(LayerwiseOptimizer):
    """Divide SGD's learning rate by the root of the sum of all squared gradient norms so far.

    Parameters without a gradient stay unchanged and do not increase the sum. Learning rate, eps and
    weight decay may differ between parameter groups, but all groups share one sum. The optimizer
    has no momentum. The optimizer reads no values from the device. The sum is stored in the state
    of the first parameter.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.6, 0.8])
    >>> optimizer = AdaGradNorm([weight], lr=0.5)
    >>> optimizer.step()
    >>> weight.data  # the first step has the length lr
    tensor([2.7000, 3.6000])

    Args:
        params: Parameters or parameter groups. Sharded parameters are not supported.
        lr: Learning rate, at least 0. The first step has the length `lr`. A tensor of one element
            is allowed.
        eps: Constant in the denominator, above 0.
        weight_decay: Weight-decay factor, at least 0. The gradient becomes g + weight_decay * w, as
            in torch's Adagrad.
        initial_sum: Value of v before the first step, at least 0. The larger the initial sum, the
            shorter the first steps.

    Raises:
        ValueError: A hyper-parameter is outside its range.

    Reference: Lau et al., 2024, arXiv 2402.11215. The optimizer called AdaGrad-Norm in the authors'
    program is another method: it keeps one sum per matrix row.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        initial_sum: float = 0.0,
    ) -> None:
        paste = "AdaGradNorm(model.parameters(), lr=0.1, initial_sum=1.0)"
        fine = 0.0 <= initial_sum < math.inf
        check_value(fine, "initial_sum must be at least 0", got=initial_sum, paste=paste)
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        first = self._first
        wide = torch.float64 if first.dtype is torch.float64 else torch.float32
        self.state[first]["sum"] = torch.full((), initial_sum, dtype=wide, device=first.device)

    @property
    def sum(self) -> Tensor:
        """Return v, the sum of all squared gradient norms so far, as a tensor on the device."""
        found: Tensor = self.state[self._first]["sum"]
        return found

    @property
    def _first(self) -> Tensor:
        first: Tensor = next(p for group in self.param_groups for p in group["params"])
        return first

    def _check(self, group: Mapping[str, Any]) -> None:
        lr, eps, decay = (group[name] for name in ("lr", "eps", "weight_decay"))
        call = "AdaGradNorm(model.parameters(), lr=0.1"
        check_value(is_rate(lr), "lr must be one number, at least 0", got=lr, paste=f"{call})")
        paste = f"{call}, eps=1e-10)"
        check_value(0.0 < eps < math.inf, "eps must be above 0", got=eps, paste=paste)
        paste = f"{call}, weight_decay=0.01)"
        fine = 0.0 <= decay < math.inf
        check_value(fine, "weight_decay must be at least 0", got=decay, paste=paste)

    def _look(self, work: Sequence[tuple[Mapping[str, Any], Bucket]]) -> None:
        total = self.sum
        for group, bucket in work:
            if group["weight_decay"]:
                bucket.gradients[:] = torch._foreach_add(
                    bucket.gradients, bucket.parameters, alpha=group["weight_decay"]
                )
            total = total + _squared_norm(bucket).to(device=total.device, dtype=total.dtype)
        self.state[self._first]["sum"] = total

    def _move(self, group: Mapping[str, Any], bucket: Bucket) -> None:
        ones = bucket.ones()
        root = self.sum.sqrt().to(device=ones.device, dtype=ones.dtype)
        bucket.subtract(bucket.gradients, times=ones * (rate(group) / (root + group["eps"])))


def _squared_norm(bucket: Bucket) -> Tensor:
    # In float32 on a CPU, the norm of 10^7 elements is wrong by about 1 %.
    device = bucket.parameters[0].device
    dtype = bucket.dtype if device.type == "mps" else torch.float64
    return torch.stack(torch._foreach_norm(bucket.gradients, 2, dtype=dtype)).square().sum()
