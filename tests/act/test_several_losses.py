"""Several losses with a backward call each are summed per micro-batch, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import largebatch as lb

PARTS, SIZE, STEPS = 4, 8, 5


class Model(nn.Module):
    """Two towers, and two weights of losses that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
        self.scales = nn.Parameter(torch.tensor([0.1, -0.2]))

    def forward(self, x: Tensor, tower: int) -> Tensor:
        return self.towers[tower](x)


def on_both(model, a, b):
    return (a * b).mean(), (a - b + 1).square().mean()


def on_one_first(model, a, b):
    return a.square().mean(), (a - b + 1).square().mean()


def on_the_other_first(model, a, b):
    return b.square().mean(), (a - b + 1).square().mean()


def with_learned_weights(model, a, b):
    first, second = (-model.scales).exp()
    return first * a.square().mean() + model.scales[0], second * (b * a - 1).abs().mean()


def with_a_penalty(model, a, b):
    return (a * b).mean(), 0.1 * sum(p.square().sum() for p in model.parameters())


LOSSES = [on_both, on_one_first, on_the_other_first, with_learned_weights, with_a_penalty]


def outputs(model, x):
    return model(x, 0), model(x.flip(1), 1)


def alternating(model, parts, losses):
    for x in parts:
        first, second = losses(model, *outputs(model, x))
        (first / PARTS).backward(retain_graph=True)
        (second / PARTS).backward()


def forwards_first(model, parts, losses):
    for first, second in [losses(model, *outputs(model, x)) for x in parts]:
        (first / PARTS).backward(retain_graph=True)
        (second / PARTS).backward()


def with_a_log(model, parts, losses):
    for x in parts:
        first, second = losses(model, *outputs(model, x))
        (first / PARTS).backward(retain_graph=True)
        model(torch.zeros(3, 5), 0)  # a line of a log, without no_grad
        (second / PARTS).backward()


def forward_between(model, parts, losses):
    for x in parts:
        a = model(x, 0)
        (a.square().mean() / PARTS).backward(retain_graph=True)
        (losses(model, a, model(x.flip(1), 1))[1] / PARTS).backward()


def loss_by_loss(model, parts, losses):
    pairs = [losses(model, *outputs(model, x)) for x in parts]
    for first, _ in pairs:
        (first / PARTS).backward(retain_graph=True)
    for _, second in pairs:
        (second / PARTS).backward()


def true_moments(model, parts, losses):
    """Variance of one sample and squared norm, of the gradients of the summed losses."""
    gradients = []
    for x in parts:
        found = torch.autograd.grad(
            sum(losses(model, *outputs(model, x))), list(model.parameters()), allow_unused=True
        )
        gradients.append(torch.cat([one.flatten() for one in found if one is not None]).double())
    each = torch.stack(gradients)
    variance = SIZE * each.var(0).sum().item()
    return variance, each.mean(0).square().sum().item() - variance / (PARTS * SIZE)


def train(run, losses, *, truth=None):
    """(measured, true) of each step; the error in its place, if there was one."""
    torch.manual_seed(0)
    model, record = Model(), lb.MemoryRecord()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lb.attach(
        model,
        optimizer,
        lb.AdaScale(),
        batch_size=PARTS * SIZE,
        base_batch_size=SIZE,
        samples=lambda args, kwargs: len(args[0]) / 2,
        record=record,
    )
    seen = []
    for _ in range(STEPS):
        parts = torch.randn(PARTS, SIZE, 5)
        true = true_moments(model, parts, truth or losses)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        run(model, parts, losses)
        try:
            optimizer.step()
        except lb.errors.LargeBatchError as error:
            assert all(map(torch.equal, before, model.parameters()))
            seen.append(str(error))
        else:
            found = record.steps[-1].seen.moments
            assert found.parts == PARTS
            seen.append(((found.variance, found.sqnorm), true))
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("run", [alternating, forwards_first, with_a_log])
def test_the_losses_of_a_part_are_summed_from_the_second_step_on(run, losses) -> None:
    first, *others = train(run, losses)
    assert "several losses with one backward call each" in first
    for found, true in others:
        assert found == pytest.approx(true, rel=1e-4)


def test_a_forward_pass_between_the_losses_changes_nothing() -> None:
    def truth(model, a, b):
        return a.square().mean(), (a - b + 1).square().mean()

    first, *others = train(forward_between, on_one_first, truth=truth)
    assert "several losses" in first
    for found, true in others:
        assert found == pytest.approx(true, rel=1e-4)


@pytest.mark.parametrize("losses", [on_both, with_learned_weights])
def test_losses_in_turn_over_the_parts_are_refused_in_each_step(losses) -> None:
    assert all("several losses" in text for text in train(loss_by_loss, losses))
