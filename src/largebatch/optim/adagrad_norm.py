"""AdaGrad-Norm: SGD whose rate falls with the gradients seen so far, the same for all parameters.

    v <- v + |g|^2,    w <- w - lr g / (sqrt(v) + eps)

with g the gradient over ALL parameters of all groups together and v one number: the scalar form of
AdaGrad, as in the theory of AdAdaGrad-Norm.

Lau, Liu, Kolar: AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods, 2024, arXiv
2402.11215.
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
    """SGD divided by the root of the sum of all squared gradient norms so far; without momentum.

    Parameters without a gradient are left alone and add nothing. Rate, eps and weight decay may
    differ by parameter group; the sum is one. Nothing is read by the host.

    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> weight.grad = torch.tensor([0.6, 0.8])
    >>> optimizer = AdaGradNorm([weight], lr=0.5)
    >>> optimizer.step()
    >>> weight.data  # the first step has the length lr
    tensor([2.7000, 3.6000])

    Mutable: holds the sum, in the state of the first parameter.

    Args:
        params: parameters or groups of them, whole and not sharded.
        lr: learning rate, 0 or more; the length of the first step. May be a tensor of one element.
        eps: above 0.
        weight_decay: 0 or more; adds weight_decay w to the gradient, as in torch's Adagrad.
        initial_sum: v before the first step, 0 or more; it shortens the first steps.

    Raises:
        ValueError: a hyper-parameter outside of its range.

    Reference: Lau et al., 2024, arXiv 2402.11215. The authors' program has under this name a sum
    for each row of a matrix, which is another method.
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
        check_value(fine, "initial_sum is 0 or more", got=initial_sum, paste=paste)
        super().__init__(params, {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        first = self._first
        wide = torch.float64 if first.dtype is torch.float64 else torch.float32
        self.state[first]["sum"] = torch.full((), initial_sum, dtype=wide, device=first.device)

    @property
    def sum(self) -> Tensor:
        """v, the sum of all squared norms so far, a number on the device."""
        found: Tensor = self.state[self._first]["sum"]
        return found

    @property
    def _first(self) -> Tensor:
        first: Tensor = next(p for group in self.param_groups for p in group["params"])
        return first

    def _check(self, group: Mapping[str, Any]) -> None:
        lr, eps, decay = (group[name] for name in ("lr", "eps", "weight_decay"))
        call = "AdaGradNorm(model.parameters(), lr=0.1"
        check_value(is_rate(lr), "lr is one number, 0 or more", got=lr, paste=f"{call})")
        check_value(0.0 < eps < math.inf, "eps is above 0", got=eps, paste=f"{call}, eps=1e-10)")
        paste = f"{call}, weight_decay=0.01)"
        check_value(0.0 <= decay < math.inf, "weight_decay is 0 or more", got=decay, paste=paste)

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
    # in float32 a CPU loses 1 in 10^2 of the norm of 10^7 elements
    device = bucket.parameters[0].device
    dtype = bucket.dtype if device.type == "mps" else torch.float64
    return torch.stack(torch._foreach_norm(bucket.gradients, 2, dtype=dtype)).square().sum()
