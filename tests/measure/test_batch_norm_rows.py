"""Batch normalization in training mode by rows, against `autograd.grad` of each row's share."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from example_twin import NAMED_WANTS, close, watched
from torch import Tensor, nn
from torch.func import functional_call

import largebatch as lb
from largebatch.core.errors import LargeBatchError
from largebatch.measure.examples.per_example import PerExample

B = 6


def squared_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    flat = model(x).flatten(1)
    return (flat - torch.outer(y, torch.arange(1, flat.shape[1] + 1) / 7)).square().sum(1).mean()


class Shared(nn.Module):
    """One batch normalization that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.last(self.norm(self.first(x)))))


MODELS = {
    "dense": (lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (4,)),
    "images": (lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), (2, 7, 6)),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (3, 9)),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)), (1, 3, 4, 3)),
    "without running statistics": (lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)), (4,)),
    "without weight": (lambda: nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)), (4,)),
    "one weight in two calls": (Shared, (3, 5)),
}  # fmt: skip


class OwnRows(nn.Module):
    """Each row runs through its own copy of the module's parameters: their gradients are the rows'
    shares. The statistics of batch normalization are over all rows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        pairs = module.named_parameters(recurse=False)
        self.copies = {n: p.detach().expand(B, *p.shape).clone().requires_grad_() for n, p in pairs}

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.module, nn.modules.batchnorm._BatchNorm):
            axes = [0, *range(2, x.dim())]
            variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
            x = (x - mean) / (variance + self.module.eps).sqrt()
            for value, change in ((self.copies.get("weight"), torch.mul),
                                  (self.copies.get("bias"), torch.add)):  # fmt: skip
                if value is not None:
                    x = change(x, value.view(*value.shape, *(1,) * (x.dim() - 2)))
            return x
        rows = [
            functional_call(self.module, {n: c[i] for n, c in self.copies.items()}, (x[i : i + 1],))
            for i in range(B)
        ]
        return torch.cat(rows)


def shares(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """B times each row's share of each parameter's gradient: [B, *shape]."""
    names = [name for name, _ in model.named_parameters()]
    model = copy.deepcopy(model)
    own: dict[str, OwnRows] = {}
    for name, module in list(model.named_modules()):
        if name and next(module.parameters(recurse=False), None) is not None:
            own[name] = OwnRows(module)
            model.set_submodule(name, own[name])
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(name, OwnRows(module))
    copies = [own[n.rpartition(".")[0]].copies[n.rpartition(".")[2]] for n in names]
    return [B * g for g in torch.autograd.grad(squared_loss(model, x, y), copies)]


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("exact", [False, True], ids=["", "exact"])
@pytest.mark.parametrize("want", NAMED_WANTS)
@pytest.mark.parametrize("name", MODELS)
def test_rows_shares_against_the_definition(name, want, exact, groups):
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.3)
            if module.running_mean is not None:  # what evaluation mode would use
                module.running_mean.normal_()
    x, y = torch.randn(B, *shape, dtype=torch.float64), torch.linspace(-1, 2, B).double()
    asked = NAMED_WANTS[want]
    expected = shares(model, x, y)
    options = {"batch_norm_rows": True, "exact_training": exact, "groups": groups}
    seen = watched(model, squared_loss, x, y, want=asked, **options)
    if groups is not None:
        expected = [g.unflatten(0, (groups, -1)).mean(1) for g in expected]
    mean = [g.mean(0) for g in expected]
    for found, g in zip(seen.gradients, mean, strict=True):
        torch.testing.assert_close(found, g, rtol=1e-9, atol=1e-12)
    if seen.sqnorm is not None:
        torch.testing.assert_close(
            seen.sqnorm.double(), sum(g.square().sum() for g in expected), rtol=1e-9, atol=0.0
        )
    if asked.squares:
        for found, g in zip(seen.squares, expected, strict=True):
            torch.testing.assert_close(found, g.square().sum(0), rtol=1e-9, atol=1e-20)
    if seen.products is not None:
        products = sum((g * m).flatten(1).sum(1) for g, m in zip(expected, mean, strict=True))
        close(seen.products, products, rel=1e-9)


def test_evaluation_mode_uses_the_running_statistics():
    torch.manual_seed(0)
    build, shape = MODELS["dense"]
    model = build().double().eval()
    model[1].running_mean.normal_()
    x, y = torch.randn(B, *shape, dtype=torch.float64), torch.ones(B).double()
    given = watched(model, squared_loss, x, y, batch_norm_rows=True)
    plain = watched(model, squared_loss, x, y)
    torch.testing.assert_close(given.sqnorm, plain.sqnorm, rtol=0.0, atol=0.0)


def test_only_batch_normalization_of_one_process_is_measured_by_rows():
    model = nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4))
    with pytest.raises(ValueError, match="'1' is batch normalization in training mode"):
        watched(model, squared_loss, torch.randn(B, 4), torch.ones(B), batch_norm_rows=True)


class Centred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.inside(x - x.mean(0)))


def test_other_ways_to_couple_examples_stay_refused():
    with pytest.raises(LargeBatchError, match="depend on each other"):
        watched(Centred(), squared_loss, torch.randn(B, 4), torch.ones(B), batch_norm_rows=True)


def test_the_label_says_how_far_rows_were_off_in_the_experiment():
    path = Path(__file__).parents[2] / "experiments" / "batch_norm_rows" / "expected.json"
    numbers = json.loads(path.read_text())["bias"]
    low, high, median = (numbers[f"{w} variance"]["value"] for w in ("least", "greatest", "median"))
    examples = PerExample(batch_norm_rows=True)
    assert examples.approximation is None
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    lb.Meter(model, examples=examples).bind(torch.optim.SGD(model.parameters(), lr=0.1))
    words = f"{low:.3g} to {high:.2g} times the true variance, and {median:.2g} times in the median"
    assert words in examples.approximation
    model.eval()
    assert examples.approximation is None


def test_the_options_are_visible():
    assert not PerExample().batch_norm_rows
    assert not PerExample().exact_training
    assert PerExample(batch_norm_rows=True).batch_norm_rows
    assert PerExample(exact_training=True).exact_training
