"""Moments of blocks add up to those of the whole, and are what a naive computation gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import largebatch as lb
from largebatch.measure import squares
from largebatch.measure.blocks import BlockNorms, blocks_of
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.sums import Sums, rows_by_name


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 7)
        self.body = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7))
        self.head = nn.Linear(7, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(torch.tanh(self.stem(x)))))


def measured(tap: object) -> tuple[Net, torch.Tensor, BlockNorms, lb.GradientMoments]:
    """One step of 12 samples in 4 parts at unchanged weights."""
    torch.manual_seed(3)
    net, x = Net(), torch.randn(12, 5)
    blocks = BlockNorms()
    batches = lb.BatchLoader(x, batch_size=12, max_micro_batch_size=3, shuffle=False)
    control = lb.Controller(
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        lb.Observe(),
        batches,
        base_batch_size=12,
        meter=lb.Meter(net, statistics=[blocks], tap=tap),
    )
    for batch in control.steps(steps=1):
        for part in batch:
            control.backward(net(part).square().mean())
        moments = control.measure().moments
        control.step()
    assert moments is not None
    return net, x, blocks, moments


@pytest.mark.parametrize(
    "tap", [lb.measure.LeafHooks(), lb.measure.Detached()], ids=["hooks", "detached"]
)
def test_each_block_has_the_moments_that_a_naive_computation_gives(tap: object) -> None:
    net, x, blocks, _ = measured(tap)
    for name in ("stem", "body", "head"):
        parts = []
        for part in x.split(3):
            net.zero_grad()
            net(part).square().mean().backward()
            flat = [p.grad.flatten() for p in net.get_submodule(name).parameters()]
            parts.append(torch.cat(flat).double())
        stacked = torch.stack(parts)
        variance = 3 * float(stacked.var(0).sum())
        sqnorm = float(stacked.mean(0).square().sum()) - variance / 12
        assert blocks.last[name].variance == pytest.approx(variance, rel=1e-4)
        assert blocks.last[name].sqnorm == pytest.approx(sqnorm, rel=1e-3, abs=1e-6)


def test_the_moments_of_the_blocks_add_up_to_those_of_the_whole_gradient() -> None:
    _, x, blocks, moments = measured(lb.measure.Detached())
    torch.manual_seed(3)
    net = Net()
    record = lb.MemoryRecord()
    control = lb.Controller(
        net,
        torch.optim.SGD(net.parameters(), lr=0.0),
        lb.Observe(),
        lb.BatchLoader(x, batch_size=12, max_micro_batch_size=3, shuffle=False),
        base_batch_size=12,
        record=record,
    )
    for batch in control.steps(steps=1):
        for part in batch:
            control.backward(net(part).square().mean())
        control.step()
    whole = record.steps[0].seen.moments
    assert whole is not None
    assert sum(block.variance for block in blocks.last.values()) == pytest.approx(
        whole.variance, rel=1e-5
    )
    assert moments.variance == pytest.approx(whole.variance, rel=1e-5)
    assert moments.sqnorm == pytest.approx(whole.sqnorm, rel=1e-4)


def test_a_block_that_the_loss_does_not_use_has_no_noise() -> None:
    _, _, blocks, _ = measured(lb.measure.Detached())
    assert blocks.last["unused"].variance == 0.0
    assert blocks.sizes == {"stem": 42, "body": 112, "head": 8, "unused": 12}


def test_blocks_are_named_where_the_modules_part() -> None:
    assert blocks_of(["a.b.w", "a.c.d.w", "a.c.e.w"]) == ("a.b", "a.c", "a.c")
    assert blocks_of(["a.w"]) == ("a",)
    assert blocks_of(["a.w", "scale"]) == ("a", "scale")


class Many(nn.Module):
    """Three hundred blocks of one or two parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(2, 2, bias=number % 2 == 0) for number in range(300)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum()


def test_the_blocks_of_a_batch_take_each_gradient_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, blocks, looks = Many(), BlockNorms(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    blocks.bind(Parameters.of(net, optimizer), optimizer)
    net(torch.randn(3, 2)).backward()
    of_each = squares.squared_norm

    def counted(gradient: torch.Tensor) -> torch.Tensor:
        looks.append(gradient)
        return of_each(gradient)

    monkeypatch.setattr(squares, "squared_norm", counted)
    sums = Sums(Ranks(), device=torch.device("cpu"))
    sums.open(rows_by_name(blocks.of_batch))
    blocks.close_batch(sums, share=1.0)
    assert [id(look) for look in looks] == [id(p.grad) for p in net.parameters()]
    found = sums.reduce()
    for block, name in zip(blocks.names, blocks.of_batch, strict=True):
        module = net.get_submodule(block)
        expected = sum(float(p.grad.double().square().sum()) for p in module.parameters())
        assert found[name] == pytest.approx(expected, rel=1e-5)
