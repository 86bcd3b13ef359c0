"""A sparse gradient has the statistics of the same gradient written densely."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import largebatch as lb
from largebatch.measure.coordinates import CoordinateNoiseScale
from largebatch.measure.preconditioned import PreconditionedNorms
from largebatch.measure.temporal import TemporalMoments

WORDS = torch.randint(0, 8, (64, 3), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4, sparse=sparse)
        values = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
        self.table.weight = nn.Parameter(values)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.table(words).mean(1).square()


def readings(statistic, optimizer, *, sparse: bool):
    model = Words(sparse=sparse)
    control = lb.Controller(
        model,
        optimizer(model.parameters(), lr=0.01),
        lb.Observe(statistics=(statistic.name,)),
        lb.BatchLoader((WORDS,), batch_size=8, max_micro_batch_size=2, shuffle=False),
        base_batch_size=8,
        meter=lb.Meter(model, statistics=[statistic]),
    )
    found = []
    for batch in control.steps(steps=9):
        for (words,) in batch:
            control.backward(model(words).mean())
        found.append(getattr(control.measure(), statistic.name))
        control.step()
    return found[1:]  # there is no temporal moment of the first step


def numbers(moments) -> list[float]:
    if moments is None:
        return []
    if isinstance(moments, float):
        return [moments]
    return [moments.variance, moments.batch_sqnorm]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # from torch's own Adagrad
@pytest.mark.parametrize(
    ("make", "optimizer"),
    [
        (PreconditionedNorms, torch.optim.Adagrad),
        (TemporalMoments, torch.optim.SGD),
        (lambda: CoordinateNoiseScale(quantile=0.5), torch.optim.SGD),
    ],
    ids=["preconditioned", "temporal", "coordinates"],
)
def test_a_sparse_gradient_is_measured_as_a_dense_one(make, optimizer):
    found = readings(make(), optimizer, sparse=True)
    assert found[-1] is not None
    for moments, expected in zip(found, readings(make(), optimizer, sparse=False), strict=True):
        assert (moments is None) == (expected is None)
        assert numbers(moments) == pytest.approx(numbers(expected), rel=1e-5)
