"""Make data and a model whose gradient noise is known and does not depend on the weights.

The loss of a sample x is <w, x>, so its gradient is x. The mean of the samples is exactly e_1, and
the samples have Gaussian noise in all directions. Training does not change the gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import largebatch as lb
from _known_noise import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class RealNoise:
    """Describe a data set of samples whose mean has the squared norm 1.

    Args:
        seed: Seed of the samples and of their order.
        noise_scale: Noise scale in samples, which equals the variance of one sample.
        directions: Number of directions with equal noise, which is the number of weights.
        samples: Number of samples in the data set.
    """

    seed: int
    noise_scale: float = 1000.0
    directions: int = 100
    samples: int = 60_000

    def data(self) -> Tensor:
        """Draw the samples, [N, D]."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.samples, self.directions, generator=generator)
        x *= math.sqrt(self.noise_scale / self.directions)
        x -= x.mean(0)
        x[:, 0] += 1.0
        return x

    def model(self) -> tuple[nn.Linear, torch.optim.SGD]:
        """Return a model whose output is the loss, and an optimizer with a tiny learning rate."""
        model = nn.Linear(self.directions, 1, bias=False)
        return model, torch.optim.SGD(model.parameters(), lr=1e-9)


def grown_batches(
    noise: RealNoise, *, micro_batch: int, rule: lb.Rule | None = None, steps: int = 130
) -> Array:
    """Train with a rule that grows the batch from 16 samples; return the batch sizes, [T + 1].

    Args:
        noise: Data set.
        micro_batch: Largest number of samples of one backward call.
        rule: Rule that grows the batch. The default rule is `adasgd()`.
        steps: Number of optimizer steps.
    """
    model, optimizer = noise.model()
    batches = lb.BatchLoader(
        (noise.data(),), batch_size=16, max_micro_batch_size=micro_batch, seed=noise.seed
    )
    control = lb.Controller(
        model, optimizer, rule or lb.methods.adasgd(), batches, base_batch_size=16
    )
    sizes = [16]
    for batch in control.steps(steps=steps):
        for (x,) in batch:
            control.backward(model(x).mean())
        sizes.append(control.step().next_batch_size)
    return np.array(sizes, dtype=np.float64)
