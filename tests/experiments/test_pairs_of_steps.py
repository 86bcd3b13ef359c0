"""Test how the experiment on batch normalization measures noise from pairs of steps."""

from __future__ import annotations

import copy

import pytest
import torch
from experiments.batch_norm_rows.pairs import pairs, values
from experiments.batch_norm_rows.setup import dense, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SIZE = 16


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 64, generator=generator)
    return x, torch.randint(10, (200,), generator=generator)


def moving(lr: float = 0.05) -> tuple[nn.Module, torch.optim.SGD]:
    """Return a model with batch normalization, and its optimizer with momentum."""
    torch.manual_seed(0)
    model = dense(nn.BatchNorm1d)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    x, y = data()
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def gradient(model: nn.Module, at: Tensor) -> Tensor:
    x, y = data()
    loss = cross_entropy(model(x[at]), y[at])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("lr", [0.05, 0.005])
def test_each_pair_is_two_steps_from_the_same_weights_and_momentum(lr: float) -> None:
    drawn = torch.randint(200, (3, 2, SIZE), generator=torch.Generator().manual_seed(1))
    model, optimizer = moving()
    found = pairs(model, optimizer, data(), drawn=drawn, lr=lr)
    for moments, (first, second) in zip(found, drawn, strict=True):
        twin, moved = moving()
        g = gradient(twin, first)
        with torch.no_grad():
            at = 0
            for p in twin.parameters():
                velocity = 0.9 * moved.state[p]["momentum_buffer"] + g[at : at + p.numel()].view_as(
                    p
                )
                p -= lr * velocity
                at += p.numel()
        h = gradient(twin, second)
        assert moments.source == "temporal"
        assert moments.variance == pytest.approx(SIZE * float((g - h).square().sum()) / 2, rel=1e-4)
        assert moments.sqnorm == pytest.approx(float(g @ h), rel=1e-3, abs=1e-5)


def test_model_and_optimizer_are_left_as_they_were() -> None:
    model, optimizer = moving()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    drawn = torch.randint(200, (2, 2, SIZE), generator=torch.Generator().manual_seed(1))
    pairs(model, optimizer, data(), drawn=drawn, lr=0.01)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)


def test_without_movement_the_pairs_are_unbiased() -> None:
    model, optimizer = moving()
    drawn = torch.randint(200, (400, 2, SIZE), generator=torch.Generator().manual_seed(2))
    found = values(pairs(model, optimizer, data(), drawn=drawn, lr=0.0), size=SIZE)
    each = torch.stack([gradient(model, at) for at in drawn.reshape(-1, SIZE)]).double()
    mean, n = each.mean(0), len(each)
    spread = float((each - mean).square().sum()) / (n - 1)
    sqnorm = float(mean.square().sum()) - spread / n
    assert found["variance"] == pytest.approx(SIZE * spread, rel=0.02)
    assert abs(found["sqnorm"] - sqnorm) < 3 * found["sqnorm +-"]
    assert found["noise scale"] == pytest.approx(found["variance"] / found["sqnorm"])


def test_training_starts_at_the_seeds_weights_and_is_repeated_to_the_bit() -> None:
    model, optimizer = trained("MLP", seed=1, steps=2)
    again, _ = trained("MLP", seed=1, steps=2)
    other, _ = trained("MLP", seed=2, steps=2)
    for p, q, r in zip(model.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p.ndim == 1 or not torch.equal(p, r)
        assert "momentum_buffer" in optimizer.state[p]
