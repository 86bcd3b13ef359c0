"""What a probe forecasts is what AdaScale then takes, on noisy quadratics whose gradient falls.

`benchmarks/probe_forecast.py` has more seeds and more problems.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import largebatch as lb
from largebatch.studies.probe import probe

DIMENSIONS, BASE, SEEDS = 30, 16, 4
CURVATURE = torch.arange(1, DIMENSIONS + 1.0) ** -1.0


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((DIMENSIONS,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.w - x


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * model(x) ** 2).sum(1).mean()


def steps_taken(data: Tensor, *, lr: float, steps: int, scale: int, seed: int) -> int:
    model = Weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batches = lb.BatchLoader(data, batch_size=scale * BASE, max_micro_batch_size=BASE, seed=seed)
    control = lb.Controller(model, optimizer, lb.AdaScale(), batches, base_batch_size=BASE)
    for batch in control.steps(base_steps=steps):
        for x in batch:
            control.backward(loss(model, x))
        control.step()
    return control.optimizer_steps


@pytest.mark.parametrize(
    ("noise", "lr", "steps", "error"), [(4.0, 0.05, 400, 0.05), (1.0, 0.3, 200, 0.02)]
)
def test_the_forecast_comes_true_while_the_gradient_falls(
    noise: float, lr: float, steps: int, error: float
) -> None:
    data = noise * torch.randn(20_000, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    scale, spans = 8, []
    taken = [steps_taken(data, lr=lr, steps=steps, scale=scale, seed=s) for s in range(SEEDS)]
    for seed in range(SEEDS):
        model = Weights()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        found = probe(
            model, optimizer, loss, data, base_batch_size=BASE, steps=steps, scale=scale, seed=seed
        )
        assert found.outlook is not None
        spans += [row.steps for row in found.outlook.forecasts if row.scale == scale]
    truth = float(np.mean(taken))
    print(f"taken {truth:.1f}, forecast", *spans, sep="\n")
    assert len(spans) == SEEDS
    assert np.median([span.value for span in spans]) == pytest.approx(truth, rel=error)
    assert sum(span.low <= truth <= span.high for span in spans) >= SEEDS - 1
