"""The estimate of memory against a measured step's peak of tensors, less a plain step's."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable

import pytest
import torch
from example_twin import token_loss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import profile

from largebatch.measure.examples import layer, memory
from largebatch.measure.examples.example_gradients import ExampleGradients
from largebatch.measure.examples.per_example import PerExample
from largebatch.measure.examples.tally import WantedSums
from largebatch.measure.parameters import Parameters
from largebatch.measure.ranks import Ranks
from largebatch.measure.taps import LeafHooks
from largebatch.workbench.workloads.models import ByteTransformer, mlp, resnet8

NORM = WantedSums(sqnorm=True)
SQUARES = WantedSums(squares=True)
PRODUCTS = WantedSums(sqnorm=True, products=True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = ByteTransformer(layers=1, width=64, heads=4, context=64)
        self.inside.head.weight = self.inside.bytes.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Repeated(nn.Module):
    """One layer that is called many times, so that all calls wait for the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(12):
            x = torch.tanh(self.inside(x))
        return x


def plain_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp(inputs=784, width=300, classes=10), (128, 784)),
    "wide mlp, few examples": (lambda: mlp(inputs=784, width=500, classes=10), (16, 784)),
    "cnn": (plain_cnn, (64, 1, 28, 28)),
    "resnet8": (lambda: resnet8(width=16, classes=10), (16, 1, 28, 28)),
    "transformer": (lambda: ByteTransformer(layers=2, width=64, heads=4, context=64), (16, 64)),
    "tied weights": (Tied, (16, 64)),
    "repeated": (Repeated, (128, 64)),
}


def class_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def peak(run: Callable[[], None]) -> int:
    """Bytes of tensors that are alive at a time in a run, above those before it."""
    gc.collect()
    with profile(profile_memory=True) as seen:
        run()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes, initial=0))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False], ids=["first backward", "a later one"])
@pytest.mark.parametrize("want", [NORM, SQUARES, PRODUCTS], ids=["norm", "squares", "products"])
@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_factor_of_two_of_the_peak(name, want, first, monkeypatch):
    for module in (layer, memory):  # models of this size would take less than the usual cache
        monkeypatch.setattr(module, "CPU_BYTES", 1 << 16)
    build, shape = CASES[name]
    torch.manual_seed(0)
    model = build()
    tokens = len(shape) == 2 and shape[1] == 64 and name != "repeated"
    x = torch.randint(0, 256, shape) if tokens else torch.randn(shape)
    y = x if tokens else torch.arange(shape[0]) % 10
    loss = token_loss if tokens else class_loss
    parameters = Parameters.of(model, torch.optim.SGD(model.parameters(), lr=0.1))
    examples, hooks = ExampleGradients(exact_training=True), LeafHooks()

    def plain() -> None:
        loss(model, x, y).backward()

    def measured() -> None:
        examples.open(want)
        value = loss(model, x, y)
        estimates.append(examples.extra_bytes)
        examples.begin()
        hooks.begin(examples.see)
        value.backward()
        hooks.end(last=True)
        part = examples.end()
        sum(part.sqnorm())
        if want.products:
            examples.products(part, {i: p.grad for i, p in enumerate(parameters.tensors)})
        examples.forget()

    plain()
    model.zero_grad()
    base = peak(plain)
    examples.bind(model, parameters)
    hooks.bind(parameters, Ranks())
    estimates: list[int | None] = []
    assert examples.extra_bytes is None
    model.zero_grad()
    if not first:
        measured()
        model.zero_grad()
    extra = peak(measured) - base
    estimate = estimates[-1]
    assert estimate is not None
    slack = base // 10  # a peak that does not rise has no ratio
    assert extra / 2 - slack <= estimate <= 2 * extra + slack, (estimate, extra, base)


def test_it_counts_what_grows_with_the_examples_once_for_each():
    estimates = []
    for rows in (8, 16):
        torch.manual_seed(0)
        model, examples = Repeated(), PerExample(exact_training=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        examples.bind(model, Parameters.of(model, optimizer))
        examples.open(examples.statistics(None)[:1])
        model(torch.randn(rows, 64)).sum().backward()
        estimates.append(examples.extra_bytes)
        examples.rest()
    parameters = 4 * (64 * 64 + 64)
    growth = estimates[1] - estimates[0]
    # inputs and output gradients of 12 calls, and at most the matrices of 8 more examples
    assert 8 * 4 * 64 * 12 <= growth <= 8 * (2 * 4 * 64 * 12 + parameters)
